"""Pictures and tables of a finished trial in W&B's own types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import wandb
from numpy.typing import NDArray
from PIL import Image

from slime_bench.tracking import keys
from slime_bench.tracking.finals import LAYER_COLUMNS, Example

IGNORED = 255
_LARGEST = 256
"""Side of a score map's picture in pixels; it is smooth, and there are as many as classes times images."""


def class_labels(classes: Sequence[str]) -> dict[int, str]:
    """Of the masks' values."""
    return {**dict(enumerate(classes)), IGNORED: "not annotated"}


def example(one: Example, classes: Sequence[str]) -> Any:
    """A test image under two masks, prediction and ground truth, whose classes W&B can show and hide by name."""
    labels = class_labels(classes)
    return wandb.Image(
        one.item.image,
        caption=one.item.image_id,
        masks={
            keys.PREDICTION: {"mask_data": one.item.prediction, "class_labels": labels},
            keys.TRUTH: {"mask_data": one.item.label, "class_labels": labels},
        },
    )


def example_table(found: Sequence[Example], classes: Sequence[str]) -> Any:
    """One row for each image: its name, the image under its masks, its mean IoU and that of each class in percent."""
    rows = [[one.item.image_id, example(one, classes), one.miou, *(one.iou[name] for name in classes)] for one in found]
    return wandb.Table(columns=["image_id", "image", "mIoU", *classes], data=rows)


def score_maps(found: Sequence[Example], classes: Sequence[str]) -> dict[str, list[Any]]:
    """Key -> one picture of the class's score map for each image, drawn from its minimum (dark) to its maximum."""
    return {
        keys.score_map(name): [wandb.Image(heat(one.item.maps[index]), caption=one.item.image_id) for one in found]
        for index, name in enumerate(classes)
    }


def heat(values: NDArray[Any]) -> NDArray[np.uint8]:
    """A map [h,w] in colours, uint8 [h',w',3], its longer side at most 256 pixels; grey where there is no number."""
    import matplotlib

    numbers = values.astype(np.float64)
    known = np.isfinite(numbers)
    low, high = (numbers[known].min(), numbers[known].max()) if known.any() else (0.0, 0.0)
    scaled = np.zeros_like(numbers)
    if high > low:
        scaled[known] = (numbers[known] - low) / (high - low)
    coloured = (255 * matplotlib.colormaps["magma"](scaled)[..., :3]).astype(np.uint8)
    coloured[~known] = 128
    picture = Image.fromarray(coloured)
    picture.thumbnail((_LARGEST, _LARGEST))
    return np.asarray(picture)


def layer_table(rows: Sequence[tuple[Any, ...]]) -> Any:
    return wandb.Table(columns=list(LAYER_COLUMNS), data=[list(row) for row in rows])


def layer_bars(rows: Sequence[tuple[Any, ...]]) -> Any:
    """InfoScore of every layer as bars."""
    return wandb.plot.bar(layer_table(rows), LAYER_COLUMNS[0], LAYER_COLUMNS[1], title="InfoScore of the layers")

"""What W&B is told of a finished trial, from the trial's files: numbers, pictures and tables, and their names there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import wandb
import yaml
from numpy.typing import NDArray
from PIL import Image

from slime_bench.paths import config_dir
from slime_bench.results.artifacts import QUALITATIVE_FILE, GridItem, coloured, read_qualitative
from slime_bench.results.environment import read_environment, read_json
from slime_bench.results.result import PER_IMAGE_FILE, TrialResult, read_per_image

STEP: Final = "trainer/global_step"
"""Lightning's x axis of all curves. (`_step` counts rows.)"""
LOSS: Final = "train/loss"
VALIDATION: Final = "val/miou"
MIOU: Final = "test/miou"
"""Percent, under the trial's own convention; what sweeps maximise."""
EXAMPLES: Final = "test/examples"
IMAGES: Final = "test/images"
CLASSES: Final = "test/classes"
BARS: Final = "infoscore/layers"
LAYERS: Final = "infoscore/table"
PREDICTION: Final = "prediction"
TRUTH: Final = "ground_truth"
"""Names of the two masks over every example."""

IGNORED: Final = 255
_LARGEST: Final = 256
"""Side of a score map's picture in pixels; it is smooth, and there are as many as classes times images."""


def iou(name: str, convention: str | None = None) -> str:
    """Key of a class, or of `miou` for the average; without a convention under the trial's own."""
    return f"test/{f'{convention}/' if convention else 'iou/'}{_plain(name)}"


def score_map(name: str) -> str:
    """Key of a class's score maps."""
    return f"maps/{_plain(name)}"


def summary(folder: Path, result: TrialResult) -> dict[str, float | int | str]:
    """Of the run: IoU under the trial's own convention and under all, in percent, and the seconds that its stages took;
    what is not defined is left out."""
    found: dict[str, float | int | str | None] = {
        MIOU: _percent(result.average), "test/convention": result.convention,
        "test/background_in_average": int(result.background_in_average), "test/num_images": result.num_test_images,
    }  # fmt: skip
    found |= {iou(name): _percent(value) for name, value in result.per_class.items()}
    for convention, table in result.conventions.items():
        found[iou("miou", convention)] = _percent(table["average"])
        found |= {iou(name, convention): _percent(value) for name, value in table["per_class"].items()}
    found["val/best_miou"] = _percent(result.validation.get("score"))
    found["val/best_epoch"] = result.validation.get("epoch")
    found |= {f"seconds/{name}": value for name, value in (read_environment(folder) or {}).get("seconds", {}).items()}
    return {key: value for key, value in found.items() if value is not None}


def pictures(folder: Path) -> dict[str, Any]:
    """The test images that the trial has kept, under two masks each, and one picture of each class's score map of them,
    drawn from its minimum (dark) to its maximum."""
    items, classes = _examples(folder)
    if not items:
        return {}
    maps = {
        score_map(name): [wandb.Image(heat(one.maps[index]), caption=one.image_id) for one in items]
        for index, name in enumerate(classes)
    }
    return {EXAMPLES: [_overlay(one, classes) for one in items], **maps}


def tables(folder: Path, result: TrialResult) -> dict[str, Any]:
    """IoU of every class beside the published numbers, IoU of every kept image, and InfoScore of every layer."""
    columns: list[str | int] = ["class", "IoU", "published", "std"]
    found: dict[str, Any] = {CLASSES: wandb.Table(columns=columns, data=class_rows(result))}
    items, classes = _examples(folder)
    if items:
        rows = [
            [item.image_id, _overlay(item, classes), *values]
            for item, values in zip(items, image_rows(folder, items), strict=True)
        ]
        found[IMAGES] = wandb.Table(columns=["image_id", "image", "mIoU", *classes], data=rows)
    if layers := layer_rows(folder, result.convention):
        columns = ["layer", "InfoScore", "rank", "used", "mIoU alone"]
        found[LAYERS] = wandb.Table(columns=columns, data=layers)
        bars = wandb.Table(columns=columns, data=layers)
        found[BARS] = wandb.plot.bar(bars, "layer", "InfoScore", title="InfoScore of the layers")
    return found


def class_rows(result: TrialResult) -> list[list[Any]]:
    """Each class and the average: the trial's IoU, then mean and standard deviation as the paper has them for the same
    method and shots, in percent; None where it has none, or the trial follows another metric than the paper."""
    path = config_dir() / "paper" / f"{result.subject}.yaml"
    rows = yaml.safe_load(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    same = [row for row in rows if (row["key"], row["shots"]) == (result.method, result.shots)]
    same_metric = (result.convention, result.background_in_average) == ("slime", True)
    stated = {**same[0]["per_class"], "average": same[0]["average"]} if same and same_metric else {}
    own = {**result.per_class, "average": result.average}
    return [
        [name, _percent(value), *(stated.get(name, {}).get(key) for key in ("mean", "std"))]
        for name, value in own.items()
    ]


def image_rows(folder: Path, items: Sequence[GridItem]) -> list[list[float | None]]:
    """For each image its mean IoU and that of every class in percent; None where the class is neither there nor
    predicted."""
    ids, _, counts = read_per_image(folder / PER_IMAGE_FILE)
    found = []
    for item in items:
        row = ids.index(item.image_id)
        pairs = zip(counts.intersection[row].tolist(), counts.union[row].tolist(), strict=True)
        values = [100.0 * inner / outer if outer else None for inner, outer in pairs]
        defined = [value for value in values if value is not None]
        found.append([sum(defined) / len(defined) if defined else None, *values])
    return found


def layer_rows(folder: Path, convention: str) -> list[list[Any]]:
    """Layer, InfoScore, rank, whether it is used, and its mIoU alone in percent where the trial has studied all layers;
    the best InfoScore first, no row where the method has ranked none."""
    ranking = read_json(folder / "ranking.json") or {}
    if not ranking.get("ranking"):
        return []
    alone: dict[str, float | None] = {}
    if study := read_json(folder / "layer_study.json"):
        alone = dict(zip(study["layers"], study["conventions"][convention]["single"], strict=True))
    scored = zip(ranking["ranking"]["layers"], ranking["ranking"]["score"], strict=True)
    order = sorted(scored, key=lambda each: -each[1])
    return [
        [name, score, rank, name in ranking["layers"], alone.get(name)] for rank, (name, score) in enumerate(order, 1)
    ]


def heat(values: NDArray[Any]) -> NDArray[np.uint8]:
    """A map [h,w] in colours, uint8 [h',w',3], its longer side at most 256 pixels; grey where there is no number."""
    picture = Image.fromarray(coloured(values))
    picture.thumbnail((_LARGEST, _LARGEST))
    return np.asarray(picture)


def _examples(folder: Path) -> tuple[list[GridItem], list[str]]:
    path = folder / QUALITATIVE_FILE
    return read_qualitative(path) if path.exists() else ([], [])


def _overlay(item: GridItem, classes: Sequence[str]) -> Any:
    """A test image under two masks, prediction and ground truth, whose classes W&B can show and hide by name."""
    labels = {**dict(enumerate(classes)), IGNORED: "not annotated"}
    masks = {PREDICTION: item.prediction, TRUTH: item.label}
    return wandb.Image(
        item.image,
        caption=item.image_id,
        masks={name: {"mask_data": mask, "class_labels": labels} for name, mask in masks.items()},
    )


def _plain(name: str) -> str:
    """A class's name without what separates parts of a key, or of the file's name that W&B makes of it."""
    return re.sub(r"[^\w .-]", "_", name)


def _percent(value: float | None) -> float | None:
    return None if value is None else 100.0 * value

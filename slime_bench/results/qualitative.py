"""The few test images that a trial keeps for its figure: image, label, prediction and maps in one `.npz`."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slime_bench.errors import ResultError
from slime_bench.storage import write_atomic

QUALITATIVE_FILE = "qualitative.npz"


@dataclass(frozen=True)
class GridItem:
    """One row of the grid.

    Attributes:
        image: [H,W,3] uint8, RGB.
        label, prediction: [H,W] integers in 0..K-1; 255 = ignored, drawn grey.
        maps: [K,h,w] floats, one WAS map per class on its own grid; each is drawn from its minimum to its maximum.
        image_id: name written beside the row.
    """

    image: NDArray[Any]
    label: NDArray[Any]
    prediction: NDArray[Any]
    maps: NDArray[Any]
    image_id: str


def write_qualitative(path: str | Path, items: Sequence[GridItem], classes: Sequence[str]) -> None:
    """Writes the items of one trial (all of one size) as `qualitative.npz`, for `read_qualitative`.

    Raises:
        ResultError: no items, or items that do not fit together or the classes.
        StorageError: the file cannot be written.
    """
    check_items(items, classes, path)
    if len({(item.label.shape, item.maps.shape) for item in items}) > 1:
        raise ResultError("The images to keep differ in size.", path=path, remedy="Keep images of one size.")
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        images=np.stack([item.image for item in items]).astype(np.uint8),
        labels=np.stack([item.label for item in items]).astype(np.uint8),
        predictions=np.stack([item.prediction for item in items]).astype(np.uint8),
        maps=np.stack([item.maps for item in items]).astype(np.float16),
        ids=np.array([item.image_id for item in items], dtype=np.str_),
        classes=np.array(list(classes), dtype=np.str_),
    )
    write_atomic(path, buffer.getvalue())


def read_qualitative(path: str | Path) -> tuple[list[GridItem], list[str]]:
    """Items and class names of a trial's `qualitative.npz`.

    The file holds images uint8 [N,H,W,3], labels and predictions [N,H,W], maps float16 [N,K,h,w], ids [N], classes [K].

    Raises:
        ResultError: unreadable, or arrays that do not fit together.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            names = ("images", "labels", "predictions", "maps", "ids", "classes")
            images, labels, predictions, maps, ids, classes = (content[name] for name in names)
        items = [
            GridItem(image, label, guess, score, str(name))
            for image, label, guess, score, name in zip(images, labels, predictions, maps, ids, strict=True)
        ]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ResultError(
            "The pictures of the trial cannot be read.",
            path=path,
            found=f"{type(error).__name__}: {error}",
            expected="arrays images, labels, predictions, maps, ids, classes",
            remedy="Delete the trial's folder and run the trial again.",
        ) from error
    class_names = [str(name) for name in classes]
    check_items(items, class_names, path)
    return items, class_names


def check_items(items: Sequence[GridItem], classes: Sequence[str], path: str | Path) -> None:
    if not items:
        raise ResultError("There is no image to draw.", path=path, remedy="Run the trial with save_maps=4.")
    for item in items:
        shapes = [item.image.shape, item.label.shape, item.prediction.shape, item.maps.shape]
        size = item.label.shape
        fits = (
            item.label.ndim == 2
            and item.image.shape == (*size, 3)
            and item.prediction.shape == size
            and item.maps.ndim == 3
            and len(item.maps) == len(classes)
        )
        if not fits:
            raise ResultError(
                f"The arrays of image {item.image_id} do not fit together.",
                path=path,
                found=f"image, label, prediction, maps: {shapes}",
                expected=f"[H,W,3], [H,W], [H,W], [{len(classes)},h,w]",
            )

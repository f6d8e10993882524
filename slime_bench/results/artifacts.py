"""What a trial keeps beside its result: curves, confusion matrix, a few test images. No other file needs these.

`curves.csv` has what the method logged in each step of its fit, validation included: columns `step,epoch,<name>,...`,
names in alphabetical order, one row for each step in which something was logged, an empty cell where that name was not.
Numbers are written so that they read back to the same bit; nothing depends on the clock.

`confusion.json` has the pixels of all test images by label and prediction: `{"classes": [K names], "pixels": [[K x K
counts]]}`, rows = label, columns = prediction, at the labels' size; ignored pixels are left out. With I and U of
`per_image.parquet` summed over the images: the diagonal is I, and row + column - diagonal is U.

`qualitative.npz` has images uint8 [N,H,W,3], labels and predictions [N,H,W], maps float16 [N,K,h,w], ids [N], classes
[K].

Readers raise ResultError for a file that is damaged or not there, writers StorageError as `write_atomic`.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slime_bench.errors import ResultError
from slime_bench.storage import write_atomic

CURVES_FILE: Final = "curves.csv"
CONFUSION_FILE: Final = "confusion.json"
QUALITATIVE_FILE: Final = "qualitative.npz"
AXES: Final = ("step", "epoch")
"""The first columns of the curves, which are no curves."""


class Point(NamedTuple):
    """One number that was logged.

    Attributes:
        step: of the optimisation, from 0. epoch: from 0.
        name: none of `AXES`, without control characters. value: any float, also NaN.
        weight: of the value among others of the same name and step.
    """

    step: int
    epoch: int
    name: str
    value: float
    weight: float = 1.0


def write_curves(path: str | Path, points: Iterable[Point]) -> None:
    """Write `curves.csv`."""
    lines = rows(points)
    names = sorted({name for row in lines.values() for name in row} - {"epoch"})
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*AXES, *names])
    for step, row in lines.items():
        writer.writerow([step, row["epoch"], *(repr(row[name]) if name in row else "" for name in names)])
    write_atomic(path, buffer.getvalue().encode())


def rows(points: Iterable[Point]) -> dict[int, dict[str, float]]:
    """By step, in increasing order, the values by their names, and the `epoch`.

    A name that was logged several times in one step, as for each batch of a validation, has its weighted mean there.
    """
    epochs: dict[int, int] = {}
    cells: dict[int, dict[str, list[tuple[float, float]]]] = {}
    for point in points:
        epochs[point.step] = point.epoch
        cells.setdefault(point.step, {}).setdefault(point.name, []).append((point.value, point.weight))
    return {
        step: {"epoch": epochs[step], **{name: _mean(values) for name, values in row.items()}}
        for step, row in sorted(cells.items())
    }


def _mean(values: list[tuple[float, float]]) -> float:
    if len(values) == 1:
        return values[0][0]
    return sum(value * weight for value, weight in values) / sum(weight for _, weight in values)


def read_curves(path: str | Path) -> dict[str, tuple[list[int], list[float]]]:
    """For each name the steps in which it was logged, in increasing order, and its values there."""
    with _reading(path):
        names, *lines = csv.reader(io.StringIO(Path(path).read_bytes().decode(), newline=""), strict=True)
        found: dict[str, tuple[list[int], list[float]]] = {name: ([], []) for name in names[2:]}
        for step, _, *cells in lines:
            for name, cell in zip(names[2:], cells, strict=True):
                if cell:
                    found[name][0].append(int(step))
                    found[name][1].append(float(cell))
    return found


def write_confusion(path: str | Path, classes: Sequence[str], pixels: NDArray[Any]) -> None:
    """Write the counts [K,K] of K classes, one row on each line."""
    lines = ",\n".join(f"  {json.dumps(row)}" for row in pixels.tolist())
    content = f'{{\n "classes": {json.dumps(list(classes))},\n "pixels": [\n{lines}\n ]\n}}\n'
    write_atomic(path, content.encode())


def read_confusion(path: str | Path) -> tuple[list[str], NDArray[np.int64]]:
    """Class names (K) and counts int64 [K,K], rows = label, columns = prediction."""
    with _reading(path):
        found = json.loads(Path(path).read_bytes())
        return list(found["classes"]), np.array(found["pixels"], dtype=np.int64)


@dataclass(frozen=True)
class GridItem:
    """A test image that was kept.

    Attributes:
        image: [H,W,3] uint8, RGB.
        label, prediction: [H,W] integers in 0..K-1; 255 = ignored.
        maps: [K,h,w] floats, one WAS map per class on its own grid.
        image_id: its name.
    """

    image: NDArray[Any]
    label: NDArray[Any]
    prediction: NDArray[Any]
    maps: NDArray[Any]
    image_id: str


def write_qualitative(path: str | Path, items: Sequence[GridItem], classes: Sequence[str]) -> None:
    """Write the items of one trial, all of one size."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, images=np.stack([item.image for item in items]).astype(np.uint8),
        labels=np.stack([item.label for item in items]).astype(np.uint8),
        predictions=np.stack([item.prediction for item in items]).astype(np.uint8),
        maps=np.stack([item.maps for item in items]).astype(np.float16),
        ids=np.array([item.image_id for item in items], dtype=np.str_), classes=np.array(list(classes), dtype=np.str_),
    )  # fmt: skip
    write_atomic(path, buffer.getvalue())


def read_qualitative(path: str | Path) -> tuple[list[GridItem], list[str]]:
    """Items and class names (K)."""
    with _reading(path), np.load(path, allow_pickle=False) as content:
        names = ("images", "labels", "predictions", "maps", "ids", "classes")
        images, labels, predictions, maps, ids, classes = (content[name] for name in names)
        items = [
            GridItem(image, label, guess, score, str(name))
            for image, label, guess, score, name in zip(images, labels, predictions, maps, ids, strict=True)
        ]
    return items, [str(name) for name in classes]


def coloured(values: NDArray[Any]) -> NDArray[np.uint8]:
    """A score map [h,w] in colours, uint8 [h,w,3], from its minimum (dark) to its maximum; grey where no number is."""
    import matplotlib

    numbers = values.astype(np.float64)
    known = np.isfinite(numbers)
    low, high = (numbers[known].min(), numbers[known].max()) if known.any() else (0.0, 0.0)
    scaled = np.zeros_like(numbers)
    if high > low:
        scaled[known] = (numbers[known] - low) / (high - low)
    pixels = (255 * matplotlib.colormaps["magma"](scaled)[..., :3]).astype(np.uint8)
    pixels[~known] = 128
    return pixels


@contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    """Turn what a damaged file raises into a ResultError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, csv.Error) as error:
        raise ResultError(
            "A file beside the result cannot be read.",
            path=path,
            found=f"{type(error).__name__}: {error}",
            remedy="Run the trial again with force=true, or remove the file: nothing else needs it.",
        ) from error

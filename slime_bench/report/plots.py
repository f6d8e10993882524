"""Pictures: test images beside ground truth, prediction and the WAS map of every class."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slime_bench.results.qualitative import GridItem, check_items
from slime_bench.storage import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELL = 1.3
"""Width and height of one cell in inches; titles and the legend have half a cell each, above and below."""
DPI = 100
_IGNORED_COLOUR = (0.6, 0.6, 0.6)


def grid_size(rows: int, classes: int) -> tuple[int, int]:
    """Width and height in pixels of the grid of `rows` images."""
    return round((3 + classes) * CELL * DPI), round((rows + 1) * CELL * DPI)


def qualitative_grid(path: str | Path, items: Sequence[GridItem], classes: Sequence[str], title: str = "") -> None:
    """Draws one row per item: image, ground truth, prediction, one map per class; writes a PNG atomically.

    Raises:
        ResultError: no items, or items that do not fit the classes.
        StorageError: the file cannot be written.
    """
    # The figure is drawn without pyplot: no global state, no display, and nothing to close.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    check_items(items, classes, path)
    rows, columns = len(items), 3 + len(classes)
    width, height = grid_size(rows, len(classes))
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    margin = 0.5 / (rows + 1)
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=margin, top=1 - margin, wspace=0.03, hspace=0.03)
    colours = class_colours(len(classes))
    for row, item in enumerate(items):
        _show(axes[row, 0], item.image)
        _show(axes[row, 1], paint(item.label, colours))
        _show(axes[row, 2], paint(item.prediction, colours))
        for index, score in enumerate(item.maps):
            _show(axes[row, 3 + index], np.asarray(score, dtype=np.float32), cmap="magma")
        axes[row, 0].set_ylabel(item.image_id, fontsize=5)
    for column, name in enumerate(["image", "ground truth", "prediction", *(f"WAS {name}" for name in classes)]):
        axes[0, column].set_title(name, fontsize=7)
    patches = [Patch(color=tuple(colour), label=name) for colour, name in zip(colours, classes, strict=True)]
    figure.legend(handles=patches, loc="lower center", ncols=len(classes), fontsize=7, frameon=False)
    if title:
        figure.suptitle(title, fontsize=8, y=0.995, va="top")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # the version would change the bytes
    write_atomic(path, buffer.getvalue())


def class_colours(number: int) -> NDArray[np.float64]:
    """Distinct RGB colours [K,3] in 0..1; the background is near black."""
    from matplotlib import colormaps

    size = 10 if number <= 11 else 20
    parts = colormaps[f"tab{size}"](np.arange(max(number - 1, 0)) % size)[:, :3]
    return np.concatenate([[[0.1, 0.1, 0.1]], parts])[:number]


def paint(
    labels: NDArray[Any], colours: NDArray[Any], ignored: tuple[float, float, float] = _IGNORED_COLOUR
) -> NDArray[Any]:
    """Label map [H,W] as an RGB image [H,W,3] of the colours' [K,3] type and range; labels outside the classes are
    `ignored`, a grey."""
    table = np.vstack([colours, np.array([ignored], dtype=colours.dtype)])
    return table[np.where((labels >= 0) & (labels < len(colours)), labels, len(colours)).astype(np.int64)]


def _show(axis: Axes, image: NDArray[Any], **options: Any) -> None:
    axis.imshow(image, interpolation="nearest", aspect="auto", **options)
    axis.set_xticks([])
    axis.set_yticks([])

"""Figures as PNG: test images beside ground truth, prediction and maps; the ranking experiment.

They are drawn without pyplot: no global state, no display, and nothing to close.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slime_bench.colours import palette
from slime_bench.report.published import Stat
from slime_bench.report.ranking import Group
from slime_bench.results.artifacts import GridItem
from slime_bench.storage import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL = 1.3
"""Width and height of one cell in inches; titles and the legend have half a cell each, above and below."""
DPI = 100
_EDGE, _GAP = 0.11, 0.04  # inches: for the images' names, and between cells
IGNORED = (150, 150, 150)
Pixels = NDArray[np.uint8]
_BLUE, _ORANGE, _GREY = "#1f5fa8", "#d1661b", "#777777"
_NOT_SAID = {"png": ("Software",), "pdf": ("Creator", "Producer", "CreationDate")}  # they would change the bytes


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG or PDF, as the path's suffix says."""
    kind, buffer = Path(path).suffix[1:], io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=dict.fromkeys(_NOT_SAID[kind]))
    write_atomic(path, buffer.getvalue())


def grid_size(rows: int, classes: int) -> tuple[int, int]:
    """Width and height in pixels of the grid of `rows` images."""
    return round((3 + classes) * CELL * DPI), round((rows + 1) * CELL * DPI)


def qualitative_grid(path: str | Path, items: Sequence[GridItem], classes: Sequence[str], title: str = "") -> None:
    """Draws one row per item: image, ground truth, prediction, one map per class; writes a PNG atomically."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = ["image", "ground truth", "prediction", *(f"WAS {name}" for name in classes)]
    width, height = (pixels / DPI for pixels in grid_size(len(items), len(classes)))
    figure = Figure(figsize=(width, height), dpi=DPI)
    # One plot, in inches from the top left corner: a plot for each cell takes twice as long.
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axis.set_axis_off()
    cell, top = (width - _EDGE) / len(columns), CELL / 2

    def show(row: int, column: int, image: NDArray[Any], **options: Any) -> None:
        left, above = _EDGE + column * cell, top + row * CELL
        extent = (left, left + cell - _GAP, above + CELL - _GAP, above)
        axis.imshow(image, extent=extent, interpolation="nearest", aspect="auto", **options)

    colours = palette(len(classes))
    for row, item in enumerate(items):
        for column, picture in enumerate((item.image, paint(item.label, colours), paint(item.prediction, colours))):
            show(row, column, picture)
        for index, score in enumerate(item.maps):
            show(row, 3 + index, np.asarray(score, dtype=np.float32), cmap="magma")
        axis.text(_EDGE / 2, top + (row + 0.5) * CELL, item.image_id, fontsize=5, rotation=90, ha="center", va="center")
    for column, name in enumerate(columns):
        axis.text(_EDGE + (column + 0.5) * cell, top - _GAP, name, fontsize=7, ha="center", va="bottom")
    patches = [Patch(color=tuple(colour / 255), label=name) for colour, name in zip(colours, classes, strict=True)]
    figure.legend(handles=patches, loc="lower center", ncols=len(classes), fontsize=7, frameon=False)
    if title:
        figure.suptitle(title, fontsize=8, y=0.995, va="top")
    save(figure, path)


def paint(labels: NDArray[Any], colours: Pixels) -> Pixels:
    """Label map [H,W] as an RGB image [H,W,3]; labels outside the classes are grey."""
    table = np.vstack([colours, np.array([IGNORED], dtype=np.uint8)])
    return table[np.where((labels >= 0) & (labels < len(colours)), labels, len(colours)).astype(np.int64)]


def layers_figure(path: Path, group: Group, title: str) -> None:
    """InfoScore (left axis) and mIoU alone (right axis) of every layer, means with sample deviations over seeds.

    As Figure 3 of the paper.
    """
    figure, axis = plot(title=title)
    names, prefix = short_names([layer.name for layer in group.layers])
    places = list(range(len(names)))
    other = axis.twinx()
    lines = [
        _curve(axis, places, [layer.info_score for layer in group.layers], _BLUE, "InfoScore", "o-"),
        _curve(other, places, [layer.miou for layer in group.layers], _ORANGE, "mIoU of the layer alone", "s--"),
    ]
    axis.set_xticks(places, names)
    axis.set_xlabel(f"layer ({prefix})" if prefix else "layer")
    axis.set_ylabel("InfoScore", color=_BLUE)
    other.set_ylabel("mIoU (%)", color=_ORANGE)
    axis.legend(handles=lines, fontsize=8, loc="best")
    save(figure, path)


def ensembles_figure(path: Path, group: Group, title: str) -> None:
    """mIoU of the best 1 to L layers by InfoScore together, with marks for last, middle, all and random pairs.

    As Figure 5 of the paper. Error bars: sample deviation over seeds; of the random pairs that within a seed.
    """
    figure, axis = plot(title=title)
    by_name = {one.name: one for one in group.ensembles}
    number = len(group.layers)
    curve = [by_name[f"top-{count}"].miou for count in range(1, number + 1)]
    handles = [_curve(axis, list(range(1, number + 1)), curve, _BLUE, "best k layers by InfoScore", "o-")]
    for name, count, mark in (("last", 1, "v"), ("middle", 1, "D"), ("all", number, "s")):
        mean = by_name[name].miou.mean or 0.0
        handles += axis.plot([count], [mean], mark, color=_ORANGE, mfc="none", markersize=8, label=name)
    if group.pairs:
        drawn = Stat(group.pairs["mean"].mean, group.pairs["deviation"].mean)
        handles.append(_curve(axis, [2], [drawn], _GREY, "random pairs: mean and deviation", "x"))
        best = group.pairs["best"].mean or 0.0
        handles += axis.plot([2], [best], "^", color=_GREY, mfc="none", label="random pairs: best")
    axis.set(xticks=range(1, number + 1), xlabel="layers used together", ylabel="mIoU (%)")
    axis.legend(handles=handles, fontsize=8, loc="best")
    save(figure, path)


def short_names(names: Sequence[str]) -> tuple[list[str], str]:
    """The parts behind the last dot, and what stands before it in all names; the names themselves where it differs."""
    heads = {name.rpartition(".")[0] for name in names}
    head = heads.pop()
    if heads or not head:
        return list(names), ""
    return [name.rpartition(".")[2] for name in names], f"{head}.*"


def _curve(axis: Axes, places: Sequence[int], values: Sequence[Stat], colour: str, label: str, style: str) -> Any:
    means, errors = [each.mean or 0.0 for each in values], [each.std or 0.0 for each in values]
    return axis.errorbar(places, means, errors, fmt=style, color=colour, label=label, capsize=3, markersize=5)


def plot(size: tuple[float, float] = (7.0, 4.2), title: str = "") -> tuple[Figure, Axes]:
    """A figure of `size` inches with one plot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axis = figure.subplots()
    axis.set_title(title, fontsize=8, wrap=True)
    axis.grid(alpha=0.3)
    return figure, axis

"""The grid of a figure: the annotated image large at the left, queries beside it, one row for each method."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from slime_bench.data.label_maps import RGB
from slime_bench.report.figures import save
from slime_bench.segment.output import blend

CELL = 1.35
"""Side of a cell in inches; the annotated image has two."""
SHOWN = 4
"""Queries of a grid."""
_SIDE = 256  # small pictures are enlarged to about so many pixels, large ones shrunk
_OPACITY = 0.75
_NAMES = 0.9  # inches for the names of the rows
_TITLE = 0.3  # inches for the title of a panel
_ENTRY = 0.13  # inches for a line of the legend, which has two classes


@dataclass(frozen=True)
class Panel:
    """One annotated image and its queries.

    Attributes:
        title: above it. classes, colours: K names and colours, the background first.
        support, queries: pictures uint8 [H,W,3], each of its own size.
        mask: label map uint8 [H,W] of the annotated image; 255 = ignore.
        rows: name of a row -> a label map uint8 [H,W] for each query.
    """

    title: str
    classes: Sequence[str]
    colours: Sequence[RGB]
    support: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    queries: Sequence[NDArray[np.uint8]]
    rows: Mapping[str, Sequence[NDArray[np.uint8]]]


def write_grid(stem: Path, panels: Sequence[Panel], title: str = "") -> list[Path]:
    """Draw the panels below each other; writes `<stem>.png` and `<stem>.pdf`."""
    heights = [_TITLE + CELL * (1 + len(panel.rows)) for panel in panels]
    columns = max(len(panel.queries) for panel in panels)
    top = 0.35 if title else 0.0
    figure = Figure(figsize=(2 * CELL + _NAMES + columns * CELL, top + sum(heights)), dpi=100)
    whole = sum(heights) + top
    parts = figure.subfigures(len(panels) + 1, 1, height_ratios=[max(top, 0.01), *heights], squeeze=False)[1:, 0]
    for panel, part, height in zip(panels, parts, heights, strict=True):
        _draw(part, panel, columns, height)
    if title:
        figure.text(0.5, 1 - top / 2 / whole, title, fontsize=10, ha="center", va="center")
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "pdf")]
    for path in paths:
        save(figure, path)
    return paths


def _draw(part: SubFigure, panel: Panel, columns: int, height: float) -> None:
    width = 2 * CELL + _NAMES + columns * CELL
    inside = {"top": 1 - _TITLE / height, "bottom": 0.01, "wspace": 0.03, "hspace": 0.03}
    named = list(zip(panel.classes, panel.colours, strict=True))[1:]
    words = 0.1 + _ENTRY * math.ceil(len(named) / 2)
    side = min(2 * CELL, (height - _TITLE - words) / 2)
    ratios = [side, side, words, max(0.01, height - _TITLE - 2 * side - words)]
    left = part.add_gridspec(4, 1, left=0.01, right=2 * CELL / width, height_ratios=ratios, **inside)
    right = part.add_gridspec(1 + len(panel.rows), columns, left=(2 * CELL + _NAMES) / width, right=0.995, **inside)
    part.text(0.01, 1 - _TITLE / 2 / height, panel.title, fontsize=9, fontweight="bold", va="center")
    for place, image in enumerate((_plain(panel.support), painted(panel.support, panel.mask, panel.colours))):
        large = part.add_subplot(left[place])
        _show(large, image)
        large.set_anchor("W")
    legend = part.add_subplot(left[2])
    legend.set_axis_off()
    patches = [Patch(color=(r / 255, g / 255, b / 255), label=name) for name, (r, g, b) in named]
    legend.legend(handles=patches, loc="upper left", ncols=2 if len(named) > 1 else 1, fontsize=6, frameon=False)
    for column, query in enumerate(panel.queries):
        _show(part.add_subplot(right[0, column]), _plain(query), "image" if column == 0 else "")
    for row, (name, labels) in enumerate(panel.rows.items(), start=1):
        for column, (query, label) in enumerate(zip(panel.queries, labels, strict=True)):
            _show(
                part.add_subplot(right[row, column]), painted(query, label, panel.colours), name if column == 0 else ""
            )


def painted(image: NDArray[np.uint8], label: NDArray[np.uint8], colours: Sequence[RGB]) -> Image.Image:
    """The picture with its classes in their colours, at the grid's size."""
    return blend(_plain(image), label, colours, _OPACITY)


def _plain(image: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(image)
    longer = max(picture.size)
    factor = _SIDE / longer if longer > _SIDE else max(1, _SIDE // longer)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC)


def _show(axis: Axes, image: Image.Image, name: str = "") -> None:
    axis.imshow(np.asarray(image), interpolation="nearest")
    axis.set(xticks=[], yticks=[], frame_on=False)
    if name:
        axis.set_ylabel(textwrap.fill(name, 15), fontsize=7, rotation=0, ha="right", va="center")

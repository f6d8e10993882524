"""Figures of the ranking experiment: InfoScore beside mIoU for every layer, and mIoU of ensembles."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slime_bench.report.published import Stat
from slime_bench.report.ranking import Ensemble, Group
from slime_bench.storage import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (7.0, 4.2)
"""Inches."""
DPI = 120
_BLUE, _ORANGE, _GREY = "#1f5fa8", "#d1661b", "#777777"


def layers_figure(path: Path, group: Group, title: str) -> None:
    """InfoScore (left axis) and mIoU alone (right axis) of every layer, means with sample deviations over seeds.

    As Figure 3 of the paper.

    Raises:
        StorageError: the file cannot be written.
    """
    figure, axis = _figure(title)
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
    _save(figure, path)


def ensembles_figure(path: Path, group: Group, title: str) -> None:
    """mIoU of the best 1 to L layers by InfoScore together, with marks for last, middle, all and random pairs.

    As Figure 5 of the paper. Error bars: sample deviation over seeds; of the random pairs that within a seed.

    Raises:
        StorageError: the file cannot be written.
    """
    figure, axis = _figure(title)
    by_name = {one.name: one for one in group.ensembles}
    number = len(group.layers)
    curve = [by_name[f"top-{count}"].miou for count in range(1, number + 1)]
    handles = [_curve(axis, list(range(1, number + 1)), curve, _BLUE, "best k layers by InfoScore", "o-")]
    for name, count, mark in (("last", 1, "v"), ("middle", 1, "D"), ("all", number, "s")):
        handles.append(_mark(axis, count, by_name[name], mark))
    if group.pairs is not None and group.pairs.mean.mean is not None:
        spread = Stat(group.pairs.mean.mean, group.pairs.deviation.mean)
        handles.append(_curve(axis, [2], [spread], _GREY, "random pairs: mean and deviation", "x"))
        best = group.pairs.best.mean or 0.0
        handles += axis.plot([2], [best], "^", color=_GREY, mfc="none", label="random pairs: best")
    axis.set_xticks(range(1, number + 1))
    axis.set_xlabel("layers used together")
    axis.set_ylabel("mIoU (%)")
    axis.legend(handles=handles, fontsize=8, loc="best")
    _save(figure, path)


def short_names(names: Sequence[str]) -> tuple[list[str], str]:
    """The parts behind the last dot, and what stands before it in all names; the names themselves where it differs."""
    heads = {name.rpartition(".")[0] for name in names}
    head = heads.pop()
    if heads or not head:
        return list(names), ""
    return [name.rpartition(".")[2] for name in names], f"{head}.*"


def _curve(axis: Axes, places: Sequence[int], values: Sequence[Stat], colour: str, label: str, style: str) -> object:
    return axis.errorbar(
        places,
        [float("nan") if each.mean is None else each.mean for each in values],
        yerr=[each.std or 0.0 for each in values],
        fmt=style,
        color=colour,
        label=label,
        capsize=3,
        markersize=5,
    )


def _mark(axis: Axes, count: int, one: Ensemble, mark: str) -> object:
    values = [float("nan") if one.miou.mean is None else one.miou.mean]
    (line,) = axis.plot([count], values, mark, color=_ORANGE, mfc="none", markersize=8, label=one.name)
    return line


def _figure(title: str) -> tuple[Figure, Axes]:
    # Without pyplot: no global state, no display, and nothing to close.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.set_title(title, fontsize=8, wrap=True)
    axis.grid(alpha=0.3)
    return figure, axis


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # the version would change the bytes
    write_atomic(path, buffer.getvalue())

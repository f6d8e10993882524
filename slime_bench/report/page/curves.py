"""Learning curves of a row of the table: one small chart for each value that its trials logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from slime_bench.errors import ResultError
from slime_bench.report.page.svg import Series, line_chart
from slime_bench.report.page.view import Curves
from slime_bench.results.curves import CURVES_FILE, read_curves
from slime_bench.results.result import TrialResult

MOST_POINTS = 120
"""Of a line; more are averaged in blocks, since a chart has no more pixels for them."""
MOST_PANELS = 12

Curve = tuple[list[int], list[float]]


def curves_of(label: str, trials: Sequence[TrialResult], folders: Mapping[str, Path]) -> Curves | None:
    """The curves of one row's trials; None where none of them kept any."""
    found: dict[int, dict[str, Curve]] = {}
    notes = []
    for one in sorted(trials, key=lambda one: one.seed):
        path = folders[one.signature] / CURVES_FILE
        if not path.is_file():
            continue
        try:
            found[one.seed] = read_curves(path)
        except ResultError as error:  # a spoilt curve must not cost the page
            notes.append(f"seed {one.seed}: {error.summary}")
    names = sorted({name for curves in found.values() for name, (steps, _) in curves.items() if steps})
    if not names and not notes:
        return None
    panels = []
    for name in names[:MOST_PANELS]:
        every = {seed: curves[name] for seed, curves in found.items() if name in curves and curves[name][0]}
        lines = [
            Series(f"seed {seed}", *thinned(curve), style=index) for index, (seed, curve) in enumerate(every.items())
        ]
        mean = mean_curve(list(every.values()))
        if len(every) > 1 and mean[0]:
            lines.append(Series("mean over seeds", *thinned(mean), style=None))
        panels.append(line_chart(name, f"{name} of {label} by optimisation step", lines, "step"))
    if len(names) > MOST_PANELS:
        notes.append(f"{len(names) - MOST_PANELS} more logged values are in {CURVES_FILE}")
    longest = max((len(steps) for curves in found.values() for steps, _ in curves.values()), default=0)
    if longest > MOST_POINTS:
        notes.append(f"each point is the mean of {-(-longest // MOST_POINTS)} logged values or fewer")
    return Curves(label, panels, "; ".join(notes))


def thinned(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """The curve as means of blocks of equal length, where it has more than `most` points."""
    steps, values = curve
    block = -(-len(steps) // most)
    if block <= 1:
        return curve
    places = range(0, len(steps), block)
    means = [sum(values[place : place + block]) / len(values[place : place + block]) for place in places]
    return [steps[min(place + block // 2, len(steps) - 1)] for place in places], means


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over curves at the steps that all of them have."""
    tables = [dict(zip(*curve, strict=True)) for curve in curves]
    steps = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    return steps, [sum(table[step] for table in tables) / len(tables) for step in steps]

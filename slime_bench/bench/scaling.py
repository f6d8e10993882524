"""Seconds and memory of the bench's own way against the size of the problem, with the exponent of each curve.

    python -m slime_bench.bench.scaling --axis size classes

1 is a straight line through the origin, 2 a square; see docs/bench.md for what to expect.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from slime_bench.bench.case import Case
from slime_bench.bench.command import GB, add_case, case_of, make_main, number, publish, say, table
from slime_bench.bench.race import Row, race
from slime_bench.bench.timing import exponent, spread
from slime_bench.bench.ways import TASKS
from slime_bench.config.read import read
from slime_bench.errors import ConfigError

AXES: Final[dict[str, tuple[tuple[int, ...], tuple[str, ...]]]] = {
    "size": ((256, 384, 512, 768, 1024), TASKS),
    "classes": ((2, 6, 12, 24, 48, 77), TASKS),
    "shots": ((1, 2, 5, 10), ("step",)),
    "images": ((1, 2, 4, 8), ("inference",)),
    "trials": ((1, 2, 3, 6), ("step",)),
}
"""Fields of `Case` that grow: their values, and the tasks that they change."""


@dataclass(frozen=True)
class Curve:
    """One way at one task along one axis, a row for each point; the exponents are of the medians, and of what the task
    takes in memory, where it was asked for."""

    axis: str
    task: str
    way: str
    points: list[Row]
    seconds_exponent: float
    memory_exponent: float | None


def measure(case: Case, axis: str, points: Sequence[int], rounds: int, memory: bool) -> list[Curve]:
    """The curves along an axis, one for each task that the axis changes. The points take turns.

    Raises:
        ConfigError: fewer than two different points, or a value that the case cannot have.
    """
    points = sorted(set(points))
    if len(points) < 2:
        raise ConfigError("a curve needs two points", path="--points", found=points, expected="two or more")
    name, tasks = "batch of trials fp32" if axis == "trials" else "fast fp32", AXES[axis][1]
    entries = {str(point): (read(Case, {**dataclasses.asdict(case), axis: point}), name) for point in points}
    say(f"{axis}: `{name}` at {', '.join(entries)}")
    rows, curves = race(entries, tasks, rounds, memory), []
    for task in tasks:
        own = [row for row in rows if row.task == task]
        medians = [spread(row.seconds).median for row in own]
        added = [row.memory.added for row in own if row.memory is not None]
        grows = exponent(points, added) if added else None
        curves.append(Curve(axis, task, name, own, exponent(points, medians), grows))
    return curves


def tables(curves: Sequence[Curve]) -> str:
    """Markdown: a table for each curve, with the exponents below."""
    parts = []
    for curve in curves:
        rows, first = [], spread(curve.points[0].seconds)
        for point in curve.points:
            own, peak = spread(point.seconds), point.memory
            sizes = ["", ""] if peak is None else [f"{peak.peak / GB:.2f}", f"{peak.added / GB:.3f}"]
            grown = f"{own.median / first.median:.2f}"
            rows.append([point.runner, number(own.median), f"{number(own.low)}..{number(own.high)}", grown, *sizes])
        head = [curve.axis, "seconds of a call", "min..max", "times the first", "peak GB", "of the task GB"]
        fits = f"exponent of the seconds {curve.seconds_exponent:.2f}"
        if curve.memory_exponent is not None:
            fits += f", of the task's memory {curve.memory_exponent:.2f}"
        parts.append(f"## {curve.axis}: {curve.task}, {curve.way}\n\n{table(head, rows)}\n\n{fits}")
    return "\n\n".join(parts)


def _add(parser: argparse.ArgumentParser) -> None:
    add_case(parser)
    parser.add_argument("--axis", nargs="+", choices=tuple(AXES), default=list(AXES))
    parser.add_argument("--points", nargs="+", type=int, help="of the axis, where it is a single one")


def _measure(arguments: argparse.Namespace, command: str) -> str:
    if arguments.points and len(arguments.axis) > 1:
        raise ConfigError("points are of one axis", path="--points", found=arguments.axis, expected="one --axis")
    curves: list[Curve] = []
    with case_of(arguments) as case:
        for axis in arguments.axis:
            points = arguments.points or AXES[axis][0]
            curves += measure(case, axis, points, arguments.rounds, not arguments.no_memory)
    title, name = f"Scaling of SLiMe, {case.width} width, {case.device}", f"scaling_{case.device}_{case.width}"
    measured = [dataclasses.asdict(curve) for curve in curves]
    content = {"case": case.plain(), "rounds": arguments.rounds, "curves": measured}
    return publish(arguments.out, name, title, tables(curves), case.device, command, content)


main = make_main("slime_bench.bench.scaling", __doc__, _add, _measure)

if __name__ == "__main__":
    sys.exit(main(None))

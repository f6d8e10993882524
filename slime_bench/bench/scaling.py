"""Seconds and memory of the bench's own way against the size of the problem, with the exponent of each curve.

    python -m slime_bench.bench.scaling --axis size classes

1 is a straight line through the origin, 2 a square; see docs/bench.md for what to expect.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from slime_bench.bench.case import Case, Pictures
from slime_bench.bench.command import GB, add_case, case_of, make_main, number, publish, say, table
from slime_bench.bench.memory import Peak, measure_apart
from slime_bench.bench.timing import Stopwatch, exponent, interleave, spread
from slime_bench.bench.ways import TASKS, WAYS, call_of
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
class Point:
    """One point of a curve: seconds of a call, per round, and memory where it was asked for."""

    value: int
    seconds: list[float]
    memory: Peak | None = None


@dataclass(frozen=True)
class Curve:
    """One way at one task along one axis; the exponents are of the medians, and of what the task takes in memory."""

    axis: str
    task: str
    way: str
    points: list[Point]
    seconds_exponent: float
    memory_exponent: float | None


def measure(case: Case, axis: str, points: Sequence[int], rounds: int, warmup: int, memory: bool) -> list[Curve]:
    """The curves along an axis, one for each task that the axis changes. The points take turns.

    Raises:
        ConfigError: fewer than two different points, or a value that the case cannot have.
    """
    points = sorted(set(points))
    if len(points) < 2:
        raise ConfigError("a curve needs two points", path="--points", found=points, expected="two or more")
    name, tasks = "together fp32" if axis == "trials" else "fast fp32", AXES[axis][1]
    way, grown = WAYS[name], {point: replace(case, **{axis: point}) for point in points}  # type: ignore[arg-type]
    say(f"{axis}: loading {len(points)} times `{name}`")
    runners = {point: way.make(each, Stopwatch(on=False)) for point, each in grown.items()}
    pictures = {point: Pictures(each) for point, each in grown.items()}
    for drawn in pictures.values():
        drawn.prepare(warmup + rounds)
    seconds = {}
    for task in tasks:
        say(f"{axis}: {task}, {warmup} + {rounds} rounds")
        calls = {str(p): call_of(runners[p], pictures[p], task, way.trials(grown[p])) for p in points}
        seconds[task] = interleave(calls, rounds, warmup)
    del runners, calls  # nothing stays loaded
    peaks: dict[int, dict[str, Peak]] = {}
    for point, each in grown.items() if memory else ():
        say(f"{axis}: memory at {point}")
        peaks[point] = measure_apart(each, name, tasks)
    curves = []
    for task in tasks:
        own = [Point(point, seconds[task][str(point)], peaks.get(point, {}).get(task)) for point in points]
        added = [point.memory.added for point in own if point.memory is not None]
        medians = [spread(point.seconds).median for point in own]
        slopes = exponent(points, medians), exponent(points, added) if added else None
        curves.append(Curve(axis, task, name, own, *slopes))
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
            rows.append([str(point.value), number(own.median), f"{number(own.low)}..{number(own.high)}", grown, *sizes])
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
        raise ConfigError(
            "points are of one axis", path="--points", found=f"{len(arguments.axis)} axes", expected="one --axis"
        )
    curves: list[Curve] = []
    with case_of(arguments) as case:
        for axis in arguments.axis:
            points = arguments.points or AXES[axis][0]
            curves += measure(case, axis, points, arguments.rounds, arguments.warmup, not arguments.no_memory)
    title, name = f"Scaling of SLiMe, {case.width} width, {case.device}", f"scaling_{case.device}_{case.width}"
    content: dict[str, Any] = {
        "case": case.plain(), "rounds": arguments.rounds, "curves": [dataclasses.asdict(curve) for curve in curves],
    }  # fmt: skip
    return publish(arguments.out, arguments.name or name, title, tables(curves), case.device, command, content)


main = make_main("slime_bench.bench.scaling", __doc__, _add, _measure)

if __name__ == "__main__":
    sys.exit(main(None))

"""Seconds and memory of the bench's own way against the size of the problem, with the exponent of each curve.

    python -m slime_bench.bench.scaling --axis size classes

1 is a straight line through the origin, 2 a square; see docs/bench.md for what to expect.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from slime_bench.bench import output
from slime_bench.bench.arguments import (
    add_case,
    add_rounds,
    case_of,
    command,
    command_of,
    make_folder,
    rounds_of,
    say,
    ways_of,
)
from slime_bench.bench.case import Case, Pictures
from slime_bench.bench.duel import call_of
from slime_bench.bench.harness import Spread, exponent, interleave, spread
from slime_bench.bench.memory import Peak, measure_apart
from slime_bench.bench.stopwatch import Stopwatch, synchronise
from slime_bench.bench.ways import WAYS
from slime_bench.errors import ConfigError

PROGRAM = "slime_bench.bench.scaling"


@dataclass(frozen=True)
class Axis:
    """One thing that grows.

    Attributes:
        field: of `Case`. points: its values. tasks: that it changes. way: that is measured.
    """

    field: str
    points: tuple[int, ...]
    tasks: tuple[str, ...]
    way: str = "fast fp32"


AXES: Final[dict[str, Axis]] = {
    "size": Axis("size", (256, 384, 512, 768, 1024), ("step", "inference")),
    "classes": Axis("classes", (2, 6, 12, 24, 48, 77), ("step", "inference")),
    "shots": Axis("shots", (1, 2, 5, 10), ("step",)),
    "images": Axis("images", (1, 2, 4, 8), ("inference",)),
    "trials": Axis("trials", (1, 2, 3, 6), ("step",), "together fp32"),
}


@dataclass(frozen=True)
class Point:
    """One point of a curve: seconds of a call, per round, and memory where it was asked for."""

    value: int
    seconds: list[float]
    memory: Peak | None = None

    @property
    def spread(self) -> Spread:
        return spread(self.seconds)


@dataclass(frozen=True)
class Curve:
    """One way at one task along one axis."""

    axis: str
    task: str
    way: str
    points: list[Point]

    @property
    def seconds_exponent(self) -> float:
        """Of the medians; see `exponent`."""
        return exponent([each.value for each in self.points], [each.spread.median for each in self.points])

    @property
    def memory_exponent(self) -> float | None:
        """Of what the task takes beside what is loaded."""
        peaks = [each.memory for each in self.points]
        if any(each is None for each in peaks):
            return None
        return exponent([each.value for each in self.points], [float(each.added) for each in peaks if each is not None])


def measure(
    case: Case,
    axis: str,
    way: str,
    points: Sequence[int],
    rounds: int,
    warmup: int = 1,
    memory: bool = True,
    say: Callable[[str], object] = lambda _: None,
) -> list[Curve]:
    """The curves of a way along an axis, one for each task that the axis changes. The points take turns.

    Raises:
        ConfigError: fewer than two different points, or a value that the case cannot have.
    """
    if len(set(points)) < 2:
        raise ConfigError("a curve needs two points", path="--points", found=list(points), expected="two or more")
    grown = {point: replace(case, **{AXES[axis].field: point}) for point in sorted(set(points))}  # type: ignore[arg-type]
    seconds = _seconds(grown, axis, way, rounds, warmup, say)
    peaks: dict[int, dict[str, Peak]] = {}
    for point, each in grown.items():
        if memory:
            say(f"{axis}: memory at {point}")
            peaks[point] = measure_apart(each, way, AXES[axis].tasks)
    return [
        Curve(axis, task, way, [Point(p, seconds[task][str(p)], peaks.get(p, {}).get(task)) for p in grown])
        for task in AXES[axis].tasks
    ]


def _seconds(
    grown: Mapping[int, Case], axis: str, way: str, rounds: int, warmup: int, say: Callable[[str], object]
) -> dict[str, dict[str, list[float]]]:
    """Task -> value -> seconds of each round; nothing stays loaded."""
    say(f"{axis}: loading {len(grown)} times `{way}`")
    trials = {point: WAYS[way].trials(each) for point, each in grown.items()}
    runners = {point: WAYS[way].make(each, Stopwatch(on=False)) for point, each in grown.items()}
    pictures = {point: Pictures(each) for point, each in grown.items()}
    for drawn in pictures.values():
        drawn.prepare(warmup + rounds)
    device = next(iter(grown.values())).device
    seconds = {}
    for task in AXES[axis].tasks:
        say(f"{axis}: {task}, {warmup} + {rounds} rounds")
        calls = {str(p): call_of(runners[p], pictures[p], task, trials[p]) for p in grown}
        seconds[task] = interleave(calls, rounds, warmup, settled=lambda: synchronise(device))
    return seconds


def curve_json(curve: Curve) -> dict[str, Any]:
    """A curve as JSON values."""
    exponents = {"seconds_exponent": curve.seconds_exponent, "memory_exponent": curve.memory_exponent}
    return {**dataclasses.asdict(curve), **exponents}


def curve_tables(curves: Sequence[Curve]) -> str:
    """Markdown: a table for each curve, with the exponents below."""
    parts = []
    for curve in curves:
        first = curve.points[0]
        rows = []
        for point in curve.points:
            own, base = point.spread, first.spread
            added = "" if point.memory is None else f"{point.memory.added / output.GB:.3f}"
            peak = "" if point.memory is None else f"{point.memory.peak / output.GB:.2f}"
            grown = f"{own.median / base.median:.2f}"
            rows.append([str(point.value), f"{own.median:.3g}", f"{own.low:.3g}..{own.high:.3g}", grown, peak, added])
        head = [curve.axis, "seconds of a call", "min..max", "times the first", "peak GB", "of the task GB"]
        fits = f"exponent of the seconds {curve.seconds_exponent:.2f}"
        if curve.memory_exponent is not None:
            fits += f", of the task's memory {curve.memory_exponent:.2f}"
        parts.append(f"## {curve.axis}: {curve.task}, {curve.way}\n\n{output.table(head, rows)}\n\n{fits}")
    return "\n\n".join(parts)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_case(parser)
    add_rounds(parser)
    parser.add_argument("--axis", nargs="+", choices=tuple(AXES), default=list(AXES))
    parser.add_argument("--points", nargs="+", type=int, help="of the axis, where it is a single one")
    parser.add_argument("--way", help="another way than the axis's own")
    return parser


def run(arguments: argparse.Namespace, words: Sequence[str]) -> str:
    """Measure, write what `--out` asks for, and return the tables."""
    if arguments.points and len(arguments.axis) > 1:
        raise ConfigError(
            "points are of one axis", path="--points", found=f"{len(arguments.axis)} axes", expected="one --axis"
        )
    if arguments.way is not None:
        ways_of([arguments.way])
    curves = []
    with case_of(arguments) as case:
        make_folder(arguments.out)
        rounds = rounds_of(arguments, case)
        for name in arguments.axis:
            axis = AXES[name]
            points = arguments.points or axis.points
            memory = not arguments.no_memory
            way = arguments.way or axis.way
            curves += measure(case, name, way, points, rounds, arguments.warmup, memory, say)
        made_with = output.facts(case.device, command_of(PROGRAM, words))
    title = f"Scaling of SLiMe, {case.width} width, {case.device}"
    content = {
        "made_with": made_with, "case": case.plain(), "rounds": rounds,
        "curves": [curve_json(curve) for curve in curves],
    }  # fmt: skip
    name = arguments.name or f"scaling_{case.device}_{case.width}"
    return output.publish(arguments.out, name, title, curve_tables(curves), content)


def main(words: Sequence[str] | None = None) -> int:
    chosen = list(sys.argv[1:] if words is None else words)
    arguments = make_parser().parse_args(chosen)
    return command(lambda: run(arguments, chosen))


if __name__ == "__main__":
    sys.exit(main())

"""SLiMe's optimisation step and inference: the authors' way of computing against the bench's own, in one run.

    python -m slime_bench.bench.slime --width golden --size 512

What is measured, and how to read it: docs/bench.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from slime_bench.bench.case import Case, Pictures
from slime_bench.bench.command import GB, add_case, case_of, make_main, number, publish, say, table, times
from slime_bench.bench.memory import Peak, measure_apart
from slime_bench.bench.timing import Spread, Stopwatch, interleave, ratio, spread
from slime_bench.bench.ways import REFERENCE, TASKS, WAYS, Fast, Runner, Way, call_of, distances


@dataclass
class Row:
    """What was found of one way at one task.

    Attributes:
        work: how many trials' steps, or pictures, one call does. seconds: of every call.
        faster: than the reference, per step or picture; None of the reference itself, or without one.
        differs: from the reference, see `BARS`. stages: seconds of the parts of one call.
        memory: None where it was not asked for.
    """

    way: str
    task: str
    work: int
    seconds: list[float]
    faster: Spread | None = None
    differs: dict[str, float] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    memory: Peak | None = None


def duel(
    case: Case,
    names: Sequence[str],
    tasks: Sequence[str] = TASKS,
    rounds: int = 3,
    warmup: int = 1,
    memory: bool = True,
    ways: Mapping[str, Way] = WAYS,
) -> list[Row]:
    """Measure the ways called `names` on `case`: compared first, then timed in turns; then their memory.

    The reference among them, if it is, is what the others are compared with.

    Args:
        warmup: rounds that are not counted, at least 1: the first one is where results are compared.

    Raises:
        DifferentResultError: a way computes something else than the reference.
    """
    rows = _timed(case, {name: ways[name] for name in names}, tasks, rounds, warmup)
    if case.device == "cuda":
        torch.cuda.empty_cache()  # the processes below need the room
    for name in names if memory else ():
        own = [row for row in rows if row.way == name and not ways[name].seen]
        if own:
            say(f"memory of `{name}`")
            peaks = measure_apart(case, name, [row.task for row in own])
            for row in own:
                row.memory = peaks[row.task]
    return rows


def _timed(case: Case, ways: Mapping[str, Way], tasks: Sequence[str], rounds: int, warmup: int) -> list[Row]:
    """The rows of `duel`, without memory."""
    apart = case.device == "cuda"  # waiting at the ends of stages costs time on a GPU: they get a round of their own
    pictures, turns = Pictures(case), warmup + rounds + 1
    pictures.prepare(turns)
    runners: dict[str, Runner] = {}
    for name, way in ways.items():
        say(f"loading `{name}`")
        runners[name] = runner = way.make(case, Stopwatch(on=not apart))
        if way.seen and isinstance(runner, Fast):
            for turn in range(turns):
                runner.see(*pictures.test(turn))
    calls = {
        task: {
            name: call_of(runners[name], pictures, task, way.trials(case))
            for name, way in ways.items()
            if task in way.tasks
        }
        for task in tasks
    }
    # A step changes the embeddings, and those of two ways drift apart from then on: steps are compared last.
    differs = {task: _compared(calls[task], task, ways) for task in sorted(tasks)}
    rows = []
    for task in tasks:
        for name in calls[task]:
            runners[name].watch.take()
        say(f"{task}: {warmup} + {rounds} rounds")
        # The first call was a round of warm-up.
        seconds = interleave({name: _from(call, 1) for name, call in calls[task].items()}, rounds, warmup - 1)
        for name, own in seconds.items():
            watch, runs, trials = runners[name].watch, rounds + warmup - 1, ways[name].trials(case)
            if apart:
                watch.on, runs = True, 1
                calls[task][name](rounds + warmup)
                watch.on = False
            stages = {stage: value / runs for stage, value in watch.take().items()}
            faster = None
            if REFERENCE in seconds and name != REFERENCE:  # which does one trial
                faster = ratio(seconds[REFERENCE], own, trials)
            work = (case.images if task == "inference" else 1) * trials
            rows.append(Row(name, task, work, own, faster, differs[task].get(name, {}), stages))
    return rows


def _from(call: Callable[[int], Any], first: int) -> Callable[[int], Any]:
    return lambda turn: call(turn + first)


def _compared(
    calls: Mapping[str, Callable[[int], Any]], task: str, ways: Mapping[str, Way]
) -> dict[str, dict[str, float]]:
    """Run every way once on the same data, and hold what they find against what the reference finds."""
    say(f"{task}: comparing results")
    with _whole_float32():
        found = {name: call(0) for name, call in calls.items()}
    wanted = found.pop(REFERENCE, None)
    if wanted is None:
        return {}
    return {name: distances(name, value, wanted, ways[name].precision) for name, value in found.items()}


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Without TF32, in which CUDA's convolutions keep 10 bits of a float32: its rounding is not what is looked for."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def tables(rows: Sequence[Row]) -> str:
    """The rows as Markdown: times and ratios, then memory, then where the time goes."""
    seconds, sizes, parts = [], [], []
    stages = list(dict.fromkeys(stage for row in rows for stage in row.stages))
    first: dict[str, Peak] = {}
    for row in rows:
        per = [number(value / row.work) for value in dataclasses.astuple(spread(row.seconds))]
        faster = ["", ""] if row.faster is None else [times(row.faster.median), times(row.faster)]
        differs = ", ".join(f"{name} {value:.1g}" for name, value in row.differs.items())
        seconds.append([row.task, row.way, per[0], f"{per[1]}..{per[2]}", *faster, differs])
        parts.append([row.task, row.way, *(number(row.stages.get(stage)) for stage in stages)])
        if row.memory is not None:
            own = row.memory
            base = first.setdefault(row.task, own)
            less = ["", ""] if base is own else [times(base.peak / max(1, own.peak)), times(base.added / own.added)]
            loaded, peak, added = (f"{value / GB:.2f}" for value in (own.loaded, own.peak, own.added))
            sizes.append([row.task, row.way, loaded, peak, less[0], added, less[1]])
    made = [table(["task", "way", "seconds", "min..max", "times faster", "min..max", "differs"], seconds)]
    if sizes:
        head = ["task", "way", "loaded GB", "peak GB", "times less", "of the task GB", "times less"]
        made.append(table(head, sizes))
    made.append(table(["task", "way", *(f"{stage}, s" for stage in stages)], parts))
    return "\n\n".join(made)


def _add(parser: argparse.ArgumentParser) -> None:
    add_case(parser)
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), metavar="WAY", help=f"among: {', '.join(WAYS)}")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))


def _measure(arguments: argparse.Namespace, command: str) -> str:
    ways = [name for name in WAYS if name in (arguments.ways or WAYS)]
    with case_of(arguments) as case:
        rows = duel(case, ways, arguments.tasks, arguments.rounds, arguments.warmup, not arguments.no_memory)
    legend = "\n".join(f"- `{name}`: {WAYS[name].what}" for name in ways)
    title = f"SLiMe, {case.width} width, {case.size} px, {case.classes} classes, {case.device}"
    name = arguments.name or f"slime_{case.device}_{case.width}_{case.size}"
    content = {
        "case": case.plain(),
        "rounds": arguments.rounds,
        "rows": [dataclasses.asdict(row) | dataclasses.asdict(spread(row.seconds)) for row in rows],
    }
    return publish(arguments.out, name, title, f"{tables(rows)}\n\n{legend}", case.device, command, content)


main = make_main("slime_bench.bench.slime", __doc__, _add, _measure)

if __name__ == "__main__":
    sys.exit(main(None))

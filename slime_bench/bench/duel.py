"""The ways against the reference on one case: compared first, then timed in turns; then their memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from slime_bench.bench.case import Case, Pictures
from slime_bench.bench.harness import Spread, interleave, ratio, spread
from slime_bench.bench.memory import Peak, measure_apart
from slime_bench.bench.outcome import check, labels_differ, step_differs
from slime_bench.bench.stopwatch import Stopwatch, synchronise
from slime_bench.bench.ways import BARS, REFERENCE, TASKS, WAYS, Fast, Runner, Way

DATA = "data"


@dataclass
class Row:
    """What was found of one way at one task.

    Attributes:
        work: how many trials' steps, or pictures, one call does. seconds: of every call.
        faster: than the reference, per step or picture; None of the reference itself, or without one.
        differs: from the reference, see `slime_bench.bench.outcome.Bars`. stages: seconds of the parts of one call.
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

    @property
    def spread(self) -> Spread:
        return spread(self.seconds)


def duel(
    case: Case,
    ways: Sequence[str],
    tasks: Sequence[str] = TASKS,
    rounds: int = 3,
    warmup: int = 1,
    memory: bool = True,
    say: Callable[[str], object] = lambda _: None,
    known: dict[str, Way] = WAYS,
) -> list[Row]:
    """Measure `ways` on `case`; the reference among them, if it is, is what the others are compared with.

    Args:
        warmup: rounds that are not counted, at least 1: the first one is where results are compared.
        say: told what is going on.

    Raises:
        DifferentResultError: a way computes something else than the reference.
    """
    rows = _timed(case, ways, tasks, rounds, warmup, say, known)
    if case.device == "cuda":
        torch.cuda.empty_cache()  # the processes below need the room
    if memory:
        for name in ways:
            say(f"memory of `{name}`")
            own = [row for row in rows if row.way == name]
            peaks = measure_apart(case, name, [row.task for row in own]) if own and not known[name].seen else {}
            for row in own:
                row.memory = peaks.get(row.task)
    return rows


def _timed(
    case: Case,
    ways: Sequence[str],
    tasks: Sequence[str],
    rounds: int,
    warmup: int,
    say: Callable[[str], object],
    known: dict[str, Way],
) -> list[Row]:
    """The rows of `duel`, without memory."""
    # On a GPU the waiting at the ends of stages costs time: they get a round of their own.
    apart = case.device == "cuda"
    pictures = Pictures(case)
    runners: dict[str, Runner] = {}
    pictures.prepare(warmup + rounds + 1)
    for name in ways:
        say(f"loading `{name}`")
        runners[name] = known[name].make(case, Stopwatch(case.device, on=not apart))
        runner = runners[name]
        if known[name].seen and isinstance(runner, Fast):
            for turn in range(warmup + rounds + 1):
                runner.see(*pictures.test(turn))
    trials = {name: known[name].trials(case) for name in ways}
    every = {
        task: {name: call_of(runners[name], pictures, task, trials[name]) for name in ways if task in known[name].tasks}
        for task in tasks
    }
    # A step changes the embeddings, and those of two ways drift apart from then on: steps are compared last.
    compared = {task: _compared(every[task], task, known, say) for task in sorted(tasks)}
    rows = []
    for task in tasks:
        calls = every[task]
        for name in calls:
            runners[name].watch.take()
        say(f"{task}: {warmup} + {rounds} rounds")
        # The first call was a round of warm-up.
        seconds = interleave(
            {name: _from(call, 1) for name, call in calls.items()}, rounds, warmup - 1,
            settled=lambda: synchronise(case.device),
        )  # fmt: skip
        for name in calls:
            watch, runs = runners[name].watch, rounds + warmup - 1
            if apart:
                watch.on, runs = True, 1
                calls[name](rounds + warmup)
                watch.on = False
            stages = {stage: value / runs for stage, value in watch.take().items()}
            work = (case.images if task == "inference" else 1) * trials[name]
            faster = None
            if REFERENCE in seconds and name != REFERENCE:  # which does one trial
                faster = ratio(seconds[REFERENCE], seconds[name], trials[name])
            rows.append(Row(name, task, work, seconds[name], faster, compared[task].get(name, {}), stages))
    return rows


def call_of(runner: Runner, pictures: Pictures, task: str, trials: int) -> Callable[[int], Any]:
    """One call of a runner on the data of a round."""
    watch = runner.watch

    def step(turn: int) -> Any:
        with watch.stage(DATA):
            batches = [pictures.support(turn, trial) for trial in range(trials)]
        return runner.step(batches)

    def inference(turn: int) -> Any:
        with watch.stage(DATA):
            images, ids = pictures.test(turn)
        return runner.segment(images, ids)

    return step if task == "step" else inference


def _from(call: Callable[[int], Any], first: int) -> Callable[[int], Any]:
    return lambda turn: call(turn + first)


def _compared(
    calls: dict[str, Callable[[int], Any]], task: str, known: dict[str, Way], say: Callable[[str], object]
) -> dict[str, dict[str, float]]:
    """Run every way once on the same data, and hold what they find against what the reference finds."""
    say(f"{task}: comparing results")
    with _whole_float32():
        found = {name: call(0) for name, call in calls.items()}
    if REFERENCE not in found:
        return {}
    differs = {}
    for name, value in found.items():
        if name != REFERENCE:
            distance = step_differs if task == "step" else labels_differ
            differs[name] = distance(value, found[REFERENCE])
            check(name, differs[name], BARS[known[name].precision])
    return differs


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Without TF32, in which CUDA's convolutions keep 10 bits of a float32: its rounding is not what is looked for."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before

"""Ways of computing against each other: compared first, then timed in turns; then the memory of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.backends import cudnn

from slime_bench.bench.case import Case, Pictures
from slime_bench.bench.command import say
from slime_bench.bench.memory import Peak, apart, measure
from slime_bench.bench.timing import Spread, interleave, ratio, spread
from slime_bench.bench.ways import REFERENCE, WAYS, Fast, call_of, distances


@dataclass
class Row:
    """What was found of one runner at one task.

    Attributes:
        runner: its label. work: how many trials' steps, or pictures, one call does. seconds: of every call.
        faster: than the reference, per step or picture; None of the reference itself, or without one.
        differs: from the reference, see `BARS`. memory: None where it was not asked for.
    """

    runner: str
    task: str
    work: int
    seconds: list[float]
    faster: Spread | None = None
    differs: dict[str, float] = field(default_factory=dict)
    memory: Peak | None = None

    @property
    def seconds_of_one(self) -> float:
        """The median of one trial's step, or of one picture."""
        return spread(self.seconds).median / self.work


def race(
    entries: Mapping[str, tuple[Case, str]],
    tasks: Sequence[str],
    rounds: int,
    memory: bool = True,
) -> list[Row]:
    """Measure runners, task by task.

    Args:
        entries: a case and the name of a way, by a label. The one called `REFERENCE`, if it is there, is what the
            others are compared with.
        rounds: that count; one before them is where results are compared.

    Raises:
        DifferentResultError: a way computes something else than the reference.
    """
    rows = _timed(entries, tasks, rounds)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the processes below need the room
    for label, (case, name) in entries.items() if memory else ():
        own = [row for row in rows if row.runner == label and not WAYS[name].seen]
        if own:
            say(f"memory of `{label}`")
            peaks = apart(measure, case, name, [row.task for row in own])
            for row in own:
                row.memory = peaks[row.task]
    return rows


def _timed(entries: Mapping[str, tuple[Case, str]], tasks: Sequence[str], rounds: int) -> list[Row]:
    """The rows of `race`, without memory; nothing stays loaded."""
    pictures = {case: Pictures(case) for case, _ in entries.values()}
    for drawn in pictures.values():
        drawn.prepare(1 + rounds)
    calls: dict[str, dict[str, Callable[[int], Any]]] = {task: {} for task in tasks}
    for label, (case, name) in entries.items():
        say(f"loading `{label}`")
        way, drawn = WAYS[name], pictures[case]
        runner = way.make(case)
        if way.seen and isinstance(runner, Fast):
            for turn in range(1 + rounds):
                runner.see(*drawn.test(turn))
        for task in tasks:
            if task in way.tasks:
                calls[task][label] = call_of(runner, drawn, task, way.trials(case))
    # A step changes the embeddings, and those of two ways drift apart from then on: steps are compared last.
    precisions = {label: WAYS[name].precision for label, (_, name) in entries.items()}
    differs = {task: _compared(calls[task], task, precisions) for task in sorted(tasks)}
    rows = []
    for task in tasks:
        say(f"{task}: {rounds} rounds")
        # Round 0 was the one of the comparison.
        seconds = interleave(calls[task], rounds, warmup=0, first=1)
        for label, own in seconds.items():
            case, name = entries[label]
            trials, faster = WAYS[name].trials(case), None
            if REFERENCE in seconds and label != REFERENCE:  # which does one trial
                faster = ratio(seconds[REFERENCE], own, trials)
            work = (case.images if task == "inference" else 1) * trials
            rows.append(Row(label, task, work, own, faster, differs[task].get(label, {})))
    return rows


def _compared(
    calls: Mapping[str, Callable[[int], Any]], task: str, precisions: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Run every runner once on the same data, and hold what they find against what the reference finds."""
    say(f"{task}: comparing results")
    # Without TF32, in which CUDA's convolutions keep 10 bits of a float32: its rounding is not what is looked for.
    before, cudnn.allow_tf32 = cudnn.allow_tf32, False
    try:
        found = {label: call(0) for label, call in calls.items()}
    finally:
        cudnn.allow_tf32 = before
    wanted = found.pop(REFERENCE, None)
    if wanted is None:
        return {}
    return {label: distances(label, value, wanted, precisions[label]) for label, value in found.items()}

"""Rounds of several ways of doing one thing, in turns; their ratios; and where the time of a call goes.

Seconds on a shared machine wander by tens of percent from minute to minute. What the ways have in common is the round,
so each round runs every way once, and what is said is the ratio. torch's `timer` waits for a GPU first.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from torch.utils.benchmark import timer


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of some numbers."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def interleave(ways: Mapping[str, Callable[[int], object]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of every way in every round.

    Args:
        ways: called with the number of the round, warm-up rounds included. In each round another one comes first.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(warmup + rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            began = timer()
            ways[name](turn)
            ended = timer()
            if turn >= warmup:
                seconds[name].append(ended - began)
    return seconds


def ratio(slow: Sequence[float], fast: Sequence[float], work: float = 1.0) -> Spread:
    """How many times faster: the ratio of the medians, and the smallest and largest ratio within one round.

    Args:
        slow, fast: seconds per round. work: how many times the slow one's work the fast one has done.
    """
    each = [work * a / b for a, b in zip(slow, fast, strict=True)]
    return Spread(work * statistics.median(slow) / statistics.median(fast), min(each), max(each))


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """p of the best value = c size^p: the slope of a straight line through the logarithms. All above 0."""
    return statistics.linear_regression([math.log(size) for size in sizes], [math.log(v) for v in values]).slope


class Stopwatch:
    """Seconds of named stages.

    A stage within another takes its time away from the outer one, so that all stages add up to the whole. Switched off
    it costs nothing: on CUDA the waiting at each stage's ends would slow down what is measured.
    """

    def __init__(self, on: bool = True) -> None:
        self.on = on
        self.seconds: dict[str, float] = {}
        self._open: list[tuple[str, bool]] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str, whole: bool = False) -> Iterator[None]:
        """Time the block as `name`; with `whole` stages within count as this one."""
        if not self.on or (self._open and self._open[-1][1]):
            yield
            return
        self._switch()
        self._open.append((name, whole))
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def _switch(self) -> None:
        """Book the time since the last switch to the innermost open stage."""
        now = timer()
        if self._open:
            name = self._open[-1][0]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    @contextmanager
    def around(self, *calls: tuple[Any, str, str]) -> Iterator[None]:
        """Within the block, time every call of a method: (object, name of the method, stage)."""
        with ExitStack() as stack:
            for owner, name, stage in calls:
                stack.enter_context(mock.patch.object(owner, name, self._timed(getattr(owner, name), stage)))
            yield

    def _timed(self, call: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.stage(stage):
                return call(*arguments, **named)

        return timed

    def take(self) -> dict[str, float]:
        """Seconds of all stages so far; they start again from 0."""
        found, self.seconds = self.seconds, {}
        return found

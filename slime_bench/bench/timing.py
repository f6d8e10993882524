"""Rounds of several ways of doing one thing, in turns, and their ratios.

Seconds on a shared machine wander by tens of percent from minute to minute. What the ways have in common is the round,
so each round runs every way once, and what is said is the ratio. torch's own `Timer` runs one way after another.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch.utils.benchmark import timer  # waits for a GPU first


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of some numbers."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def interleave(
    ways: Mapping[str, Callable[[int], object]], rounds: int, warmup: int = 1, first: int = 0
) -> dict[str, list[float]]:
    """Seconds of every way in every round.

    Args:
        ways: called with the number of the round, from `first` on and warm-up rounds included. In each round another
            one comes first.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(warmup + rounds):
        head = turn % len(names)
        for name in names[head:] + names[:head]:
            began = timer()
            ways[name](first + turn)
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

"""Support sets with k images of each class, for data sets of whole scenes. Pure functions.

In the second paper one shot is one image per class: VOC's one-shot support set has 20 images, COCO's 80. k shots are k
images of each class here, whoever chooses them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slime_bench.data.support import permuted
from slime_bench.errors import DataError

AUTHORS_SEED = 1
Counts = NDArray[np.int64]
"""Pixels of each class, [K] or [N,K]."""


@dataclass(frozen=True)
class Example:
    """A support image.

    Attributes:
        index: of the sample. only: where set, the one foreground class that counts; the others are background.
    """

    index: int
    only: int | None = None


def draw_per_class(
    candidates: Sequence[Sequence[int]],
    counts: Callable[[int], Counts],
    shots: int,
    min_pixels: int,
    order: Callable[[int], Sequence[int]],
) -> list[list[int]]:
    """`shots` samples of each class, class by class: first those that show nothing else, and much of it.

    Of each class's samples in their `order`, those come first that show at least `min_pixels` of it and no other
    foreground class, then those that show as much of it beside others, then all that show it. No more samples are
    looked at than it takes. The sets of fewer shots are the beginnings of those of more.

    Args:
        candidates: for each foreground class the samples that may show it; those that do not are passed over.
        counts: pixels per class of a sample, [K].
        order: count -> permutation of 0..count-1, for the samples of one class.

    Returns:
        for each foreground class its samples; fewer than `shots` where there are no more.
    """
    chosen = []
    for label, samples in enumerate(candidates, start=1):
        tiers: tuple[list[int], list[int], list[int]] = ([], [], [])
        for place in order(len(samples)):
            found = counts(samples[place])
            if found[label] == 0:
                continue
            alone = np.count_nonzero(found[1:]) == 1
            tiers[2 if found[label] < min_pixels else 0 if alone else 1].append(samples[place])
            if len(tiers[0]) == shots:
                break
        chosen.append([each for tier in tiers for each in tier][:shots])
    return chosen


def by_seed(seed: int) -> Callable[[int], Sequence[int]]:
    """Permutations by the generator (seed, "support"), for `draw_per_class`."""
    return lambda count: permuted(count, seed)


def authors_support(
    counts: Counts, shots: int, run: int, min_pixels: int, classes: Sequence[str] = (), path: str = ""
) -> list[Example]:
    """The support set of run number `run` of the second paper's code, class by class; its runs are a sequence.

    Candidates of a class are the samples with at least `min_pixels` (16384 there) of it. Each run shuffles them, class
    after class, by one stream of python's `random`, seeded 1 before the first run, and takes the first `shots` that
    show no other foreground class. Where there are too few, candidates are taken at random, also twice, and their other
    classes become background; such an image stays among the queries, as in the code.

    Args:
        counts: pixels [N,K] of the samples, in the order of the list. run: from 0. classes, path: for the message.

    Raises:
        DataError: no sample has so many pixels of a class. (The code stops with an IndexError.)
    """
    alone = (counts[:, 1:] > 0).sum(1) == 1
    candidates = [np.flatnonzero(counts[:, label] >= min_pixels).tolist() for label in range(1, counts.shape[1])]
    stream = random.Random(AUTHORS_SEED)
    found: list[Example] = []
    for _ in range(run + 1):
        found = []
        for label, samples in enumerate(candidates, start=1):
            if not samples:
                raise DataError(
                    f"no image can be a support of the class `{classes[label] if classes else label}`",
                    path=path,
                    found=f"none of {len(counts)} images has {min_pixels} pixels of it",
                    expected="an image for every class",
                    remedy="lower `data.min_pixels`, or choose data.support=drawn",
                )
            places = list(range(len(samples)))
            stream.shuffle(places)
            own = [Example(samples[place]) for place in places if alone[samples[place]]][:shots]
            own += [Example(samples[int(stream.random() * len(samples))], only=label) for _ in range(shots - len(own))]
            found += own
    return found

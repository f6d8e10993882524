"""How sure a number of a table is: the bootstrap over test images. Pure functions on NumPy arrays, free of torch.

The unit that is drawn is the image, because the pixels of an image are not independent of each other. All seeds and
all methods that were tested on the same images see the same draws, so that differences between them are paired. What
the intervals say, and what they do not, is in docs/statistics.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from slime_bench.metrics.ratio import Floats
from slime_bench.seeding import numpy_generator

PERCENT: Final = 95
"""Of the bootstrap distribution, inside an interval."""
RESAMPLES: Final = 2000
_ZERO: Final = 1e-9
"""Percentage points. A difference below it is none: sums of the same numbers may differ in their last bit."""
_DECIMALS: Final = 6
"""Of what the bootstrap gives. Its own error is larger by orders; the rest would depend on the machine's BLAS."""


@dataclass(frozen=True)
class Bounds:
    """Lower and upper end of an interval, in percent or percentage points."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Of two rows, in percentage points.

    Attributes:
        mean: over seeds. std: sample standard deviation of the per-seed differences, None for one seed.
        agree: seeds whose own difference has the sign of the mean.
        bounds: of the bootstrap over images; `p` its two-sided p-value. None where a side is undefined.
    """

    mean: float | None
    std: float | None
    agree: int
    bounds: Bounds | None
    p: float | None


def image_weights(images: int, resamples: int, seed: int) -> Floats:
    """How often each image is in each resample: float64 [R,N], rows sum to N."""
    drawn = numpy_generator(seed, "image bootstrap", images).multinomial(images, np.full(images, 1 / images), resamples)
    return drawn.astype(np.float64)


def resampled(numerator: Floats, denominator: Floats, weights: Floats, background: bool = True) -> Floats:
    """The metric on every resample.

    Args:
        numerator, denominator: of `ratio_terms`, [N,K].
        weights: of `image_weights`, [R,N]; a row of ones gives the metric on the images as they are.
        background: whether class 0 counts in the average.

    Returns:
        Percent [R,K+1]: IoU of the classes, then their average; NaN where undefined.
    """
    with np.errstate(invalid="ignore"):  # 0 / 0: no drawn image has the class
        per_class = 100.0 * (weights @ numerator) / (weights @ denominator)
    return np.column_stack([per_class, nan_mean(per_class if background else per_class[:, 1:], axis=1)])


def nan_mean(values: Floats, axis: int) -> Floats:
    """Mean of the defined values, NaN where there is none."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(defined, values, 0.0).sum(axis) / defined.sum(axis), dtype=np.float64)


def bounds(drawn: Floats, percent: float = PERCENT) -> Bounds | None:
    """The percentile interval of a bootstrap distribution [R]; undefined (NaN) draws are left out, None without others.

    The same numbers as `scipy.stats.bootstrap(method="percentile")` gives for the same distribution.
    """
    defined = drawn[~np.isnan(drawn)]
    if not len(defined):
        return None
    low, high = np.percentile(defined, [(100 - percent) / 2, (100 + percent) / 2])
    return Bounds(_rounded(low), _rounded(high))


def p_value(drawn: Floats) -> float | None:
    """Two-sided p-value of the hypothesis that a difference is 0, from its bootstrap distribution [R].

    Twice the share of draws on the other side of 0 than most, as one more draw had fallen there: it is never 0, and it
    is small where 0 lies outside the percentile interval. A difference that is always 0 has p = 1.
    """
    defined = drawn[~np.isnan(drawn)]
    if not len(defined):
        return None
    below, above = int((defined <= _ZERO).sum()), int((defined >= -_ZERO).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(defined) + 1))


def paired_difference(a: Floats, b: Floats, drawn_a: Floats, drawn_b: Floats) -> Difference:
    """Of a minus b, paired by image and by seed.

    Args:
        a, b: percent on the images as they are, one number for each seed [S]; NaN where undefined.
        drawn_a, drawn_b: the same on every resample, [S,R]; the same draws on both sides.
    """
    seeds = (a - b)[~np.isnan(a - b)]
    if not len(seeds):
        return Difference(None, None, 0, None, None)
    seeds = np.where(np.abs(seeds) > _ZERO, seeds, 0.0)
    mean = float(seeds.mean())
    mean = mean if abs(mean) > _ZERO else 0.0
    drawn = nan_mean(drawn_a - drawn_b, axis=0)
    return Difference(
        mean=_rounded(mean),
        std=_rounded(seeds.std(ddof=1)) if len(seeds) > 1 else None,
        agree=int((np.sign(seeds) == np.sign(mean)).sum()),
        bounds=bounds(drawn),
        p=p_value(drawn),
    )


def _rounded(value: float) -> float:
    return round(float(value), _DECIMALS) + 0.0  # no -0.0 in a file

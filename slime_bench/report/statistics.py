"""Intervals and paired differences of finished trials, from the per-image counts beside their results; tests on means.

bootstrap = ImageBootstrap(collected.folders)
bootstrap.interval([one for one in collected.results if one.series == series], "dataset", background=True).average
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np

from slime_bench.errors import ResultError
from slime_bench.metrics.bootstrap import (
    PERCENT,
    RESAMPLES,
    Bounds,
    Difference,
    bounds,
    image_weights,
    nan_mean,
    paired_difference,
    resampled,
)
from slime_bench.metrics.ratio import Array, Floats, ratio_terms
from slime_bench.report.published import Published
from slime_bench.report.rows import Row, comparison
from slime_bench.results.result import PER_IMAGE_FILE, TrialResult, read_per_image_arrays

MIN_SEEDS: Final = 4
"""Fewer seeds support no claim about other seeds: of all ways to part 3 + 3 numbers into two groups of three, 2 of 20
are as extreme as the most extreme one, so that no exact test can come below p = 0.1; of 4 + 4 it is 2 of 70."""
MIN_IMAGES: Final = 20
"""Below, intervals are visibly too short: docs/statistics.md has the measured coverage."""


@dataclass(frozen=True)
class Interval:
    """Of one row: how far its numbers depend on which test images were drawn; in percent.

    Attributes:
        percent: of the bootstrap distribution, inside. resamples, seed: of the bootstrap.
        images: test images. class_images: of these, the ones that count for the class under the convention.
        average, per_class: None where undefined.
        missing: why there is no interval, else empty.
    """

    percent: int
    resamples: int
    seed: int
    images: int
    average: Bounds | None
    per_class: dict[str, Bounds | None]
    class_images: dict[str, int]
    missing: str = ""


@dataclass(frozen=True)
class Paired:
    """One row minus another, over the same images and seeds; in percentage points.

    Attributes:
        seeds: that both have. unpaired_seeds: those that only one has, which are left out.
    """

    percent: int
    resamples: int
    seed: int
    images: int
    seeds: tuple[int, ...]
    unpaired_seeds: tuple[int, ...]
    average: Difference
    per_class: dict[str, Difference]


@dataclass(frozen=True, eq=False)
class _Images:
    """Counts of one trial [N,K], images sorted by their id: the order in a file must not change an interval."""

    ids: list[str]
    intersection: Array
    union: Array
    present: Array

    def terms(self, convention: str) -> tuple[Floats, Floats]:
        return ratio_terms(self.intersection, self.union, self.present, convention)


class ImageBootstrap:
    """The bootstrap over test images; everything that was read and drawn is kept.

    Args:
        folders: signature -> the trial's folder, as `Collected.folders`.
        resamples, seed: of the bootstrap; the same number of images always gets the same draws.
    """

    def __init__(self, folders: Mapping[str, Path], resamples: int = RESAMPLES, seed: int = 0) -> None:
        self.folders, self.resamples, self.seed = folders, resamples, seed
        self._images: dict[str, _Images] = {}
        self._weights: dict[int, Floats] = {}
        self._metrics: dict[tuple[str, str, bool], tuple[Floats, Floats]] = {}

    def interval(self, results: Sequence[TrialResult], convention: str, background: bool) -> Interval:
        """The interval of the row that the results of one series make; of their mean over the seeds.

        Where there can be none, e.g. without per-image counts, `missing` says why.
        """
        try:
            images = self._same_images(results)
        except ResultError as error:
            return Interval(PERCENT, self.resamples, self.seed, 0, None, {}, {}, missing=error.summary.rstrip("."))
        drawn = nan_mean(np.array([self._metric(one, convention, background)[1] for one in results]), axis=0)
        counted = np.any([self._read(one).terms(convention)[1] > 0 for one in results], axis=0)  # [N,K]
        names = results[0].classes
        *classes, average = (bounds(column) for column in drawn.T)
        return Interval(
            percent=PERCENT, resamples=self.resamples, seed=self.seed, images=len(images.ids), average=average,
            per_class=dict(zip(names, classes, strict=True)),
            class_images=dict(zip(names, counted.sum(axis=0).tolist(), strict=True)),
        )  # fmt: skip

    def paired(self, a: Sequence[TrialResult], b: Sequence[TrialResult], convention: str, background: bool) -> Paired:
        """The trials `a` minus the trials `b`, paired by seed and by image.

        Raises:
            ResultError: no seed in common, other classes, other images or another ground truth, or no counts.
        """
        left, right = ({one.seed: one for one in side} for side in (a, b))
        seeds = sorted(set(left) & set(right))
        if not seeds:
            raise ResultError(
                "These trials have no seed in common.", found=f"seeds {sorted(left)} and {sorted(right)}",
                expected="the same seeds on both sides", remedy="Run the missing seeds.",
            )  # fmt: skip
        sides = [[side[seed] for seed in seeds] for side in (left, right)]
        images = self._same_images([*sides[0], *sides[1]])
        metrics = [[self._metric(one, convention, background) for one in side] for side in sides]
        points = [np.array([point for point, _ in side]) for side in metrics]  # [S,K+1]
        drawn = [np.array([each for _, each in side]) for side in metrics]  # [S,R,K+1]
        *classes, average = (
            paired_difference(points[0][:, k], points[1][:, k], drawn[0][:, :, k], drawn[1][:, :, k])
            for k in range(points[0].shape[1])
        )
        return Paired(
            percent=PERCENT, resamples=self.resamples, seed=self.seed, images=len(images.ids), seeds=tuple(seeds),
            unpaired_seeds=tuple(sorted(set(left) ^ set(right))), average=average,
            per_class=dict(zip(sides[0][0].classes, classes, strict=True)),
        )  # fmt: skip

    def try_paired(
        self, a: Sequence[TrialResult], b: Sequence[TrialResult], convention: str, background: bool
    ) -> tuple[Paired | None, str]:
        """As `paired`, or None and why there is no difference."""
        try:
            return self.paired(a, b, convention, background), ""
        except ResultError as error:
            return None, error.summary.rstrip(".")

    def _same_images(self, results: Sequence[TrialResult]) -> _Images:
        """The images of all results.

        Raises:
            ResultError: they have other classes, images or ground truth (as far as the counts show it), or no counts.
        """
        first, images = results[0], self._read(results[0])
        for one in results:
            other = self._read(one)
            if one.classes != first.classes:
                raise ResultError("These trials have other classes.")
            if other.ids != images.ids or not np.array_equal(other.present, images.present):
                raise ResultError("These trials were not tested on the same images with the same ground truth.")
        return images

    def _metric(self, result: TrialResult, convention: str, background: bool) -> tuple[Floats, Floats]:
        """In percent, as it is [K+1] and on every resample [R,K+1]; the last column is the mean over the classes."""
        key = (result.signature, convention, background)
        if key not in self._metrics:
            images = self._read(result)
            number = len(images.ids)
            if number not in self._weights:
                self._weights[number] = image_weights(number, self.resamples, self.seed)
            terms = images.terms(convention)
            (point,) = resampled(*terms, np.ones((1, number)), background)
            self._metrics[key] = point, resampled(*terms, self._weights[number], background)
        return self._metrics[key]

    def _read(self, result: TrialResult) -> _Images:
        """The counts beside a result.

        Raises:
            ResultError: there are none, or they cannot be read.
        """
        if result.signature not in self._images:
            path = self.folders[result.signature] / PER_IMAGE_FILE
            if not path.is_file():
                raise ResultError(f"there is no {PER_IMAGE_FILE} beside the result", path=path)
            ids, _, *counts = read_per_image_arrays(path)
            order = np.argsort(np.array(ids, dtype=object), kind="stable")
            self._images[result.signature] = _Images([ids[row] for row in order], *(each[order] for each in counts))
        return self._images[result.signature]


# ------------------------------------------------------------------------------------------------- rows of a table


@dataclass(frozen=True)
class Pair:
    """`a` minus `b`, two of our rows of one preset and data set; without `paired`, `reason` says why."""

    a: Row
    b: Row
    paired: Paired | None
    reason: str = ""


def row_pairs(
    rows: Sequence[Row], results: Sequence[TrialResult], bootstrap: ImageBootstrap, across_shots: bool = False
) -> list[Pair]:
    """All pairs of rows of the same preset, data set and, but for `across_shots`, shots; the later row first."""
    trials = {row.series: [one for one in results if one.series == row.series] for row in rows}
    return [
        Pair(a, b, *bootstrap.try_paired(trials[a.series], trials[b.series], a.convention, a.background_in_average))
        for b, a in combinations(rows, 2)
        if (a.preset, a.data) == (b.preset, b.data) and (across_shots or a.shots == b.shots)
    ]


def row_welch(row: Row, published: Published | None) -> dict[str, float] | None:
    """Welch's t-test of our average against the published one, as `statistic` and two-sided `p`.

    None where they may not be compared, a number is not stated, or neither varies. The published deviation is taken for
    a sample deviation over the stated runs, as the papers do not say which it is.
    """
    other = comparison(row, published)
    if other is None:
        return None
    sides = [(each.average.mean, each.average.std, each.n) for each in (row, other)]
    if any(None in side for side in sides) or not (row.average.std or other.average.std):
        return None
    from scipy.stats import ttest_ind_from_stats

    found = ttest_ind_from_stats(*sides[0], *sides[1], equal_var=False)
    return {"statistic": float(found.statistic), "p": float(found.pvalue)}

"""Intervals and paired differences of finished trials, from the per-image counts beside their results; tests on means.

bootstrap = ImageBootstrap(collected.folders)
bootstrap.interval([one for one in collected.results if one.series == series], "dataset", background=True).average
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np

from slime_bench.errors import ConfigError, ResultError
from slime_bench.metrics import CONVENTION_RULES
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
from slime_bench.report.collect import reason
from slime_bench.report.published import Published
from slime_bench.report.rows import Row, comparison
from slime_bench.results.result import PER_IMAGE_FILE, TrialResult, read_per_image_arrays

MIN_SEEDS: Final = 4
"""Fewer seeds support no claim about other seeds: of all ways to part 3 + 3 numbers into two groups of three, 2 of 20
are as extreme as the most extreme one, so that no exact test can come below p = 0.1; of 4 + 4 it is 2 of 70."""
MIN_IMAGES: Final = 20
"""Below, intervals are visibly too short: docs/statistics.md has the measured coverage."""
_NEAR = 1e-9
_RERUN = "Delete the trial's folder and run the trial again."


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
class Images:
    """Counts of one trial, images sorted by their id: the order in a file must not change an interval."""

    ids: list[str]
    intersection: Array
    union: Array
    present: Array

    def same(self, other: Images) -> bool:
        """Whether they are the same images with the same ground truth, as far as the counts show it."""
        return self.ids == other.ids and np.array_equal(self.present, other.present)

    def terms(self, convention: str) -> tuple[Floats, Floats]:
        return ratio_terms(self.intersection, self.union, self.present, convention)


@dataclass(frozen=True, eq=False)
class _Drawn:
    """The metric of one trial in percent, as it is [K+1] and on every resample [R,K+1]; the last column is the mean."""

    point: Floats
    drawn: Floats


class ImageBootstrap:
    """The bootstrap over test images; everything that was read and drawn is kept.

    Args:
        folders: signature -> the trial's folder, as `Collected.folders`.
        resamples, seed: of the bootstrap; the same number of images always gets the same draws.

    Raises:
        ConfigError: fewer than one resample.
    """

    def __init__(self, folders: Mapping[str, Path], resamples: int = RESAMPLES, seed: int = 0) -> None:
        if resamples < 1:
            raise ConfigError("The bootstrap needs resamples.", path="resamples", found=resamples, expected="1 or more")
        self.folders, self.resamples, self.seed = folders, resamples, seed
        self._images: dict[str, Images | ResultError] = {}
        self._weights: dict[int, Floats] = {}
        self._metrics: dict[tuple[str, str, bool], _Drawn] = {}

    def interval(self, results: Sequence[TrialResult], convention: str, background: bool) -> Interval:
        """The interval of the row that the results of one series make; of their mean over the seeds.

        Where there can be none, e.g. without per-image counts, `missing` says why.

        Raises:
            ConfigError: an unknown convention.
        """
        try:
            images = self._same_images(results)
        except ResultError as error:
            return Interval(PERCENT, self.resamples, self.seed, 0, None, {}, {}, missing=reason(error))
        drawn = nan_mean(np.array([self._metric(one, convention, background).drawn for one in results]), axis=0)
        counted = np.any([self._read(one).terms(convention)[1] > 0 for one in results], axis=0)  # [N,K]
        names = results[0].classes
        *classes, average = (bounds(column) for column in drawn.T)
        return Interval(
            percent=PERCENT,
            resamples=self.resamples,
            seed=self.seed,
            images=len(images.ids),
            average=average,
            per_class=dict(zip(names, classes, strict=True)),
            class_images=dict(zip(names, counted.sum(axis=0).tolist(), strict=True)),
        )

    def paired(self, a: Sequence[TrialResult], b: Sequence[TrialResult], convention: str, background: bool) -> Paired:
        """The trials `a` minus the trials `b`, paired by seed and by image.

        Raises:
            ConfigError: an unknown convention.
            ResultError: no seed in common, other classes, other images or another ground truth, or counts that are
                missing or do not belong to their result.
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
        points = [np.array([one.point for one in side]) for side in metrics]  # [S,K+1]
        drawn = [np.array([one.drawn for one in side]) for side in metrics]  # [S,R,K+1]
        *classes, average = (
            paired_difference(points[0][:, k], points[1][:, k], drawn[0][:, :, k], drawn[1][:, :, k])
            for k in range(points[0].shape[1])
        )
        return Paired(
            percent=PERCENT,
            resamples=self.resamples,
            seed=self.seed,
            images=len(images.ids),
            seeds=tuple(seeds),
            unpaired_seeds=tuple(sorted(set(left) ^ set(right))),
            average=average,
            per_class=dict(zip(sides[0][0].classes, classes, strict=True)),
        )

    def try_paired(
        self, a: Sequence[TrialResult], b: Sequence[TrialResult], convention: str, background: bool
    ) -> tuple[Paired | None, str]:
        """As `paired`, or None and why there is no difference."""
        try:
            return self.paired(a, b, convention, background), ""
        except ResultError as error:
            return None, reason(error)

    def _same_images(self, results: Sequence[TrialResult]) -> Images:
        first = results[0]
        for one in results:
            if one.classes != first.classes:
                raise ResultError(
                    "These trials have other classes.", found=", ".join(one.classes), expected=", ".join(first.classes)
                )
            if not self._read(one).same(self._read(first)):
                raise ResultError(
                    "These trials were not tested on the same images with the same ground truth.",
                    found=f"{len(self._read(one).ids)} images of {one.data}, seed {one.seed}",
                    expected=f"the {len(self._read(first).ids)} images of {first.data}, seed {first.seed}",
                )
        return self._read(first)

    def _metric(self, result: TrialResult, convention: str, background: bool) -> _Drawn:
        key = (result.signature, convention, background)
        if key not in self._metrics:
            images = self._read(result)
            number = len(images.ids)
            if number not in self._weights:
                self._weights[number] = image_weights(number, self.resamples, self.seed)
            terms = images.terms(convention)
            (point,) = resampled(*terms, np.ones((1, number)), background)
            self._metrics[key] = _Drawn(point, resampled(*terms, self._weights[number], background))
        return self._metrics[key]

    def _read(self, result: TrialResult) -> Images:
        if result.signature not in self._images:
            try:
                self._images[result.signature] = read_images(result, self.folders.get(result.signature))
            except ResultError as error:
                self._images[result.signature] = error
        found = self._images[result.signature]
        if isinstance(found, ResultError):
            raise found
        return found


def read_images(result: TrialResult, folder: Path | None) -> Images:
    """The counts beside a result.

    Raises:
        ResultError: there are none, they cannot be read, or the result does not follow from them.
    """
    path = None if folder is None else folder / PER_IMAGE_FILE
    if path is None or not path.is_file():
        raise ResultError(f"there is no {PER_IMAGE_FILE} beside the result", path=path, remedy=_RERUN)
    ids, classes, *counts = read_per_image_arrays(path)
    order = np.argsort(np.array(ids, dtype=object), kind="stable")
    intersection, union, present = (each[order] for each in counts)
    images = Images([ids[index] for index in order], intersection, union, present)
    if classes != result.classes or len(ids) != result.num_test_images or not ids:
        raise _foreign(path, f"{len(ids)} images, classes {', '.join(classes)}", result)
    for convention in CONVENTION_RULES:
        numerator, denominator = (each.sum(axis=0).tolist() for each in images.terms(convention))
        for name, above, below in zip(classes, numerator, denominator, strict=True):
            expected = result.conventions[convention]["per_class"][name]
            found = above / below if below else None
            if (found is None) != (expected is None) or abs((found or 0) - (expected or 0)) > _NEAR:
                raise _foreign(path, f"IoU {found} for {name} under {convention}, not {expected}", result)
    return images


def _foreign(path: Path, found: Any, result: TrialResult) -> ResultError:
    return ResultError(
        f"the {PER_IMAGE_FILE} is not that of the result beside it", path=path, found=found,
        expected=f"the counts of the {result.num_test_images} test images behind the result", remedy=_RERUN,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- rows of a table


@dataclass(frozen=True)
class Pair:
    """`a` minus `b`, two of our rows of one preset and data set; without `paired`, `reason` says why."""

    a: Row
    b: Row
    paired: Paired | None
    reason: str = ""


def row_pairs(rows: Sequence[Row], results: Sequence[TrialResult], bootstrap: ImageBootstrap) -> list[Pair]:
    """All pairs of rows of the same preset and data set, the later row first."""
    trials = {row.series: [one for one in results if one.series == row.series] for row in rows}
    return [
        Pair(a, b, *bootstrap.try_paired(trials[a.series], trials[b.series], a.convention, a.background_in_average))
        for b, a in combinations(rows, 2)
        if (a.preset, a.data) == (b.preset, b.data)
    ]


@dataclass(frozen=True)
class Welch:
    """Welch's t-test of two means: the statistic, and the two-sided p-value."""

    statistic: float
    p: float


def welch(
    mean: float | None, std: float | None, n: int | None,
    other_mean: float | None, other_std: float | None, other_n: int | None,
) -> Welch | None:  # fmt: skip
    """Welch's t-test from means, sample standard deviations and numbers of runs.

    None where a number is not stated, a side has fewer than two runs, or neither side varies at all.
    """
    if mean is None or std is None or n is None or other_mean is None or other_std is None or other_n is None:
        return None
    if n < 2 or other_n < 2 or (std == 0 and other_std == 0):
        return None
    from scipy.stats import ttest_ind_from_stats

    found = ttest_ind_from_stats(mean, std, n, other_mean, other_std, other_n, equal_var=False)
    statistic, p = float(found.statistic), float(found.pvalue)
    return Welch(statistic, p) if math.isfinite(statistic) and math.isfinite(p) else None


def row_welch(row: Row, published: Published | None) -> Welch | None:
    """Welch's t-test of our average against the published one, where they may be compared and both have what it takes.

    The published deviation is taken for a sample deviation over the stated runs, as the papers do not say which it is.
    """
    other = comparison(row, published)
    if other is None:
        return None
    return welch(row.average.mean, row.average.std, row.n, other.average.mean, other.average.std, other.n)

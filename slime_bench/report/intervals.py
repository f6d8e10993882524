"""Intervals and paired differences of finished trials, from the per-image counts beside their results.

    found = intervals(collected.results, collected.folders, "dataset", background=True)
    found[row.series].average

`ImageBootstrap` does the same for callers that ask more than once: it reads every file once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slime_bench.errors import ConfigError, ResultError
from slime_bench.metrics import CONVENTION_RULES
from slime_bench.metrics.ratio import Array, Floats, ratio_terms
from slime_bench.report.statistics import (
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
from slime_bench.results.result import PER_IMAGE_FILE, TrialResult, read_per_image_arrays

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


def intervals(
    results: Iterable[TrialResult],
    folders: Mapping[str, Path],
    convention: str = "slime",
    background: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Series (`Row.series`) -> interval, for every series of `results`.

    Args:
        folders: signature -> the trial's folder, as `Collected.folders`.

    Raises:
        ConfigError: an unknown convention, or fewer than one resample.
    """
    bootstrap = ImageBootstrap(folders, resamples, seed)
    series: dict[str, list[TrialResult]] = defaultdict(list)
    for result in results:
        series[result.series].append(result)
    return {name: bootstrap.interval(trials, convention, background) for name, trials in series.items()}


def paired(
    a: Sequence[TrialResult],
    b: Sequence[TrialResult],
    folders: Mapping[str, Path],
    convention: str = "slime",
    background: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Paired:
    """The trials `a` minus the trials `b`, paired by seed and by image.

    Raises:
        ConfigError: an unknown convention, or fewer than one resample.
        ResultError: no seed in common, other classes, other images or another ground truth, or counts that are missing
            or do not belong to their result.
    """
    return ImageBootstrap(folders, resamples, seed).paired(a, b, convention, background)


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
        _check_convention(convention)
        try:
            images = self._same_images(results)
        except ResultError as error:
            return Interval(PERCENT, self.resamples, self.seed, 0, None, {}, {}, missing=_reason(error))
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
        """See `paired`."""
        _check_convention(convention)
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


def _check_convention(convention: str) -> None:
    if convention not in CONVENTION_RULES:
        raise ConfigError(
            "Unknown metric convention.", path="metric.convention", found=convention,
            expected=" or ".join(CONVENTION_RULES),
        )  # fmt: skip


def _reason(error: ResultError) -> str:
    """In one sentence, without the folders of one machine."""
    return error.summary.rstrip(".")

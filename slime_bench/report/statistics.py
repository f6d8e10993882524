"""Intervals and paired differences of finished trials, from the per-image counts beside their results; tests on means.

bootstrap = ImageBootstrap(collected.folders)
bootstrap.interval([one for one in collected.results if one.series == series], "dataset", background=True).average
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np

from slime_bench.errors import ResultError
from slime_bench.metrics import bootstrap as resampling
from slime_bench.metrics.bootstrap import PERCENT, RESAMPLES, Bounds, Difference
from slime_bench.metrics.ratio import Array, Floats, ratio_terms
from slime_bench.report.published import Published, Stat
from slime_bench.report.rows import Row, comparison, row_name
from slime_bench.report.table import DASH, Grid, Line, csv_of, grouped, json_of, listed, spaced, stat_text
from slime_bench.results.result import PER_IMAGE_FILE, TrialResult, read_per_image_arrays

MIN_SEEDS: Final = 4
"""Fewer seeds support no claim about other seeds: of all ways to part 3 + 3 numbers into two groups of three, 2 of 20
are as extreme as the most extreme one, so that no exact test can come below p = 0.1; of 4 + 4 it is 2 of 70."""
MIN_IMAGES: Final = 20
"""Below, intervals are visibly too short: docs/statistics.md has the measured coverage."""
MOST_PAIRS = 15
"""Pairs of a section that Markdown and the console show: those of six rows. pairs.csv and pairs.json have all."""
SHOWN_ELSEWHERE = (
    f"{PERCENT} % intervals over test images and paired differences: in tables of their own (--intervals prints them)"
)


@dataclass(frozen=True)
class _Drawn:
    """Of a bootstrap: percent of its distribution inside an interval, resamples, seed and test images."""

    percent: int
    resamples: int
    seed: int
    images: int


@dataclass(frozen=True)
class Interval(_Drawn):
    """Of one row: how far its numbers depend on which test images were drawn; in percent.

    Attributes:
        average, per_class: None where undefined.
        class_images: test images that count for the class under the convention.
        missing: why there is no interval, else empty.
    """

    average: Bounds | None
    per_class: dict[str, Bounds | None]
    class_images: dict[str, int]
    missing: str = ""


@dataclass(frozen=True)
class Paired(_Drawn):
    """One row minus another, over the same images and seeds; in percentage points.

    Attributes:
        seeds: that both have. unpaired_seeds: those that only one has, which are left out.
    """

    seeds: tuple[int, ...]
    unpaired_seeds: tuple[int, ...]
    average: Difference
    per_class: dict[str, Difference]


class ImageBootstrap:
    """The bootstrap over test images; everything that was read and drawn is kept.

    Args:
        folders: signature -> the trial's folder, as `Collected.folders`.
        resamples, seed: of the bootstrap; the same number of images always gets the same draws.
    """

    def __init__(self, folders: Mapping[str, Path], resamples: int = RESAMPLES, seed: int = 0) -> None:
        self.folders, self.resamples, self.seed = folders, resamples, seed
        self._counts, self._metric = cache(self._read), cache(self._computed)
        self._weights = cache(partial(resampling.image_weights, resamples=resamples, seed=seed))

    def interval(self, results: Sequence[TrialResult], convention: str, background: bool) -> Interval:
        """The interval of the row that the results of one series make; of their mean over the seeds.

        Where there can be none, e.g. without per-image counts, `missing` says why.
        """
        try:
            images = self._same_images(results)
        except ResultError as error:
            return Interval(PERCENT, self.resamples, self.seed, 0, None, {}, {}, missing=error.summary.rstrip("."))
        ids = [one.signature for one in results]
        drawn = resampling.nan_mean(np.array([self._metric(each, convention, background)[1] for each in ids]), axis=0)
        counted = np.any([self._terms(each, convention)[1] > 0 for each in ids], axis=0)  # [N,K]
        names = results[0].classes
        *classes, average = (resampling.bounds(column) for column in drawn.T)
        return Interval(
            percent=PERCENT, resamples=self.resamples, seed=self.seed, images=images, average=average,
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
        metrics = [[self._metric(one.signature, convention, background) for one in side] for side in sides]
        points = [np.array([point for point, _ in side]) for side in metrics]  # [S,K+1]
        drawn = [np.array([each for _, each in side]) for side in metrics]  # [S,R,K+1]
        *classes, average = (
            resampling.paired_difference(points[0][:, k], points[1][:, k], drawn[0][:, :, k], drawn[1][:, :, k])
            for k in range(points[0].shape[1])
        )
        return Paired(
            percent=PERCENT, resamples=self.resamples, seed=self.seed, images=images, seeds=tuple(seeds),
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

    def _same_images(self, results: Sequence[TrialResult]) -> int:
        """How many images all results are of.

        Raises:
            ResultError: they have other classes, images or ground truth (as far as the counts show it), or no counts.
        """
        ids, (_, _, present) = self._counts(results[0].signature)
        for one in results:
            others, (_, _, there) = self._counts(one.signature)
            if one.classes != results[0].classes:
                raise ResultError("These trials have other classes.")
            if others != ids or not np.array_equal(there, present):
                raise ResultError("These trials were not tested on the same images with the same ground truth.")
        return len(ids)

    def _terms(self, signature: str, convention: str) -> tuple[Floats, Floats]:
        intersection, union, present = self._counts(signature)[1]
        return ratio_terms(intersection, union, present, convention)

    def _computed(self, signature: str, convention: str, background: bool) -> tuple[Floats, Floats]:
        """In percent, as it is [K+1] and on every resample [R,K+1]; the last column is the mean over the classes."""
        terms = self._terms(signature, convention)
        (point,) = resampling.resampled(*terms, np.ones((1, len(terms[0]))), background)
        return point, resampling.resampled(*terms, self._weights(len(terms[0])), background)

    def _read(self, signature: str) -> tuple[list[str], list[Array]]:
        """Ids, and intersection, union and presence [N,K] beside a result, sorted by id: the order in a file must not
        change an interval.

        Raises:
            ResultError: there are none, or they cannot be read.
        """
        path = self.folders[signature] / PER_IMAGE_FILE
        if not path.is_file():
            raise ResultError(f"there is no {PER_IMAGE_FILE} beside the result", path=path)
        ids, _, *counts = read_per_image_arrays(path)
        order = np.argsort(np.array(ids, dtype=object), kind="stable")
        return [ids[row] for row in order], [each[order] for each in counts]


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


# ---------------------------------------------------------------------------------------------- tables and sentences


def interval_grid(
    title: str, rows: Iterable[tuple[str, Row]], columns: Sequence[str], paired: Mapping[str, Paired] | None = None
) -> Grid | None:
    """A line for each of our rows (by name) that has an interval; None where none has.

    Args:
        paired: by name of a row, its differences to the default setting; None without such columns.
    """
    found = [(name, row.n, row.interval) for name, row in rows if row.interval and not row.interval.missing]
    if not found:
        return None
    header, caption = ["n", "images", *columns, "avg"], interval_lines([interval for _, _, interval in found])
    lines = []
    for name, n, interval in found:
        ends = [*(interval.per_class.get(column) for column in columns), interval.average]
        lines.append([name, str(n), str(interval.images), *map(bounds_text, ends)])
    if paired is None:
        return Grid(title, ["method", *header], [Line(cells) for cells in lines], caption)
    header += ["Δ", "seeds agree", f"Δ, {PERCENT} % interval", "p"]
    lines = [[*cells, *(paired_cells(paired[cells[0]])[2:] if cells[0] in paired else [DASH] * 4)] for cells in lines]
    if paired:
        caption.append("Δ: as in the table above, over the seeds that the setting and the default both have")
        caption.append(paired_line(next(iter(paired.values())), "settings", len(paired)))
    return Grid(title, ["setting", *header], [Line(cells) for cells in lines], caption)


def pairs_grid(title: str, pairs: Sequence[Pair], rows: Sequence[Row]) -> Grid | None:
    """A line for each pair; None without pairs."""
    shown = [
        (Line([row_name(pair.a, rows), row_name(pair.b, rows), *paired_cells(pair.paired)]), pair.paired)
        for pair in pairs
        if pair.paired is not None
    ]
    if not shown:
        return None
    header = ["A", "B", "n", "images", "A − B", "seeds agree", f"{PERCENT} % interval", "p"]
    caption = [
        "A − B: difference of the averages in percentage points, mean±sample standard deviation over the n seeds that "
        "both have",
        paired_line(shown[0][1], "pairs", len(shown)),
    ]
    if len(shown) > MOST_PAIRS:
        caption.append(f"{len(shown) - MOST_PAIRS} more pairs are in pairs.csv and pairs.json")
    reasons = grouped(
        (pair.reason, f"{row_name(pair.a, rows)} and {row_name(pair.b, rows)}") for pair in pairs if pair.reason
    )
    caption += [f"not paired: {'; '.join(names)}: {reason}" for reason, names in reasons.items()]
    return Grid(title, header, [line for line, _ in shown[:MOST_PAIRS]], caption)


def paired_cells(paired: Paired) -> list[str]:
    """Seeds, images, difference of the averages, seeds with its sign, its interval and p."""
    average = paired.average
    return [
        str(len(paired.seeds)), str(paired.images), stat_text(Stat(average.mean, average.std), sign="+"),
        f"{average.agree} of {len(paired.seeds)}", bounds_text(average.bounds, sign="+"),
        p_text(average.p, paired.resamples),
    ]  # fmt: skip


def interval_lines(found: Sequence[Interval]) -> list[str]:
    """What has to be known of intervals."""
    some = found[0]
    lines = [
        f"percentile intervals of {some.resamples} resamples of the test images (seed {some.seed}), the same for "
        f"all seeds and rows: what other test images of this kind would change, not what other seeds or support "
        f"images would"
    ]
    thin = {
        (name, number)
        for interval in found
        for name, number in interval.class_images.items()
        if 0 < number < MIN_IMAGES <= interval.images
    }
    if thin:
        names = listed(f"{name} ({number})" for name, number in sorted(thin))
        lines.append(f"classes that fewer than {MIN_IMAGES} images have, with intervals that are too short: {names}")
    return lines


def paired_line(paired: Paired, of: str, number: int) -> str:
    """What has to be known of paired differences; `of` what there are `number` of."""
    unadjusted = f", not adjusted for the number of {of} ({number})" if number > 1 else ""
    return (
        f"paired bootstrap: {paired.resamples} resamples of the test images (seed {paired.seed}), the same on both "
        f"sides and for all seeds; p: two-sided{unadjusted}; both speak of other test images, not of other seeds: see "
        "how many seeds agree on the sign"
    )


def uncertainty_lines(rows: Iterable[tuple[str, int, Interval | None]]) -> list[str]:
    """What the mean±deviation of rows does not show, and where the rest stands; rows as name, seeds, interval."""
    rows = list(rows)
    images = {name: interval.images for name, _, interval in rows if interval and not interval.missing}
    lines = claim_lines((name, seeds, images.get(name)) for name, seeds, _ in rows)
    lines += [SHOWN_ELSEWHERE] if images else []
    absent = grouped((interval.missing, name) for name, _, interval in rows if interval and interval.missing)
    return lines + [f"no interval over test images: {listed(names)}: {why}" for why, names in absent.items()]


def claim_lines(rows: Iterable[tuple[str, int, int | None]]) -> list[str]:
    """Sentences on rows with too few seeds or test images; rows as name, seeds, images (None where unknown)."""
    rows = list(rows)

    def too_few(found: Sequence[tuple[str, int]], what: str) -> str:
        who = "" if len(found) == len(rows) else f" ({listed(name for name, _ in found)})"
        return f"{listed(sorted(number for _, number in found))} {what}{who} are too few for a claim"

    lines = []
    if few := [(name, seeds) for name, seeds, _ in rows if 0 < seeds < MIN_SEEDS]:
        lines.append(
            f"n = {too_few(few, 'seeds')} about other seeds or support images, whatever the difference: it takes "
            f"n = {MIN_SEEDS} on both sides before an exact test can come below p = 0.05"
        )
    if thin := [(name, images) for name, _, images in rows if images is not None and images < MIN_IMAGES]:
        lines.append(f"{too_few(thin, 'test images')}: below {MIN_IMAGES} intervals are too short")
    return lines


def welch_lines(rows: Sequence[Row], published: Published | None) -> list[str]:
    """The tests against published rows: none or one line."""
    parts = [
        f"{row_name(row, rows)} (n = {row.n}): t = {found['statistic']:.2f}, p = {found['p']:.2g}"
        for row in rows
        if (found := row_welch(row, published)) is not None
    ]
    about = "Welch's t-test of the average over seeds against the published mean±std"
    return [f"{about}: {'; '.join(parts)}"] if parts else []


def bounds_text(bounds: Bounds | None, sign: str = "") -> str:
    """`low to high` with one decimal."""
    if bounds is None:
        return DASH
    return f"{bounds.low:{sign}.1f} to {bounds.high:{sign}.1f}"


def p_text(p: float | None, resamples: int) -> str:
    """A p-value in short; `≤` where it is the smallest that the resamples can give."""
    if p is None:
        return DASH
    least = 2 / (resamples + 1)
    return f"≤ {least:.1g}" if p <= least < 1 else f"{p:.2g}" if p < 0.995 else "1"


def interval_csv(interval: Interval | None, columns: Sequence[str]) -> dict[str, object]:
    """An interval as the cells of a CSV line: `<column>_low`, `<column>_high` and what the interval is."""
    usable = interval if interval is not None and not interval.missing else None
    found = {**usable.per_class, "average": usable.average} if usable else {}
    cells: dict[str, object] = {}
    for column in (*columns, "average"):
        cells |= {f"{column}_{end}": getattr(found.get(column), end, None) for end in ("low", "high")}
    cells |= {f"interval_{name}": getattr(usable, name, None) for name in ("percent", "images", "resamples")}
    return cells | {"interval_missing": interval.missing if interval else ""}


_PARTS = ("mean", "std", "agree", "low", "high", "p")


def pair_files(
    pairs: Sequence[Pair], rows: Sequence[Row], columns: Sequence[str], about: Mapping[str, Any]
) -> dict[str, str]:
    """All pairs as the contents of `pairs.csv` and `pairs.json`.

    Args:
        rows: of the report, by which the pairs' rows are named. about: what every line says, by its column.
    """
    every = [*columns, "average"]
    entries, lines = [], []
    for pair in pairs:
        facts: dict[str, Any] = {
            **about, "data": pair.a.data, "preset": pair.a.preset, "a": row_name(pair.a, rows),
            "b": row_name(pair.b, rows), "a_series": pair.a.series, "b_series": pair.b.series,
            "unit": "percentage points", "reason": pair.reason,
        }  # fmt: skip
        entries.append({**facts, "paired": pair.paired})
        if (paired := pair.paired) is not None:
            facts |= {"n": len(paired.seeds), "seeds": spaced(paired.seeds)}
            facts |= {name: getattr(paired, name) for name in ("images", "percent", "resamples")}
            for column in every:
                found = paired.average if column == "average" else paired.per_class[column]
                facts |= {f"{column}_{part}": value for part, value in difference_cells(found).items()}
        lines.append(facts)
    names = [*about, "data", "preset", "a", "b", "a_series", "b_series", "unit", "reason", "n", "seeds", "images"]
    names += ["percent", "resamples", *(f"{column}_{part}" for column in every for part in _PARTS)]
    return {"pairs.csv": csv_of(lines, names), "pairs.json": json_of(entries)}


def difference_cells(found: Difference) -> dict[str, float | None]:
    """A difference as cells of a CSV line: mean, std, agree, low, high and p."""
    low, high = (found.bounds.low, found.bounds.high) if found.bounds else (None, None)
    return dict(zip(_PARTS, (found.mean, found.std, found.agree, low, high, found.p), strict=True))

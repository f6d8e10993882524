"""Intervals and paired differences as tables, and the sentences that say what numbers do not show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from slime_bench.report.aggregate import Row, comparison
from slime_bench.report.grid import DASH, Grid, Line, numbers, stat_text
from slime_bench.report.intervals import Interval, Paired
from slime_bench.report.method_facts import listed
from slime_bench.report.pairs import Pair, row_name
from slime_bench.report.published import Published, Stat
from slime_bench.report.statistics import MIN_IMAGES, MIN_SEEDS, PERCENT, Bounds, Welch, welch

MOST_PAIRS = 15
"""Pairs of a section that Markdown and the console show: those of six rows. pairs.csv and pairs.json have all."""
SHOWN_ELSEWHERE = (
    f"{PERCENT} % intervals over test images and paired differences: in tables of their own (--intervals prints them)"
)


def interval_grid(title: str, rows: Sequence[Row], columns: Sequence[str]) -> Grid | None:
    """A line for each of our rows that has an interval; None where none has."""
    shown = [row for row in rows if row.interval is not None and not row.interval.missing]
    if not shown:
        return None
    lines = [
        Line([row_name(row, rows), str(row.n), *interval_cells(row.interval, columns)], ours=True)
        for row in shown
        if row.interval is not None
    ]
    found = [(row_name(row, rows), row.interval) for row in rows if row.interval is not None]
    return Grid(title, ["method", "n", "images", *columns, "avg"], lines, interval_lines(found))


def pairs_grid(title: str, pairs: Sequence[Pair], rows: Sequence[Row]) -> Grid | None:
    """A line for each pair; None without pairs."""
    shown = [pair for pair in pairs if pair.paired is not None]
    if not shown:
        return None
    first = next(pair.paired for pair in shown if pair.paired is not None)
    header = ["A", "B", "n", "images", "A − B", "seeds agree", f"{PERCENT} % interval", "p"]
    lines = [
        Line([row_name(pair.a, rows), row_name(pair.b, rows), *paired_cells(pair.paired)], ours=True)
        for pair in shown[:MOST_PAIRS]
        if pair.paired is not None
    ]
    caption = [
        "A − B: difference of the averages in percentage points, mean±sample standard deviation over the n seeds that "
        "both have",
        *paired_lines(first, "pairs", len(shown)),
    ]
    if len(shown) > MOST_PAIRS:
        caption.append(f"{len(shown) - MOST_PAIRS} more pairs are in pairs.csv and pairs.json")
    reasons: dict[str, list[str]] = {}
    for pair in pairs:
        if pair.reason:
            reasons.setdefault(pair.reason, []).append(f"{row_name(pair.a, rows)} and {row_name(pair.b, rows)}")
    caption += [f"not paired: {'; '.join(names)}: {reason}" for reason, names in reasons.items()]
    return Grid(title, header, lines, caption)


def interval_cells(interval: Interval, columns: Sequence[str]) -> list[str]:
    """Images, then the intervals of the columns and of the average."""
    return [
        str(interval.images),
        *(bounds_text(interval.per_class.get(column)) for column in columns),
        bounds_text(interval.average),
    ]


def paired_cells(paired: Paired) -> list[str]:
    """Seeds, images, difference of the averages, seeds with its sign, its interval and p."""
    average = paired.average
    return [
        str(len(paired.seeds)),
        str(paired.images),
        stat_text(Stat(average.mean, average.std), sign="+"),
        f"{average.agree} of {len(paired.seeds)}",
        bounds_text(average.bounds, sign="+"),
        p_text(average.p, paired.resamples),
    ]


def interval_lines(found: Iterable[tuple[str, Interval]]) -> list[str]:
    """What has to be known of the intervals of rows (by name)."""
    found = list(found)
    some = next((interval for _, interval in found if not interval.missing), None)
    lines = []
    if some is not None:
        lines.append(
            f"percentile intervals of {some.resamples} resamples of the test images (seed {some.seed}), the same for "
            f"all seeds and rows: what other test images of this kind would change, not what other seeds or support "
            f"images would"
        )
        thin = sorted(
            {
                (name, number)
                for _, interval in found
                for name, number in interval.class_images.items()
                if 0 < number < MIN_IMAGES and interval.images >= MIN_IMAGES
            }
        )
        if thin:
            names = listed([f"{name} ({number})" for name, number in thin])
            lines.append(
                f"classes that fewer than {MIN_IMAGES} images have, with intervals that are too short: {names}"
            )
    return lines


def missing_lines(found: Iterable[tuple[str, Interval]]) -> list[str]:
    """For which rows (by name) there is no interval, and why."""
    reasons: dict[str, list[str]] = {}
    for name, interval in found:
        if interval.missing:
            reasons.setdefault(interval.missing, []).append(name)
    return [f"no interval over test images: {listed(names)}: {reason}" for reason, names in reasons.items()]


def paired_lines(paired: Paired, of: str, number: int) -> list[str]:
    """What has to be known of paired differences; `of` what there are `number` of."""
    unadjusted = f", not adjusted for the number of {of} ({number})" if number > 1 else ""
    return [
        f"paired bootstrap: {paired.resamples} resamples of the test images (seed {paired.seed}), the same on both "
        f"sides and for all seeds; p: two-sided{unadjusted}; both speak of other test images, not of other seeds: see "
        "how many seeds agree on the sign"
    ]


def claim_lines(rows: Iterable[tuple[str, int, int | None]]) -> list[str]:
    """Sentences on rows with too few seeds or test images; rows as name, seeds, images (None where unknown)."""
    rows = list(rows)
    lines = []
    few = [(name, seeds) for name, seeds, _ in rows if 0 < seeds < MIN_SEEDS]
    if few:
        counts = numbers(sorted({seeds for _, seeds in few}))
        who = "" if len(few) == len(rows) else f" ({listed([name for name, _ in few])})"
        lines.append(
            f"n = {counts} seeds{who} are too few for a claim about other seeds or support images, whatever the "
            f"difference: it takes n = {MIN_SEEDS} on both sides before an exact test can come below p = 0.05"
        )
    thin = {name: images for name, _, images in rows if images is not None and images < MIN_IMAGES}
    if thin:
        counts = numbers(sorted(set(thin.values())))
        who = "" if len(thin) == len(rows) else f" ({listed(list(thin))})"
        lines.append(f"{counts} test images{who} are too few for a claim: below {MIN_IMAGES} intervals are too short")
    return lines


def row_welch(row: Row, published: Published | None) -> Welch | None:
    """Welch's t-test of our average against the published one, where they may be compared and both have what it takes.

    The published deviation is taken for a sample deviation over the stated runs, as the papers do not say which it is.
    """
    other = comparison(row, published)
    if other is None:
        return None
    ours, theirs = row.average, other.average
    return welch(ours.mean, ours.std, row.n, theirs.mean, theirs.std, other.n)


def welch_lines(rows: Sequence[Row], published: Published | None) -> list[str]:
    """The tests against published rows: none or one line."""
    tested: Mapping[str, Welch] = {
        f"{row_name(row, rows)} (n = {row.n})": found
        for row in rows
        if (found := row_welch(row, published)) is not None
    }
    if not tested:
        return []
    parts = [f"{name}: t = {found.statistic:.2f}, p = {found.p:.2g}" for name, found in tested.items()]
    return [f"Welch's t-test of the average over seeds against the published mean±std: {'; '.join(parts)}"]


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


def flat(interval: Interval | None, columns: Sequence[str]) -> dict[str, object]:
    """An interval as the cells of a CSV line: `<column>_low`, `<column>_high` and what the interval is."""
    cells: dict[str, object] = {}
    for column in [*columns, "average"]:
        found = None
        if interval is not None:
            found = interval.average if column == "average" else interval.per_class.get(column)
        cells |= {f"{column}_low": found.low if found else None, f"{column}_high": found.high if found else None}
    known = interval is not None and not interval.missing
    cells |= {
        "interval_percent": interval.percent if interval and known else None,
        "interval_images": interval.images if interval and known else None,
        "interval_resamples": interval.resamples if interval and known else None,
        "interval_missing": interval.missing if interval else "",
    }
    return cells

"""Intervals and paired differences as tables, and the sentences that say what numbers do not show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from slime_bench.metrics.bootstrap import PERCENT, Bounds, Difference
from slime_bench.report.published import Published, Stat
from slime_bench.report.rows import Row, row_name
from slime_bench.report.statistics import MIN_IMAGES, MIN_SEEDS, Interval, Pair, Paired, row_welch
from slime_bench.report.table import DASH, Grid, Line, csv_of, grouped, json_of, listed, numbers, stat_text

MOST_PAIRS = 15
"""Pairs of a section that Markdown and the console show: those of six rows. pairs.csv and pairs.json have all."""
SHOWN_ELSEWHERE = (
    f"{PERCENT} % intervals over test images and paired differences: in tables of their own (--intervals prints them)"
)


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
        bounds = [*(interval.per_class.get(column) for column in columns), interval.average]
        lines.append([name, str(n), str(interval.images), *map(bounds_text, bounds)])
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
        str(len(paired.seeds)),
        str(paired.images),
        stat_text(Stat(average.mean, average.std), sign="+"),
        f"{average.agree} of {len(paired.seeds)}",
        bounds_text(average.bounds, sign="+"),
        p_text(average.p, paired.resamples),
    ]


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
    every = {
        **dict.fromkeys([*columns, "average"]),
        **({**usable.per_class, "average": usable.average} if usable else {}),
    }
    cells: dict[str, object] = {
        f"{column}_{end}": getattr(every[column], end, None)
        for column in [*columns, "average"]
        for end in ("low", "high")
    }
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
            facts |= {"n": len(paired.seeds), "seeds": " ".join(map(str, paired.seeds))}
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

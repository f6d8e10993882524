"""Parts of the page: the grids of the Markdown tables with what the switches make of them, charts, and what single
trials show: learning curves, confusion, and where and with what they ran."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Final

import numpy as np
from markupsafe import Markup

from slime_bench.metrics import CONVENTION_RULES
from slime_bench.report.ablation import AblationReport
from slime_bench.report.ablation_table import ablation_grid
from slime_bench.report.charts import STYLES, Bar, Point, Series, bars, line_chart, mean_curve, points, thinned
from slime_bench.report.collect import commit_of, read_optional
from slime_bench.report.rows import PAPER_CONVENTION, PAPER_PRESET, Row, aggregate, average_percent, row_name, stats_of
from slime_bench.report.subject import Section, section_grid
from slime_bench.report.table import DASH, Grid, listed
from slime_bench.results.artifacts import CONFUSION_FILE, CURVES_FILE, read_confusion, read_curves
from slime_bench.results.identity import flatten
from slime_bench.results.result import TrialResult

STATES: Final = tuple(product(CONVENTION_RULES, (True, False)))
"""Convention, and whether the background counts in the average."""
MOST_BARS: Final = 16
_NUMBER = re.compile(r"[≤ ]*[+-]?\d")
MOST_POINTS: Final = 120
"""Of a learning curve; more are averaged in blocks, since a chart has no more pixels for them."""
MOST_PANELS: Final = 12
MOST_CLASSES: Final = 40
"""Of a confusion matrix."""
_SHADES = 10


@dataclass(frozen=True)
class Chart:
    """A chart: `views` by the number of the state, for an ablation with the number of the choice behind a hyphen."""

    id: str
    title: str
    views: dict[str, Markup]
    choices: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """A table of results and what belongs to it.

    Attributes:
        states: the table in each of `STATES`. series: of each line, empty for published ones.
        more: tables that do not follow the switches.
    """

    table: Grid
    states: Sequence[Grid]
    series: Sequence[str]
    chart: Chart | None
    more: Sequence[Grid]


def row_labels(rows: Sequence[Row]) -> dict[str, str]:
    """Series -> what a row is called on the page: short where that tells it from the others."""
    short = {row.series: row_name(row, [row]) for row in rows}
    return short if len(set(short.values())) == len(rows) else {row.series: row_name(row, rows) for row in rows}


def comparable(state: tuple[str, bool]) -> bool:
    """Whether published numbers follow the same rule."""
    return state == (PAPER_CONVENTION, True)


def section_part(section: Section, results: Sequence[TrialResult], key: str) -> Part:
    """The paper's table, our rows and the published ones, and its bars.

    Args:
        results: that hold the trials of our rows. key: the chart's name on the page.
    """
    ours = {row.series for row in section.rows if not row.published}
    trials = [one for one in results if one.series in ours]
    states = []
    for state in STATES:
        found = {row.series: row for row in aggregate(trials, *state)}
        rows = [
            row if row.published else replace(found[row.series], default=row.default, variant=row.variant)
            for row in section.rows
        ]
        states.append(replace(section, rows=rows))
    series, tables = [row.series for row in section.rows], [section_grid(each) for each in states]
    return Part(section_grid(section), tables, series, _bars(states, key), section.extra)


def ablation_part(report: AblationReport, intervals: Grid | None) -> Part:
    """The settings of an ablation, each with the published row of the same setting under it, and their chart."""
    states, series = [report.under(*state) for state in STATES], []
    for each in report.shown:
        series += [each.row.series if each.row else "", *([""] if each.published else [])]
    chart, tables = _points(states, report.columns), map(ablation_grid, states)
    return Part(ablation_grid(report), list(tables), series, chart, [intervals] if intervals else [])


def wordy(table: Grid) -> list[bool]:
    """Whether each column holds words, which may wrap."""

    def is_word(text: str) -> bool:
        return not _NUMBER.match(text) and any(map(str.isalpha, text))

    return [
        any(is_word(line.cells[place]) for line in table.lines if name not in line.exact)
        for place, name in enumerate(table.header)
    ]


def follows(versions: Sequence[Grid], row: int, place: int) -> dict[str, str]:
    """A cell's texts and numbers in each of `STATES`."""
    lines, name = [each.lines[row] for each in versions], versions[0].header[place]
    return stated([line.cells[place] for line in lines], [line.exact.get(name) for line in lines])


def stated(texts: Iterable[str], values: Iterable[float | None]) -> dict[str, str]:
    """Texts and numbers as the page's script reads them."""
    numbers = ("" if value is None else repr(round(value, 10)) for value in values)
    return {"texts": "|".join(texts), "values": "|".join(numbers)}


# ------------------------------------------------------------------------------------------------------------ charts


def _bars(states: Sequence[Section], key: str) -> Chart | None:
    """Bars of a section's rows for each class, ours and the paper's rows of the same method and shots."""
    ours = [row for row in states[0].rows if not row.published]
    theirs = [row for row in states[0].rows if row.published]
    labels = row_labels(ours)
    entries: list[tuple[str, int, Row]] = []
    for style, row in enumerate(ours):
        entries.append((labels[row.series], style % STYLES, row))
        for other in [each for each in theirs if (each.key, each.shots) == (row.method, row.shots)]:
            theirs.remove(other)
            label = f"{other.label} {other.shots}-shot, published" + (", other data" if other.other_data else "")
            entries.append((label, style % STYLES, other))
    if not ours or len(entries) > MOST_BARS:
        return None
    views = {}
    for index, state in enumerate(STATES):
        rows = {row.series: row for row in states[index].rows if not row.published}
        drawn = []
        for letter, (label, style, row) in zip(ascii_uppercase, entries, strict=False):
            if comparable(state) or not row.published:
                found = rows.get(row.series, row)
                drawn.append(Bar(letter, label, style, row.published, {**found.per_class, "": found.average}))
        views[str(index)] = bars(key, drawn, states[0].columns)
    return Chart(key, f"{states[0].title}, by class", views)


def _points(states: Sequence[AblationReport], classes: list[str]) -> Chart:
    """The settings of an ablation in the order of its grid, with the paper's points."""
    report = states[0]
    paper = f"the paper{f', {report.table.source}' if report.table else ''}"
    paper += "" if report.facts["preset"] == PAPER_PRESET else " (other data)"

    views = {}
    for (index, state), (choice, name) in product(enumerate(STATES), enumerate(["avg", *classes])):
        drawn = []
        for each in states[index].shown:
            both = (each.row, each.published if comparable(state) else None)
            stats = (stats_of(row, classes)[name] for row in both)
            drawn.append(Point(each.setting.label, each.setting.default, *stats))
        legend = paper if comparable(state) and any(each.published for each in report.shown) else ""
        views[f"{index}-{choice}"] = points("points0", drawn, name if choice else "average", legend)
    return Chart("points0", f"Ablation {report.name}: IoU by setting", views, ["average", *classes])


# ------------------------------------------------------------------------------------------------------- single trials


def curves_of(label: str, trials: Sequence[TrialResult], folders: Mapping[str, Path]) -> dict[str, Any] | None:
    """One small chart for each value that a row's trials logged; None where none of them kept any."""
    found = {one.seed: read_optional(folders[one.signature] / CURVES_FILE, read_curves) or {} for one in trials}
    names = sorted({name for curves in found.values() for name, (steps, _) in curves.items() if steps})
    if not names:
        return None
    panels = []
    for name in names[:MOST_PANELS]:
        every = {seed: curves[name] for seed, curves in found.items() if name in curves and curves[name][0]}
        lines = [
            Series(f"seed {seed}", *thinned(curve, MOST_POINTS), style=index)
            for index, (seed, curve) in enumerate(every.items())
        ]
        mean = mean_curve(every.values())
        if len(every) > 1 and mean[0]:
            lines.append(Series("mean over seeds", *thinned(mean, MOST_POINTS), style=None))
        panels.append(line_chart(name, f"{name} of {label} by optimisation step", lines, "step"))
    notes = [f"{len(names) - MOST_PANELS} more logged values are in {CURVES_FILE}"] if len(names) > MOST_PANELS else []
    longest = max(len(steps) for curves in found.values() for steps, _ in curves.values())
    if longest > MOST_POINTS:
        notes.append(f"each point is the mean of {-(-longest // MOST_POINTS)} logged values or fewer")
    return {"label": label, "panels": panels, "note": "; ".join(notes)}


def confusion_of(label: str, trials: Sequence[TrialResult], folders: Mapping[str, Path]) -> dict[str, Any] | None:
    """A row's matrix, each line as shares of its class, over those of its seeds that kept one; None where none did."""
    found = {one.seed: read_optional(folders[one.signature] / CONFUSION_FILE, read_confusion) for one in trials}
    seeds = [seed for seed, each in found.items() if each is not None]
    if not seeds or len(trials[0].classes) > MOST_CLASSES:
        return None
    pixels = np.sum([each[1] for each in found.values() if each is not None], axis=0)
    note = "" if len(seeds) == len(trials) else f"of seed {', '.join(map(str, seeds))} alone: the others kept none"
    rows = []
    for name, line in zip(trials[0].classes, pixels.tolist(), strict=True):
        shares = [100.0 * value / sum(line) for value in line] if sum(line) else []
        cells = [(f"{value:.1f}", round(value / 100 * _SHADES)) for value in shares] or [(DASH, 0)] * len(line)
        rows.append((name, cells, f"{sum(line):,}"))
    return {"label": label, "rows": rows, "note": note}


# -------------------------------------------------------------------------------------------------------- provenance


def shared_facts(every: Sequence[tuple[TrialResult, Mapping[str, Any]]]) -> list[tuple[str, str]]:
    """One line for each fact that a reader asks for first, with all its distinct values."""
    found = [each for _, each in every]
    seconds = [sum(each["seconds"].values()) for each in found if each.get("seconds")]
    peaks = [peak for each in found for key in ("peak_gpu_bytes", "peak_rss_bytes") if (peak := each.get(key))]
    silent = sum(not each for each in found)

    def distinct(texts: Sequence[str | None]) -> str:
        return listed(text for text in texts if text) or "not recorded"

    packages = ("slime-bench", "torch", "diffusers", "transformers", "numpy")
    versions = {name: distinct([each.get("packages", {}).get(name) for each in found]) for name in packages}
    lines = [
        ("code", distinct([commit_of(each, " + uncommitted changes") for each in found])),
        ("device", distinct([each.get("device") for each in found])),
        ("system", distinct([each.get("platform") for each in found])),
        ("versions", "; ".join(f"{name} {version}" for name, version in versions.items())),
        ("weights, sha256", distinct([one.fingerprints.get("backbone", "")[:12] for one, _ in every])),
        ("data, sha256", distinct([one.fingerprints.get("data", "")[:12] for one, _ in every])),
        ("time", f"{sum(seconds):.0f} s in {len(seconds)} trials" if seconds else "not recorded"),
        ("peak memory", _memory(max(peaks)) if peaks else "not recorded"),
    ]
    unread = f"{silent} of {len(every)} trials have no readable environment.json"
    return [*lines, *([("not recorded", unread)] if silent else [])]


def trial_facts(label: str, one: TrialResult, found: Mapping[str, Any], folder: str, opened: int) -> Any:
    """One trial's overview as cells, and everything that it recorded. opened: number of the page's first state."""
    values = [next(iter(average_percent(one, *state)), None) for state in STATES]
    texts = [DASH if value is None else f"{value:.1f}" for value in values]
    seconds, peak = found.get("seconds"), found.get("peak_gpu_bytes") or found.get("peak_rss_bytes")
    packages = [f"{name} {version}" for name, version in sorted(found.get("packages", {}).items()) if version]
    rest = {key: value for key, value in found.items() if key not in ("fingerprints", "packages")}
    return {
        "label": label,
        "seed": one.seed,
        "series": one.series,
        "average": texts[opened],
        "states": stated(texts, values),
        "cells": [
            f"{sum(seconds.values()):.1f}" if seconds else DASH,
            _memory(peak) if peak else DASH,
            found.get("device") or DASH,
            commit_of(found, " + uncommitted changes") or DASH,
            (found.get("finished") or DASH)[:16].replace("T", " "),
        ],
        "facts": {
            "folder": folder,
            "signature": one.signature,
            "support images": ", ".join(one.support_ids) or "none",
            "test images": one.num_test_images,
            **{f"prepared.{key}": value for key, value in one.prepared.items()},
            **{f"sha256 of {key}": value for key, value in sorted(one.fingerprints.items())},
            **{key: value for key, value in sorted(flatten(rest)) if value is not None},
            "packages": ", ".join(packages) or "not recorded",
        },
    }


def _memory(size: float) -> str:
    return f"{size / 1024**2:,.0f} MiB"

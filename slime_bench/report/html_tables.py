"""Tables and charts of the page: the grids of the Markdown tables, with what the switches make of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from string import ascii_uppercase
from typing import Final

from markupsafe import Markup

from slime_bench.metrics import CONVENTION_RULES
from slime_bench.report.ablation import AblationReport
from slime_bench.report.ablation_table import ablation_grid
from slime_bench.report.charts import STYLES, Bar, Point, bars, points
from slime_bench.report.published import PublishedRow, Stat
from slime_bench.report.rows import NOTHING, PAPER_CONVENTION, PAPER_PRESET, Row, aggregate, column_order, row_name
from slime_bench.report.subject import Section, section_grid
from slime_bench.report.table import Grid
from slime_bench.results.result import TrialResult

STATES: Final = tuple(product(CONVENTION_RULES, (True, False)))
"""Convention, and whether the background counts in the average."""
MOST_BARS: Final = 16
_NUMBER = re.compile(r"[≤ ]*[+-]?\d")


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
    chart, tables = _points(states, column_order(report.published, report.classes)), map(ablation_grid, states)
    return Part(ablation_grid(report), list(tables), series, chart, [intervals] if intervals else [])


def wordy(table: Grid, place: int) -> bool:
    """Whether a column holds words, which may wrap."""
    cells = [line.cells[place] for line in table.lines if table.header[place] not in line.exact]
    return any(not _NUMBER.match(text) and any(map(str.isalpha, text)) for text in cells)


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

    def number(row: Row | PublishedRow | None, name: str) -> Stat:
        return NOTHING if row is None else row.per_class.get(name, NOTHING) if name else row.average

    views = {}
    for (index, state), (choice, name) in product(enumerate(STATES), enumerate(["", *classes])):
        beside = comparable(state)
        drawn = [
            Point(
                each.setting.label,
                each.setting.default,
                number(each.row, name),
                number(each.published if beside else None, name),
            )
            for each in states[index].shown
        ]
        legend = paper if beside and any(each.published for each in report.shown) else ""
        views[f"{index}-{choice}"] = points("points0", drawn, name or "average", legend)
    return Chart("points0", f"Ablation {report.name}: IoU by setting", views, ["average", *classes])

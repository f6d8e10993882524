"""Tables and charts of the page: the cells of the Markdown tables, with what the switches make of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
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
from slime_bench.report.table import Grid, Line
from slime_bench.results.result import TrialResult

STATES: Final = tuple(product(CONVENTION_RULES, (True, False)))
"""Convention, and whether the background counts in the average."""
MOST_BARS: Final = 16
_LEADING = re.compile(r"[≤≥ ]*([+-]?\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: as the Markdown table has it. value: what is sorted by, None for its text.
        column: name of the class whose column this is, `avg` for the average, else empty.
        states: where the switches change it, text and value in each of `STATES`.
        words: whether its column holds words, which may wrap.
    """

    text: str
    value: float | None = None
    column: str = ""
    states: Sequence[tuple[str, float | None]] = ()
    words: bool = False

    @property
    def texts(self) -> str:
        return "|".join(text for text, _ in self.states)

    @property
    def values(self) -> str:
        return "|".join("" if value is None else repr(round(value, 10)) for _, value in self.states)


@dataclass(frozen=True)
class Table:
    """A table; `metric` is the index of the caption's line that names the metric, None where no switch changes it.

    Attributes:
        lines: whether it is ours, its series, and its cells.
    """

    title: str
    header: list[Cell]
    lines: list[tuple[bool, str, list[Cell]]]
    caption: list[str]
    metric: int | None = None


@dataclass(frozen=True)
class Chart:
    """A chart: `views` by the number of the state, for an ablation with the number of the choice behind a hyphen."""

    id: str
    title: str
    views: dict[str, Markup]
    choices: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """A table of results and what belongs to it: its chart, and the tables that do not follow the switches."""

    table: Table
    chart: Chart | None
    more: list[Table]


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
    ours = [row.series for row in section.rows if not row.published]
    trials = [one for one in results if one.series in ours]
    states = []
    for state in STATES:
        found = {row.series: row for row in aggregate(trials, *state)}
        rows = [
            row if row.published else replace(found[row.series], default=row.default, variant=row.variant)
            for row in section.rows
        ]
        states.append(replace(section, rows=rows))
    table = _table(section_grid(section), section.columns, [section_grid(each) for each in states], ours)
    return Part(table, _bars(states, key), [plain_table(grid, section.columns) for grid in section.extra])


def ablation_part(report: AblationReport, intervals: Grid | None) -> Part:
    """The settings of an ablation, each with the published row of the same setting under it, and their chart."""
    classes = column_order(report.published, report.classes)
    states = [report.under(*state) for state in STATES]
    series = [each.row.series if each.row else "" for each in report.shown]
    table = _table(ablation_grid(report), classes, [ablation_grid(each) for each in states], series)
    return Part(table, _points(states, classes), [plain_table(intervals, classes)] if intervals else [])


# ------------------------------------------------------------------------------------------------------------ tables


def plain_table(grid: Grid, classes: Sequence[str]) -> Table:
    """A table whose numbers do not follow the switches; columns named after classes follow their filter."""
    return replace(_table(grid, classes, [], []), metric=None)


def _table(grid: Grid, classes: Sequence[str], states: Sequence[Grid], series: Sequence[str]) -> Table:
    """The table with its columns of words marked as such.

    Args:
        states: the same grid in each of `STATES`. series: of our lines, where they have one.
    """
    metric = next((index for index, text in enumerate(grid.caption) if text.startswith("convention ")), None)
    names, left = [name if name in (*classes, "avg") else "" for name in grid.header], iter(series)
    lines = []
    for place, line in enumerate(grid.lines):
        cells = [Cell(text, value, name) for (text, value), name in zip(_valued(grid, line), names, strict=True)]
        if line.exact:
            every = [_valued(state, state.lines[place]) for state in states]
            for index, head in enumerate(grid.header):
                if head in line.exact and states:
                    cells[index] = replace(cells[index], states=[each[index] for each in every])
        lines.append((line.ours, next(left, "") if line.ours else "", cells))
    words = [
        bool(index and not names[index] and any(_is_word(cells[index]) for _, _, cells in lines))
        for index in range(len(names))
    ]

    def marked(cells: Sequence[Cell]) -> list[Cell]:
        return [replace(cell, words=word) for cell, word in zip(cells, words, strict=True)]

    header = marked([Cell(text, column=name) for text, name in zip(grid.header, names, strict=True)])
    return Table(grid.title, header, [(*line[:2], marked(line[2])) for line in lines], grid.caption, metric)


def _valued(grid: Grid, line: Line) -> list[tuple[str, float | None]]:
    """Texts of the cells and what they are sorted by; the first cell by its text."""
    named = list(zip(grid.header, line.cells, strict=True))
    return [(named[0][1], None), *((text, line.exact.get(name, leading(text))) for name, text in named[1:])]


def leading(text: str) -> float | None:
    """The number that a cell begins with, e.g. of `51.9±2.0`, `+2.7 to +3.9` or `≤ 0.001`."""
    found = _LEADING.match(text)
    return float(found[1]) if found else None


def _is_word(cell: Cell) -> bool:
    return cell.value is None and any(sign.isalpha() for sign in cell.text)


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

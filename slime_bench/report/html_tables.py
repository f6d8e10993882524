"""Tables and charts of the page: the cells of the Markdown tables, with what the switches make of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from string import ascii_uppercase
from typing import Final

from markupsafe import Markup

from slime_bench.metrics import CONVENTION_RULES
from slime_bench.report.ablation import AblationReport, Measured, shown, under
from slime_bench.report.ablation_table import ablation_grid
from slime_bench.report.charts import STYLES, Bar, Point, bars, points
from slime_bench.report.published import Published, PublishedRow, Stat
from slime_bench.report.rows import (
    NOTHING,
    PAPER_CONVENTION,
    PAPER_PRESET,
    Row,
    aggregate,
    column_order,
    comparison,
    difference,
    row_name,
)
from slime_bench.report.subject import Section, section_grid
from slime_bench.report.table import DASH, Grid, stat_text
from slime_bench.results.result import TrialResult

STATES: Final = tuple(product(CONVENTION_RULES, (True, False)))
"""Convention, and whether the background counts in the average."""
MOST_BARS: Final = 16
_LEADING = re.compile(r"[≤≥ ]*([+-]?\d+(?:\.\d+)?)")

Rows = Sequence[Mapping[str, Row]]
"""For each of `STATES`: series -> row."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: as the Markdown table has it. value: what is sorted by, None for its text.
        column: name of the class whose column this is, `avg` for the average, else empty.
        kind: `class`, `average`, `paper` (minus the published average) or `delta` (minus the default's average) where
            the switches change it, else empty; `states` are then its text and value in each of `STATES`.
        words: whether its column holds words, which may wrap.
    """

    text: str
    value: float | None = None
    column: str = ""
    kind: str = ""
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


def rows_under(results: Sequence[TrialResult], rows: Sequence[Row]) -> Rows:
    """The rows of `results` that are among `rows`, in each of `STATES`."""
    by_series = {row.series: row for row in rows}
    trials = [one for one in results if one.series in by_series]
    return [
        {row.series: replace(row, default=by_series[row.series].default) for row in aggregate(trials, *state)}
        for state in STATES
    ]


# ------------------------------------------------------------------------------------------------------------ tables


def section_part(section: Section, published: Published | None, states: Rows, key: str, more: list[Table]) -> Part:
    """The paper's table, our rows and the published ones, and its bars; `key` is the chart's name on the page."""
    grid = section_grid(section)
    first = len(grid.header) - 1 - section.compared - 1 - len(section.columns)
    lines = []
    for row, line in zip(section.rows, grid.lines, strict=True):
        if row.published:
            lines.append((False, "", _plain(line.cells, grid.header, section.columns)))
            continue
        own = [rows[row.series] for rows in states]
        now = STATES.index((row.convention, row.background_in_average))
        cells = _numbers(line.cells, first, section.columns, own, now)
        if section.compared:
            gaps = [difference(each, comparison(each, published)) for each in own]
            values = [gap["average"] if gap else None for gap in gaps]
            texts = [DASH if value is None else f"{value:+.1f}" for value in values]
            cells[-2] = replace(cells[-2], kind="paper", states=list(zip(texts, values, strict=True)))
        lines.append((True, row.series, cells))
    return Part(_table(grid, section.columns, lines), _bars(section, states, key), more)


def plain_table(grid: Grid, classes: Sequence[str]) -> Table:
    """A table whose numbers do not follow the switches; columns named after classes follow their filter."""
    lines = [(line.ours, "", _plain(line.cells, grid.header, classes)) for line in grid.lines]
    return replace(_table(grid, classes, lines), metric=None)


def leading(text: str) -> float | None:
    """The number that a cell begins with, e.g. of `51.9±2.0`, `+2.7 to +3.9` or `≤ 0.001`."""
    found = _LEADING.match(text)
    return float(found[1]) if found else None


def _plain(cells: Sequence[str], header: Sequence[str], classes: Sequence[str]) -> list[Cell]:
    columns = [name if name in (*classes, "avg") else "" for name in header]
    values = [None, *map(leading, cells[1:])]
    return [Cell(*each) for each in zip(cells, values, columns, strict=True)]


def _numbers(
    texts: Sequence[str], first: int, classes: Sequence[str], rows: Sequence[Row | None], now: int
) -> list[Cell]:
    """Cells of one of our rows, whose columns from `first` on are the classes and the average.

    Args:
        texts: of the cells. rows: the row in each of `STATES`; all None without a result. now: the state of `texts`.
    """
    cells = [Cell(texts[0]), *(Cell(text, leading(text)) for text in texts[1:])]
    for index, name in enumerate([*classes, "avg"], first):
        if rows[now] is None:
            cells[index] = Cell(texts[index], column=name)
            continue
        stats = [
            row.per_class.get(name, NOTHING) if index < first + len(classes) else row.average for row in rows if row
        ]
        kind = "class" if index < first + len(classes) else "average"
        cells[index] = Cell(texts[index], stats[now].mean, name, kind, [(stat_text(each), each.mean) for each in stats])
    return cells


def _table(grid: Grid, classes: Sequence[str], lines: list[tuple[bool, str, list[Cell]]]) -> Table:
    """The table with its columns of words marked as such."""
    metric = next((index for index, text in enumerate(grid.caption) if text.startswith("convention ")), None)
    header = [Cell(text, column=text if text in (*classes, "avg") else "") for text in grid.header]
    words = {
        index
        for index, head in enumerate(header)
        if index and not head.column and any(_is_word(cells[index]) for _, _, cells in lines)
    }

    def marked(cells: Sequence[Cell]) -> list[Cell]:
        return [replace(cell, words=index in words) for index, cell in enumerate(cells)]

    return Table(
        grid.title, marked(header), [(*line[:2], marked(line[2])) for line in lines], grid.caption, metric=metric
    )


def _is_word(cell: Cell) -> bool:
    return cell.value is None and any(sign.isalpha() for sign in cell.text)


def ablation_part(report: AblationReport, more: list[Table]) -> Part:
    """The settings of an ablation, each with the published row of the same setting under it, and their chart."""
    classes = column_order(report.published, report.classes)
    now = STATES.index((report.convention, report.background))
    default = next(each for each in report.measured if each.setting.default)
    states = {
        each.setting.label: [under(each.results, default.results, *state) for state in STATES] for each in shown(report)
    }
    grid = ablation_grid(report)
    lines, texts = [], iter(grid.lines)
    for each in shown(report):
        row, cells = each.row, next(texts).cells
        found = states[each.setting.label]
        made = _numbers(cells, 2, classes, [ours for ours, _ in found], now)
        if row and default.row and each is not default:
            gaps = [(stat_text(gap, sign="+"), gap.mean) for _, gap in found]
            made[-2] = Cell(cells[-2], each.difference.mean, kind="delta", states=gaps)
        lines.append((True, row.series if row else "", made))
        if each.published is not None:
            lines.append((False, "", _plain(next(texts).cells, grid.header, classes)))
    return Part(_table(grid, classes, lines), _points(report, states, classes), more)


# ------------------------------------------------------------------------------------------------------------ charts


def _bars(section: Section, states: Rows, key: str) -> Chart | None:
    """Bars of a section's rows for each class, ours and the paper's rows of the same method and shots."""
    ours = [row for row in section.rows if not row.published]
    theirs = [row for row in section.rows if row.published]
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
        drawn = []
        for letter, (label, style, row) in zip(ascii_uppercase, entries, strict=False):
            if row.published and not comparable(state):
                continue
            found = row if row.published else states[index][row.series]
            drawn.append(Bar(letter, label, style, row.published, {**found.per_class, "": found.average}))
        views[str(index)] = bars(key, drawn, section.columns)
    return Chart(key, f"{section.title}, by class", views)


def _points(
    report: AblationReport, states: Mapping[str, Sequence[tuple[Row | None, Stat]]], classes: list[str]
) -> Chart:
    """The settings of an ablation in the order of its grid, with the paper's points."""
    other = "" if report.facts["preset"] == PAPER_PRESET else " (other data)"
    source = f", {report.table.source}" if report.table else ""
    views = {}

    def number(row: Row | PublishedRow | None, name: str) -> Stat:
        return NOTHING if row is None else row.average if not name else row.per_class.get(name, NOTHING)

    def point(each: Measured, index: int, name: str, beside: bool) -> Point:
        ours = number(states[each.setting.label][index][0], name)
        return Point(each.setting.label, each.setting.default, ours, number(each.published if beside else None, name))

    for (index, state), (choice, name) in product(enumerate(STATES), enumerate(["", *classes])):
        beside = comparable(state)
        drawn = [point(each, index, name, beside) for each in shown(report)]
        paper = f"the paper{source}{other}" if beside and any(each.published for each in shown(report)) else ""
        views[f"{index}-{choice}"] = points("points0", drawn, name or "average", paper)
    return Chart("points0", f"Ablation {report.name}: IoU by setting", views, ["average", *classes])

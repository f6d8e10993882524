"""The tables of a report as the page shows them: the Markdown's cells, and what sorts and recomputes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from slime_bench.report import tables
from slime_bench.report.ablation import AblationReport, Measured
from slime_bench.report.ablation_table import ablation_grid, shown
from slime_bench.report.aggregate import Row, difference
from slime_bench.report.grid import Grid
from slime_bench.report.page.view import Cell, Line, Table
from slime_bench.report.pairs import row_name
from slime_bench.report.published import Stat

AVERAGE = "avg"
_LEADING = re.compile(r"[≤≥ ]*([+-]?\d+(?:\.\d+)?)")


def section_table(section: tables.Section) -> Table:
    """The paper's table: our rows and the published ones."""
    grid = tables.section_grid(section)
    first = len(grid.header) - 1 - section.compared - 1 - len(section.columns)
    columns = [*section.columns, AVERAGE]
    lines = []
    for row, line in zip(section.rows, grid.lines, strict=True):
        stats = [*(row.per_class.get(name, Stat(None, None)) for name in section.columns), row.average]
        cells = _cells(line.cells, first, columns, stats)
        if section.compared:
            theirs = section.comparisons.get(row.series) if not row.published else None
            gap = difference(row, theirs)
            cells[-2] = Cell(
                line.cells[-2],
                None if gap is None else gap["average"],
                kind="paper" if theirs else "",
                published=theirs.average.mean if theirs else None,
            )
        lines.append(Line(cells, ours=not row.published, series=row.series))
    return _table(grid, _header(grid, first, columns), lines)


def ablation_table(report: AblationReport) -> Table:
    """The settings of an ablation, each with the published row of the same setting under it."""
    grid = ablation_grid(report)
    columns = grid.header[2:-3]
    lines = []
    default = next((each.row.series for each in report.measured if each.setting.default and each.row), "")
    rest = iter(grid.lines)
    for each in shown(report):
        lines.append(_setting(each, next(rest).cells, columns, default))
        if each.published is not None:
            row, theirs = each.published, next(rest).cells
            stats = [*(row.per_class.get(name, Stat(None, None)) for name in columns), row.average]
            cells = _cells(theirs, 2, [*columns, AVERAGE], stats)
            cells[-2] = Cell(theirs[-2], each.published_difference)
            lines.append(Line(cells, ours=False))
    return _table(grid, _header(grid, 2, [*columns, AVERAGE]), lines)


def plain_table(grid: Grid, classes: Sequence[str]) -> Table:
    """A table whose numbers do not follow the switches; columns named after classes follow their filter."""
    places = {index: name for index, name in enumerate(grid.header) if name in classes}
    header = [Cell(text, column=places.get(index, "")) for index, text in enumerate(grid.header)]
    lines = [
        Line([Cell(text, leading(text), places.get(index, "")) for index, text in enumerate(line.cells)], line.ours)
        for line in grid.lines
    ]
    return Table(grid.title, *worded(header, lines), grid.caption)


def worded(header: list[Cell], lines: list[Line]) -> tuple[list[Cell], list[Line]]:
    """The same table with its columns of words marked as such."""
    places = {
        index
        for index, head in enumerate(header)
        if index and not head.column and any(_is_word(line.cells[index]) for line in lines)
    }

    def marked(cells: Sequence[Cell]) -> list[Cell]:
        return [replace(cell, words=index in places) for index, cell in enumerate(cells)]

    return marked(header), [replace(line, cells=marked(line.cells)) for line in lines]


def row_labels(rows: Sequence[Row]) -> dict[str, str]:
    """Series -> what a row is called on the page: short where that tells it from the others."""
    short = {row.series: row_name(row, [row]) for row in rows}
    if len(set(short.values())) == len(rows):
        return short
    return {row.series: row_name(row, rows) for row in rows}


def leading(text: str) -> float | None:
    """The number that a cell begins with, e.g. of `51.9±2.0`, `+2.7 to +3.9` or `≤ 0.001`."""
    found = _LEADING.match(text)
    return float(found[1]) if found else None


def _setting(each: Measured, texts: list[str], columns: list[str], default: str) -> Line:
    per_class = each.row.per_class if each.row else {}
    stats = [*(per_class.get(name, Stat(None, None)) for name in columns), each.row.average if each.row else _NONE]
    cells = _cells(texts, 2, [*columns, AVERAGE], stats)
    cells[-2] = Cell(
        texts[-2], each.difference.mean, kind="delta" if each.row and default and not each.setting.default else ""
    )
    return Line(cells, series=each.row.series if each.row else "", reference=default)


def _cells(texts: Sequence[str], first: int, columns: Sequence[str], stats: Sequence[Stat]) -> list[Cell]:
    """Cells of a row whose columns from `first` on are `columns` with the numbers `stats`."""
    found = [Cell(text, leading(text)) for text in texts]
    found[0] = Cell(texts[0])
    for index, (name, stat) in enumerate(zip(columns, stats, strict=True)):
        kind = "average" if index == len(columns) - 1 else "class"
        found[first + index] = Cell(texts[first + index], stat.mean, name, kind)
    return found


def _header(grid: Grid, first: int, columns: Sequence[str]) -> list[Cell]:
    found = [Cell(text) for text in grid.header]
    for index, name in enumerate(columns):
        kind = "average" if index == len(columns) - 1 else "class"
        found[first + index] = Cell(grid.header[first + index], column=name, kind=kind)
    return found


def _table(grid: Grid, header: list[Cell], lines: list[Line]) -> Table:
    metric = next((index for index, text in enumerate(grid.caption) if text.startswith("convention ")), None)
    return Table(grid.title, *worded(header, lines), grid.caption, follows=True, metric=metric)


def _is_word(cell: Cell) -> bool:
    return cell.value is None and any(sign.isalpha() for sign in cell.text)


_NONE = Stat(None, None)

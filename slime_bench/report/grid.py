"""A table as cells: on a terminal of any width and as Markdown, with its caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slime_bench.report.published import Stat

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

DASH = "-"


@dataclass(frozen=True)
class Line:
    """One line of cells; `ours` is set off from published lines."""

    cells: list[str]
    ours: bool


@dataclass(frozen=True)
class Grid:
    """A table; the last column is left out on a narrow terminal."""

    title: str
    header: list[str]
    lines: list[Line]
    caption: list[str]


def rich_table(grid: Grid, compact: bool = False) -> Table:
    """The grid as a `rich` table.

    Args:
        compact: for a narrow terminal: deviations on a line of their own, no frame, no last column.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(grid.title),
        caption=Text("\n".join(grid.caption)),
        caption_justify="left",
        box=None if compact else box.HEAVY_HEAD,
        padding=(0, 1, 0, 0) if compact else (0, 1),
    )
    shown = len(grid.header) - 1 if compact else len(grid.header)
    for index, name in enumerate(grid.header[:shown]):
        table.add_column(Text(name), justify="left" if index == 0 else "right", overflow="fold")
    for line in grid.lines:
        cells = line.cells[:shown]
        if compact:
            cells = [cell.replace("±", "\n±") for cell in cells]
        # Text, because class names and variants may hold what rich would read as markup.
        table.add_row(*(Text(cell) for cell in cells), style="bold" if line.ours else "dim")
    return table


def print_grid(grid: Grid, console: Console) -> None:
    """The grid in the form that fits the console; a file or a pipe gets it whole."""
    table = rich_table(grid)
    needed = console.measure(table, options=console.options.update(width=10_000)).maximum
    if needed <= console.width:
        console.print(table)
    elif console.is_terminal:
        console.print(rich_table(grid, compact=True))
    else:
        # A file or a pipe has no width: rich guesses 80 columns, at which the table must not be folded.
        width = console.width
        console.width = needed
        console.print(table)
        console.width = width


def markdown(grid: Grid) -> list[str]:
    """Heading, table and caption as blocks of Markdown."""
    header = [_escape(name) for name in grid.header]
    lines = [f"| {' | '.join(header)} |", f"|---|{'---:|' * (len(header) - 1)}"]
    for line in grid.lines:
        cells = [_escape(cell) for cell in line.cells]
        if line.ours:
            cells[0] = f"**{cells[0]}**"
        lines.append(f"| {' | '.join(cells)} |")
    return [f"## {grid.title}", "\n".join(lines), "\n".join(f"- {text}" for text in grid.caption)]


def stat_text(stat: Stat, as_stated: bool = False, sign: str = "") -> str:
    """`mean±deviation` with one decimal, or a published number with its own decimals; `sign="+"` shows a plus."""
    if stat.mean is None:
        return DASH
    spec = sign if as_stated else f"{sign}.1f"
    mean = format(stat.mean, spec)
    return mean if stat.std is None else f"{mean}±{format(stat.std, '' if as_stated else '.1f')}"


def numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")

"""A table as cells: on a terminal of any width, as Markdown and as LaTeX, with its caption; and files of lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from slime_bench.metrics import CONVENTION_RULES
from slime_bench.report.published import Published, Stat
from slime_bench.report.rows import PAPER_CONVENTION, PAPER_PRESET, choices
from slime_bench.storage import write_atomic

K = TypeVar("K")
DASH = "-"
UNIT = "percent"
_MARKDOWN = str.maketrans({sign: f"\\{sign}" for sign in "\\|*_"})
_LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"}
    | {">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "…": r"\dots{}", "−": r"\ensuremath{-}"}
    | {"±": r"\ensuremath{\pm}", "×": r"\ensuremath{\times}", "·": r"\ensuremath{\cdot}", "Δ": r"\ensuremath{\Delta}"}
    | {"σ": r"\ensuremath{\sigma}", "≥": r"\ensuremath{\geq}", "≤": r"\ensuremath{\leq}"}
)


@dataclass(frozen=True)
class Line:
    """One line of cells; `ours` is set off from published lines.

    Attributes:
        exact: the numbers of cells by the name of their column, for those that follow convention and average.
    """

    cells: list[str]
    ours: bool = True
    exact: Mapping[str, float | None] = field(default_factory=dict)


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
    table = Table(
        title=Text(grid.title), caption=Text("\n".join(grid.caption)), caption_justify="left",
        box=None if compact else box.HEAVY_HEAD, padding=(0, 1, 0, 0) if compact else (0, 1),
    )  # fmt: skip
    shown = len(grid.header) - 1 if compact else len(grid.header)
    for index, name in enumerate(grid.header[:shown]):
        table.add_column(Text(name), justify="left" if index == 0 else "right", overflow="fold")
    for line in grid.lines:
        cells = [cell.replace("±", "\n±") if compact else cell for cell in line.cells[:shown]]
        # Text, because class names and variants may hold what rich would read as markup.
        table.add_row(*map(Text, cells), style="bold" if line.ours else "dim")
    return table


def print_grid(grid: Grid, console: Console) -> None:
    """The grid in the form that fits the console; a file or a pipe has the width of COLUMNS, or 80."""
    table = rich_table(grid)
    needed = console.measure(table, options=console.options.update(width=10_000)).maximum
    console.print(rich_table(grid, compact=needed > console.width))


def say(console: Console, text: str) -> None:
    """Print a line that is not folded and holds no markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def markdown(grid: Grid) -> list[str]:
    """Heading, table and caption as blocks of Markdown. pandas' own writer escapes nothing."""
    lines = [_cells(grid.header), f"|---|{'---:|' * (len(grid.header) - 1)}"]
    for line in grid.lines:
        lines.append(_cells(line.cells, "**" if line.ours else ""))
    return [f"## {grid.title}", "\n".join(lines), "\n".join(f"- {text}" for text in grid.caption)]


def _cells(cells: Sequence[str], first: str = "") -> str:
    head, *rest = (cell.translate(_MARKDOWN) for cell in cells)
    return f"| {' | '.join([f'{first}{head}{first}', *rest])} |"


def grid_latex(grid: Grid) -> str:
    """A `table` with booktabs: its title as caption, its caption as notes, our rows in bold by their first cell."""

    def row(cells: Sequence[str], bold: bool = False) -> str:
        first, *rest = map(escaped, cells)
        # An empty group first: a cell that begins with [ would be taken for an option of the \\ before it.
        return "{}" + " & ".join([rf"\textbf{{{first}}}" if bold else first, *rest]) + r" \\"

    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped(grid.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(grid.header) - 1)}}}",
            r"\toprule",
            row(grid.header),
            r"\midrule",
            *(row(line.cells, line.ours) for line in grid.lines),
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\raggedright\footnotesize {escaped(text)}" for text in grid.caption),
            r"\end{table}",
            "",
        ]
    )


def escaped(text: str) -> str:
    """Text in which LaTeX finds nothing to obey; the hyphen of a negative number becomes a minus."""
    return re.sub(r"(?<!\S)-(?=\d)", "−", text).translate(_LATEX)


def csv_of(lines: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Lines as CSV with full precision; what a line lacks, and None, is an empty cell.

    Args:
        columns: by default all that a line has, in the order in which they come.
    """
    from pandas import DataFrame

    # Of objects: a whole number must not become a fraction because another line lacks it.
    return DataFrame(lines, columns=columns, dtype=object).to_csv(index=False, lineterminator="\n")


def json_of(content: Any) -> str:
    """Plain values and dataclasses as the text of a JSON file."""
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False, default=asdict) + "\n"


def write_report(
    stem: Path,
    blocks: Sequence[str | Grid],
    lines: Sequence[Mapping[str, Any]],
    content: Any,
    columns: Sequence[str] | None = None,
) -> list[Path]:
    """Writes `<stem>.{md,csv,json,tex}`.

    Args:
        blocks: grids, and what else stands between them in the Markdown file.
        lines, columns: see `csv_of`. content: of the JSON file.

    Raises:
        StorageError: a file cannot be written.
    """
    texts = [part for block in blocks for part in ([block] if isinstance(block, str) else markdown(block))]
    grids = [block for block in blocks if isinstance(block, Grid)]
    contents = {"md": "\n\n".join(texts) + "\n", "csv": csv_of(lines, columns), "json": json_of(content)}
    contents["tex"] = "% Needs \\usepackage{booktabs}.\n" + "\n".join(map(grid_latex, grids))
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in contents]
    for path, text in zip(paths, contents.values(), strict=True):
        write_atomic(path, text.encode())
    return paths


# ------------------------------------------------------------------------------------------------- words of tables


def stat_text(stat: Stat, form: str = ".1f", form_of_std: str | None = None, sign: str = "") -> str:
    """`mean±deviation`, each in its form: "" is a published number with its own decimals; `sign="+"` shows a plus."""
    if stat.mean is None:
        return DASH
    mean = format(stat.mean, sign + form)
    return mean if stat.std is None else f"{mean}±{format(stat.std, form if form_of_std is None else form_of_std)}"


def stat_cells(stats: Mapping[str, Stat]) -> dict[str, float | None]:
    """Cells of a CSV line, `<name>_mean` and `<name>_std`."""
    return {f"{name}_{part}": getattr(stat, part) for name, stat in stats.items() for part in ("mean", "std")}


def spaced(values: Iterable[Any]) -> str:
    """Values as a cell of a CSV line holds them."""
    return " ".join(map(str, values))


def grouped(pairs: Iterable[tuple[K, str]]) -> dict[K, list[str]]:
    """Key -> the texts that come with it, in their order."""
    found: dict[K, list[str]] = {}
    for key, text in pairs:
        found.setdefault(key, []).append(text)
    return found


def listed(values: Iterable[str | int]) -> str:
    """Distinct texts or numbers in their order, with commas."""
    return ", ".join(map(str, dict.fromkeys(values)))


def prepared_lines(prepared: Iterable[Mapping[str, str]]) -> list[str]:
    """How the data were prepared: none or one line."""
    stated = "; or with ".join(sorted({choices(each) for each in prepared if each}))
    return [f"data prepared with {stated}"] if stated else []


def metric_line(convention: str, background: bool) -> str:
    """The line of a caption that names the metric."""
    return (
        f"convention {convention}: {CONVENTION_RULES[convention]}; "
        f"average over the classes {'with' if background else 'without'} background"
    )


def metric_lines(convention: str, background: bool, runs: Iterable[int | None]) -> list[str]:
    """How the numbers of a table came about: convention, average, and seeds behind the rows."""
    counts = listed(sorted({count for count in runs if count}))
    return [
        metric_line(convention, background),
        f"mean±sample standard deviation over n seeds (n = {counts}); no deviation for one seed",
    ]


def published_line(published: Published, preset: str, convention: str, background: bool) -> str:
    """Where published rows come from, and whether rows of `preset` under this metric may be compared with them."""
    where = f"{published.data}, {published.backbone}; {published.citation}"
    rule = f"; they follow convention {PAPER_CONVENTION} with background, not this table's"
    rule = "" if (convention, background) == (PAPER_CONVENTION, True) else rule
    if preset == PAPER_PRESET:
        return f"published rows: {where}{rule}"
    return f"published rows: OTHER DATA ({where}), shown for orientation and not comparable with preset {preset}{rule}"

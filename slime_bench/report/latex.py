"""A table as LaTeX with booktabs, to be read into a paper by \\input."""

from __future__ import annotations

import re
from collections.abc import Iterable

from slime_bench.report.grid import Grid, Line

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"\ensuremath{\pm}",
    "−": r"\ensuremath{-}",
    "×": r"\ensuremath{\times}",
    "·": r"\ensuremath{\cdot}",
    "Δ": r"\ensuremath{\Delta}",
    "σ": r"\ensuremath{\sigma}",
    "≥": r"\ensuremath{\geq}",
    "≤": r"\ensuremath{\leq}",
    "…": r"\dots{}",
}
_MINUS = re.compile(r"(?<!\S)-(?=\d)")
HEAD = "% Needs \\usepackage{booktabs}.\n"


def latex(grids: Iterable[Grid]) -> str:
    """All grids as `table` environments, one after the other."""
    return HEAD + "\n".join(grid_latex(grid) for grid in grids)


def grid_latex(grid: Grid) -> str:
    """One `table`: title as its caption, the grid's caption as notes below; our rows in bold by their first cell."""
    rows = [_row([escaped(name) for name in grid.header]), r"\midrule", *map(_line, grid.lines)]
    notes = [rf"\par\raggedright\footnotesize {escaped(text)}" for text in grid.caption]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped(grid.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(grid.header) - 1)}}}",
            r"\toprule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            *notes,
            r"\end{table}",
            "",
        ]
    )


def escaped(text: str) -> str:
    """Text in which LaTeX finds nothing to obey; the hyphen of a negative number becomes a minus."""
    return "".join(_SPECIAL.get(sign, sign) for sign in _MINUS.sub("−", text))


def _line(line: Line) -> str:
    first, *rest = (escaped(cell) for cell in line.cells)
    return _row([rf"\textbf{{{first}}}" if line.ours else first, *rest])


def _row(cells: list[str]) -> str:
    # An empty group first: a cell that begins with [ would be taken for an option of the \\ before it.
    return "{}" + " & ".join(cells) + r" \\"

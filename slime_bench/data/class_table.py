"""The table of what each split shows of each class. No torch here: the processes that prepare data print it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Shown = tuple[int, Sequence[int], Sequence[int]]
"""Of a split: number of images, and per class, in label order, the images that show it and its pixels."""


def stdout_console() -> Console:
    """A console that prints text as it is, on lines of any length; cells of tables are folded at its width, which is
    that of COLUMNS, or 80, where the output is no terminal."""
    from rich.console import Console

    return Console(highlight=False, markup=False, soft_wrap=True)


def class_table(classes: Sequence[str], splits: Mapping[str, Shown], more: Mapping[str, Sequence[str]] = {}) -> Table:
    """Classes by splits: in how many images each is seen, and its share of the pixels; `more` rows have a cell for each
    split."""
    from rich.table import Table

    table = Table("class", title="images that show it (share of the pixels)", title_justify="left")
    for name in splits:
        table.add_column(name, justify="right")
    table.add_row("all", *(f"{count:,}" for count, _, _ in splits.values()), end_section=True)
    for index, name in enumerate(classes):
        last = bool(more) and index == len(classes) - 1
        shown = [(images[index], pixels[index] / max(1, sum(pixels))) for _, images, pixels in splits.values()]
        table.add_row(name, *(f"{count:,} ({share:6.2%})" for count, share in shown), end_section=last)
    for name, row in more.items():
        table.add_row(name, *row)
    return table

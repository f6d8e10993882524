"""What the page shows, as plain values: the template asks for nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup


@dataclass(frozen=True)
class Problem:
    """A trial that is not done, or a file that cannot be used.

    Attributes:
        state: a word, e.g. `missing` or `failed`. trial: what it is called. why: one line. folder: where to look.
    """

    state: str
    trial: str
    why: str = ""
    folder: str = ""


@dataclass(frozen=True)
class Problems:
    """What is missing, and the command that goes on with it.

    Attributes:
        expected: number of trials that were expected, None where nobody knows. notes: further sentences.
    """

    items: list[Problem]
    expected: int | None = None
    command: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: as the Markdown table has it. value: what is sorted by, None for its text.
        column: name of the class whose column this is, `avg` for the average, else empty.
        kind: what the page's script recomputes: `class`, `average`, `paper` (minus the published average), `delta`
            (minus the reference row's average), or nothing.
        published: the published average, of kind `paper`. words: whether its column holds words, which may wrap.
    """

    text: str
    value: float | None = None
    column: str = ""
    kind: str = ""
    published: float | None = None
    words: bool = False


@dataclass(frozen=True)
class Line:
    """One row of a table; `series` names the numbers behind it, `reference` those that it is compared with."""

    cells: list[Cell]
    ours: bool = True
    series: str = ""
    reference: str = ""


@dataclass(frozen=True)
class Table:
    """A table; `header` has the cells of its head, and `caption` the notes under it.

    Attributes:
        follows: whether the switches change its numbers. metric: index of the caption's line that names the metric.
    """

    title: str
    header: list[Cell]
    lines: list[Line]
    caption: list[str]
    follows: bool = False
    metric: int | None = None


@dataclass(frozen=True)
class Chart:
    """A chart that the page's script draws from `spec`, since it follows the switches."""

    id: str
    title: str
    spec: dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A table of results and what belongs to it: its charts, and the tables that do not follow the switches."""

    title: str
    table: Table
    charts: list[Chart]
    more: list[Table] = field(default_factory=list)


@dataclass(frozen=True)
class Curves:
    """The learning curves of one row: inline SVGs."""

    label: str
    panels: list[Markup]
    note: str = ""


@dataclass(frozen=True)
class Confusion:
    """One confusion matrix.

    Attributes:
        rows: for every class its share of each prediction as text, and its shade 0..10. pixels: of each class.
    """

    label: str
    classes: list[str]
    rows: list[list[tuple[str, int]]]
    pixels: list[str]
    note: str = ""


@dataclass(frozen=True)
class TrialFacts:
    """Where one trial's numbers come from.

    Attributes:
        average: in percent, as text. cells: the rest of the overview. facts: name and text of everything recorded.
    """

    label: str
    seed: int
    series: str
    average: str
    cells: list[str]
    facts: list[tuple[str, str]]


@dataclass(frozen=True)
class Facts:
    """The provenance of all trials: what they share or differ in, then each of them."""

    shared: list[tuple[str, str]]
    header: Sequence[str]
    trials: list[TrialFacts]


@dataclass(frozen=True)
class Page:
    """The whole page.

    Attributes:
        kind: of the report, for the title. classes: for the filter, in the tables' order.
        data: what the script needs: numbers of the series, charts, pictures; plain JSON values.
        absent: one sentence for each thing that some trials do not have.
    """

    title: str
    lead: str
    problems: Problems
    sections: list[Section]
    curves: list[Curves]
    confusions: list[Confusion]
    facts: Facts
    classes: list[str]
    data: dict[str, Any]
    absent: dict[str, str] = field(default_factory=dict)

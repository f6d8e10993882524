"""The crop rules side by side: what each would keep and drop of the lists, without writing anything."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from data_prep.pascal_part.rules import REASONS, RULES, Crop, Refused, Rule
from data_prep.pascal_part.work import VocPicture, annotations_of, judge_picture
from slime_bench.data.verify import progress_bar
from slime_bench.errors import DataError, SlimeBenchError

KEPT = "kept"
UNREADABLE = "unreadable"
_SHOWN = 20


@dataclass
class Comparison:
    """How many samples of each split every rule keeps, and how many it drops for which reason.

    Attributes:
        counts: (split, rule, reason or "kept") -> objects, or pictures where a whole picture is dropped.
        faulty: what is wrong with the pictures that could not be read; they count once in every rule.
    """

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    faulty: list[SlimeBenchError] = field(default_factory=list)

    def of(self, split: str, rule: str) -> dict[str, int]:
        """Reason or "kept" -> count, without zeros."""
        return {why: count for (where, which, why), count in self.counts.items() if (where, which) == (split, rule)}


def compare(pictures: Sequence[VocPicture], subject: str, rules: Mapping[str, Rule] = RULES) -> Comparison:
    """Judge every picture by every rule; each annotation is read once, no picture is decoded."""
    result = Comparison()
    progress = progress_bar(f"comparing {', '.join(rules)}", len(pictures))
    for source in pictures:
        try:
            read = annotations_of(source, subject)
            found = {name: judge_picture(source, subject, rule, read) for name, rule in rules.items()}
        except SlimeBenchError as error:
            result.faulty.append(error)
            result.counts.update((source.split, name, UNREADABLE) for name in rules)
        else:
            for name, verdicts in found.items():
                result.counts.update((source.split, name, _word(verdict)) for verdict in _each(verdicts))
        progress.update()
    progress.close()
    return result


def print_comparison(result: Comparison, subject: str, lists: Mapping[str, str], rules: Sequence[str]) -> None:
    """A table to stdout: a row per reason, a column per split and rule.

    Args:
        lists: split -> name of the list it comes from.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False)
    for split, name in lists.items():
        table = Table("", *rules, title=f"{subject}: {name}")
        for column in table.columns[1:]:
            column.justify = "right"
        counts = [result.of(split, rule) for rule in rules]
        table.add_row(KEPT, *(str(each.get(KEPT, 0)) for each in counts), end_section=True)
        for reason in (*REASONS, UNREADABLE):
            if any(reason in each for each in counts):
                table.add_row(reason, *(str(each.get(reason, 0)) for each in counts))
        console.print(table)
    console.print("Objects of the class, and whole images where the line says so; an object that fails several tests")
    console.print("counts under the first. The rule slime_lab loses overlaps: its intersections are modulo 256.")


def faulty_error(errors: Sequence[SlimeBenchError], total: int) -> DataError:
    """One error for all faulty pictures."""
    lines = [f"{each.path}: {each.summary} ({each.found})" for each in errors]
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return DataError(
        f"{len(errors)} of {total} source pictures are faulty",
        found="".join(f"\n    {line}" for line in [*lines[:_SHOWN], *more]),
        expected="annotations that are whole and fit together",
        remedy="restore these files, or count them as unreadable with --faulty skip",
    )


def _each(verdicts: list[Crop | Refused] | str) -> Sequence[Crop | Refused | str]:
    return [verdicts] if isinstance(verdicts, str) else verdicts


def _word(verdict: Crop | Refused | str) -> str:
    if isinstance(verdict, str):
        return verdict
    return verdict.reason if isinstance(verdict, Refused) else KEPT

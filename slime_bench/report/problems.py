"""What the page says first: trials that are missing, failed or cut short, and the command that goes on with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slime_bench.report.ablation import AblationReport
from slime_bench.report.collect import relative
from slime_bench.report.rows import PAPER_PRESET
from slime_bench.report.subject import SubjectReport
from slime_bench.report.table import numbers
from slime_bench.results.status import DONE, MISSING, UNKNOWN, TrialStatus

MADE = ("car", "horse", "face")
"""Subjects with a target of the Makefile."""


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


def of_states(states: Sequence[TrialStatus], command: str, root: Path) -> Problems:
    """Of a sweep whose trials are known exactly."""
    items = [
        Problem(
            each.state,
            f"{each.method} on {each.data}, {each.shots}-shot, seed {each.seed}"
            + (f" ({each.variant})" if each.variant else ""),
            each.detail,
            relative(Path(each.folder), root) if each.folder else "",
        )
        for each in sorted(states, key=lambda each: each.state in (MISSING, UNKNOWN))
        if each.state != DONE
    ]
    notes = list(dict.fromkeys(each.note for each in states if each.note))
    return Problems(items, len(states), command, notes)


def found_problems(report: SubjectReport, root: Path) -> Problems:
    """Of a subject whose expected trials follow from the rows that have results."""
    broken = {(one.data, one.method, one.shots, one.seed) for one in report.failed}
    items = [
        Problem(
            "failed",
            f"{one.method} on {one.data}, {one.shots}-shot, seed {one.seed}",
            one.summary,
            relative(one.folder, root),
        )
        for one in report.failed
    ]
    items += [Problem("unreadable", path.name, why, relative(path.parent, root)) for path, why in report.invalid]
    items += [
        Problem(MISSING, str(one))
        for one in report.missing
        if (one.data, one.method, one.shots, one.seed) not in broken
    ]
    presets = {row.preset for row in report.rows}
    command = ""
    if items and report.subject in MADE:
        command = f"make reproduce-{report.subject}" + (" PRESET=paper" if presets == {PAPER_PRESET} else "")
    expected = f"shots {numbers(report.expected_shots)} and seeds {numbers(report.expected_seeds)}"
    notes = [
        f"Expected of every row: {expected}. For the trials of one sweep name it: slime-bench report experiment=..."
    ]
    return Problems(items, None, command, notes)


def ablation_problems(report: AblationReport, root: Path, states: Mapping[tuple[str, int], TrialStatus]) -> Problems:
    """Of an ablation: seeds of its settings without a result.

    Args:
        states: label of a setting and seed -> how far that trial is, for those without a result.
    """
    items = []
    asked = [each for each in report.measured if each.setting.in_grid]
    for each in asked:
        for seed in each.missing:
            status = states.get((each.setting.label, seed))
            state, why, folder = MISSING, "", ""
            if status is not None and status.state not in (DONE, UNKNOWN):
                state, why = status.state, status.detail
                folder = relative(Path(status.folder), root) if status.folder else ""
            elif (failed := each.failed.get(seed)) is not None:
                state, why, folder = "failed", failed.summary, relative(failed.folder, root)
            items.append(Problem(state, f"{each.setting.label}, seed {seed}", why, folder))
    items.sort(key=lambda item: item.state == MISSING)
    expected = sum(len(each.setting.trials) for each in asked)
    return Problems(items, expected, report.command if items else report.portable_command)

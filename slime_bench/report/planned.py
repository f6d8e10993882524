"""Which trials a report expects, and what became of those that are not done: what the page says first."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slime_bench.errors import ConfigError, ResultError
from slime_bench.paths import advised
from slime_bench.report.ablation import AblationReport
from slime_bench.report.collect import Collected, Defaults, FailedTrial, departure, multirun, relative, told
from slime_bench.report.rows import PAPER_PRESET, MissingTrial
from slime_bench.report.subject import SubjectReport
from slime_bench.report.table import listed
from slime_bench.results.identity import canonical_json
from slime_bench.results.status import DONE, FAILED, MISSING, OOM, UNKNOWN, TrialStatus

Trials = list[tuple[dict[str, Any], TrialStatus]]
"""For each trial of a sweep the configuration as in `collect.planned_configs`, and how far it is."""
PlannedTrials = Callable[[Sequence[str], Path | None, str | None], Trials]
"""Overrides of a sweep, outputs folder and a further folder of configuration files -> its trials."""
MADE = ("car", "horse", "face")
"""Subjects with a target of the Makefile."""
_LONGEST = 100


@dataclass(frozen=True)
class Planned:
    """The trials of one command: its overrides, the trials with their states, and the folder with runs/."""

    overrides: list[str]
    trials: Trials
    outputs: Path

    @property
    def name(self) -> str:
        """A folder's name that follows from the overrides."""
        parts = [text.removeprefix("experiment=") for text in told(self.overrides)] or ["default"]
        name = re.sub(r"[^A-Za-z0-9_.+=,-]+", "_", " ".join(parts)).strip("._") or "default"
        if name == "_".join(parts) and len(name) <= _LONGEST:
            return name
        # What was replaced or cut off may be all that sets two commands apart.
        return f"{name[:_LONGEST]}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:6]}"

    @property
    def command(self) -> str:
        """That goes on with the trials."""
        return multirun(self.overrides)

    def of(self, collected: Collected) -> Collected:
        """The results of these trials alone.

        Raises:
            ConfigError: the trials have a report of their own. ResultError: none of the trials is finished.
        """
        own = collected.own_reports
        names = [own.get(values["method"]["name"]) for values, _ in self.trials]
        if all(names):
            raise ConfigError(
                "These trials have a report of their own.", path=" ".join(self.overrides),
                found=f"the method {self.trials[0][0]['method']['name']}", expected="trials of the main tables",
                remedy=shlex.join(["slime-bench", "report", f"--{names[0]}", *self.overrides]),
            )  # fmt: skip
        states = {Path(state.folder).resolve(): state.state for _, state in self.trials if state.folder}
        done = [one for one in collected.results if states.get(collected.folders[one.signature].resolve()) == DONE]
        results = [one for one in done if one.method not in own]
        if not results:
            count = Counter(state.state for _, state in self.trials)
            raise ResultError(
                "There is nothing to report: no trial of this command is finished.",
                path=self.outputs / "runs",
                found=f"{', '.join(f'{number} {name}' for name, number in sorted(count.items()))} trial(s)",
                expected="at least one finished trial (result.json)",
                remedy=f"Run `{self.command}` first, or name another folder with --outputs.",
            )
        invalid = [(path, why) for path, why in collected.invalid if path.parent.resolve() in states]
        return replace(collected, results=results, invalid=invalid, failed=[])

    def narrowed(self, report: SubjectReport, defaults: Defaults) -> SubjectReport:
        """The report with exactly these trials as what was expected."""
        mine = [(values, state) for values, state in self.trials if values["data"]["subject"] == report.subject]
        missing, failed = list[MissingTrial](), list[FailedTrial]()
        for values, one in mine:
            names = (one.method, values["backbone"]["name"], one.data, values["preset"], values["protocol"]["name"])
            variant = one.variant if (known := departure(values, defaults)) is None else known
            if one.state != DONE:
                missing.append(MissingTrial(*names, variant, one.shots, one.seed, one.state))
            if one.state in (FAILED, OOM):
                where, why = Path(one.folder or "."), one.detail or one.state
                failed.append(FailedTrial(where, one.data, one.method, one.shots, one.seed, why))
        shots, seeds = (tuple(dict.fromkeys(getattr(one, name) for _, one in mine)) for name in ("shots", "seed"))
        return replace(report, missing=missing, failed=failed, expected_shots=shots, expected_seeds=seeds)


def ablation_among(overrides: Sequence[str]) -> tuple[str, list[str]]:
    """The ablation among the overrides, and the others.

    Raises:
        ConfigError: several ablations.
    """
    named = [text for text in overrides if text.partition("=")[0].lstrip("+") == "ablation"]
    names = [text.partition("=")[2] for text in named if text.partition("=")[2] not in ("null", "")]
    if len(names) > 1 or any("," in name for name in names):
        raise ConfigError(
            "one table of an ablation holds one ablation", path="ablation", found=", ".join(names),
            expected="one value", remedy="ask for one table after the other",
        )  # fmt: skip
    return (names[0] if names else ""), [text for text in overrides if text not in named]


# ---------------------------------------------------------------------------------------------------- what is not done


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


def _problem(state: TrialStatus, name: str, root: Path) -> Problem:
    return Problem(state.state, name, state.detail, relative(Path(state.folder), root) if state.folder else "")


def of_states(states: Sequence[TrialStatus], command: str, root: Path) -> Problems:
    """Of a sweep whose trials are known exactly."""
    items = []
    for each in sorted(states, key=lambda each: each.state in (MISSING, UNKNOWN)):
        variant = f" ({each.variant})" if each.variant else ""
        if each.state != DONE:
            name = f"{each.method} on {each.data}, {each.shots}-shot, seed {each.seed}{variant}"
            items.append(_problem(each, name, root))
    notes = list(dict.fromkeys(each.note for each in states if each.note))
    return Problems(items, len(states), command, notes)


def table_command(subject: str, preset: str) -> str:
    """The command that runs the trials of a subject's table."""
    target = f"reproduce-{subject}" + (f" PRESET={preset}" if preset == PAPER_PRESET else "")
    return advised(target, f"slime-bench --multirun experiment={preset}_{subject}")


def found_problems(report: SubjectReport, root: Path) -> Problems:
    """Of a subject whose expected trials follow from the rows that have results."""
    items = [Problem("failed", str(one), one.summary, relative(one.folder, root)) for one in report.failed]
    items += [Problem("unreadable", path.name, why, relative(path.parent, root)) for path, why in report.invalid]
    absent = [Problem(one.state, str(one)) for one in report.missing if one.state != FAILED]
    items += sorted(absent, key=lambda one: one.state == MISSING)
    command = ""
    if items and report.subject in MADE:
        paper = {row.preset for row in report.rows} == {PAPER_PRESET}
        command = table_command(report.subject, PAPER_PRESET if paper else "mini")
    expected = f"shots {listed(report.expected_shots)} and seeds {listed(report.expected_seeds)}"
    note = f"Expected of every row: {expected}. For the trials of one sweep name it: slime-bench report experiment=..."
    return Problems(items, None, command, [note])


def ablation_problems(report: AblationReport, root: Path, trials: Trials) -> Problems:
    """Of an ablation: seeds of its settings without a result; `trials` say how far these are."""
    states = {canonical_json(values["decided"]): state for values, state in trials}
    asked = [each for each in report.measured if each.setting.in_grid]
    items = []
    for each in asked:
        for seed in each.missing:
            name = f"{each.setting.label}, seed {seed}"
            status = states.get(canonical_json(each.setting.trials[seed]["decided"]))
            failed = each.failed.get(seed)
            if status is not None and status.state not in (DONE, UNKNOWN):
                items.append(_problem(status, name, root))
            elif failed is not None:
                items.append(Problem("failed", name, failed.summary, relative(failed.folder, root)))
            else:
                items.append(Problem(MISSING, name))
    items.sort(key=lambda item: item.state == MISSING)
    expected = sum(len(each.setting.trials) for each in asked)
    return Problems(items, expected, report.command if items else report.portable_command)

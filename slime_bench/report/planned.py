"""Exactly the trials that a sweep's command asks for: which of them are finished, and what became of the others."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slime_bench.errors import ConfigError, ResultError
from slime_bench.report.ablation import AblationReport
from slime_bench.report.collect import Collected, FailedTrial
from slime_bench.report.rows import MissingTrial
from slime_bench.report.subject import SubjectReport
from slime_bench.results.identity import canonical_json, parse_trial_folder
from slime_bench.results.status import DONE, FAILED, OOM, TrialStatus

PlannedTrials = Callable[[Sequence[str], Path | None, str | None], list[tuple[dict[str, Any], TrialStatus]]]
"""Overrides of a sweep, outputs folder and a further folder of configuration files -> for each of its trials the
configuration as `collect.plain` gives it, and how far it is."""
FOLDERS = ("output_root", "data_root")
_LONGEST = 100


@dataclass(frozen=True)
class Planned:
    """The trials of one command.

    Attributes:
        overrides: as they were given.
        trials: resolved configurations, with their states.
        outputs: folder with runs/.
    """

    overrides: list[str]
    trials: list[tuple[dict[str, Any], TrialStatus]]
    outputs: Path

    @property
    def told(self) -> list[str]:
        """The overrides without the folders of one machine."""
        return [text for text in self.overrides if text.partition("=")[0].lstrip("+~") not in FOLDERS]

    @property
    def title(self) -> str:
        return f"IoU of parts: {' '.join(self.told) or 'the default trial'}"

    @property
    def name(self) -> str:
        """A folder's name that follows from the overrides."""
        parts = [text.removeprefix("experiment=") for text in self.told] or ["default"]
        name = re.sub(r"[^A-Za-z0-9_.+=,-]+", "_", " ".join(parts)).strip("._") or "default"
        if name == "_".join(parts) and len(name) <= _LONGEST:
            return name
        # What was replaced or cut off may be all that sets two commands apart.
        return f"{name[:_LONGEST]}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:6]}"

    @property
    def command(self) -> str:
        """That goes on with the trials."""
        return shlex.join(["slime-bench", "--multirun", *self.overrides])

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
        done = {_signature(state) for _, state in self.trials if state.state == DONE}
        results = [one for one in collected.results if one.signature in done and one.method not in own]
        if not results:
            count = Counter(state.state for _, state in self.trials)
            raise ResultError(
                "There is nothing to report: no trial of this command is finished.",
                path=self.outputs / "runs",
                found=f"{', '.join(f'{number} {name}' for name, number in sorted(count.items()))} trial(s)",
                expected="at least one finished trial (result.json)",
                remedy=f"Run `{self.command}` first, or name another folder with --outputs.",
            )
        places = {Path(state.folder).resolve() for _, state in self.trials if state.folder}
        return replace(
            collected,
            results=results,
            folders={one.signature: collected.folders[one.signature] for one in results},
            invalid=[(path, why) for path, why in collected.invalid if path.parent.resolve() in places],
            failed=[],
        )

    def narrowed(self, report: SubjectReport) -> SubjectReport:
        """The report with exactly these trials as what was expected."""
        mine = [(values, state) for values, state in self.trials if values["data"]["subject"] == report.subject]
        missing, failed = [], []
        for values, state in mine:
            if state.state == DONE:
                continue
            missing.append(_missing(values, state))
            if state.state in (FAILED, OOM):
                folder = Path(state.folder or ".")
                failed.append(
                    FailedTrial(folder, state.data, state.method, state.shots, state.seed, state.detail or state.state)
                )
        return replace(
            report,
            missing=missing,
            failed=failed,
            expected_shots=tuple(dict.fromkeys(state.shots for _, state in mine)),
            expected_seeds=tuple(dict.fromkeys(state.seed for _, state in mine)),
        )


def states_of(
    report: AblationReport, trials: Sequence[tuple[dict[str, Any], TrialStatus]]
) -> dict[tuple[str, int], TrialStatus]:
    """Label of a setting and seed -> how far the trial is, for those of the ablation's `trials` without a result."""
    states = {canonical_json(values["decided"]): state for values, state in trials}
    absent = [(each.setting, seed) for each in report.measured for seed in each.missing]
    keys = {(one.label, seed): canonical_json(one.trials[seed]["decided"]) for one, seed in absent}
    return {name: states[key] for name, key in keys.items() if key in states}


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


def _missing(values: dict[str, Any], state: TrialStatus) -> MissingTrial:
    return MissingTrial(
        method=state.method,
        backbone=values["backbone"]["name"],
        data=state.data,
        preset=values["preset"],
        protocol=values["protocol"]["name"],
        variant=state.variant,
        shots=state.shots,
        seed=state.seed,
    )


def _signature(state: TrialStatus) -> str:
    trial = parse_trial_folder(Path(state.folder)) if state.folder else None
    return trial["signature"] if trial else ""

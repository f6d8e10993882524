"""Exactly the trials that a sweep's command asks for: which of them are finished, and what became of the others."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_bench.errors import ConfigError, ResultError
from slime_bench.report.ablation import AblationReport
from slime_bench.report.aggregate import Collected, FailedTrial, MissingTrial
from slime_bench.report.method_facts import OWN_REPORT
from slime_bench.report.page.problems import of_states
from slime_bench.report.page.view import Problems
from slime_bench.report.tables import SubjectReport
from slime_bench.report.usual import plain
from slime_bench.results.identity import parse_trial_folder

if TYPE_CHECKING:
    from slime_bench.results.status import TrialStatus

FOLDERS = ("output_root", "data_root")
_DONE = "done"
_BROKEN = ("failed", "oom")
_LONGEST = 100


@dataclass(frozen=True)
class Planned:
    """The trials of one command.

    Attributes:
        overrides: as they were given. ablation: the name that they give to it, else empty; `rest` without it.
        trials: resolved configurations, with their states.
        name: a folder's name that follows from the overrides.
    """

    overrides: list[str]
    ablation: str
    rest: list[str]
    outputs: Path
    convention: str
    background: bool
    trials: list[tuple[dict[str, Any], TrialStatus]]

    @property
    def told(self) -> list[str]:
        """The overrides without the folders of one machine."""
        return [text for text in self.overrides if text.partition("=")[0].lstrip("+~") not in FOLDERS]

    @property
    def title(self) -> str:
        return f"IoU of parts: {' '.join(self.told) or 'the default trial'}"

    @property
    def name(self) -> str:
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
        if all(values["method"]["name"] in OWN_REPORT for values, _ in self.trials):
            raise ConfigError(
                "These trials have a report of their own.", path=" ".join(self.overrides),
                found=f"the method {self.trials[0][0]['method']['name']}", expected="trials of the main tables",
                remedy=shlex.join(["slime-bench", "report", "--ranking", *self.overrides]),
            )  # fmt: skip
        done = {_signature(state) for _, state in self.trials if state.state == _DONE}
        results = [one for one in collected.results if one.signature in done and one.method not in OWN_REPORT]
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
        return dataclasses.replace(
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
            if state.state == _DONE:
                continue
            missing.append(_missing(values, state))
            if state.state in _BROKEN:
                folder = Path(state.folder or ".")
                failed.append(
                    FailedTrial(folder, state.data, state.method, state.shots, state.seed, state.detail or state.state)
                )
        return dataclasses.replace(
            report,
            missing=missing,
            failed=failed,
            expected_shots=tuple(dict.fromkeys(state.shots for _, state in mine)),
            expected_seeds=tuple(dict.fromkeys(state.seed for _, state in mine)),
        )

    def problems(self) -> Problems:
        """Every trial that is not done."""
        return of_states([state for _, state in self.trials], self.command, self.outputs)


def planned(overrides: Sequence[str], outputs: Path | None = None, extra_dir: str | None = None) -> Planned:
    """The trials of the sweep with these overrides, and how far they are.

    Args:
        outputs: folder with runs/; that of the configuration by default.

    Raises:
        ConfigError: see `compose.plan`.
    """
    from slime_bench.config.compose import plan
    from slime_bench.sweep.status import Sweep

    ablation, rest = _ablation(overrides)
    found = plan(overrides, sweep=True, extra_dir=extra_dir)
    first = plain(found.trials[0])
    trials = []
    sweep = Sweep()
    for cfg, name in zip(found.trials if not ablation else [], found.names, strict=False):
        there = cfg if outputs is None else cfg.replace(output_root=str(outputs))
        trials.append((plain(there), sweep.status(there, name)))
    return Planned(
        overrides=list(overrides),
        ablation=ablation,
        rest=rest,
        outputs=outputs or Path(first["output_root"]),
        convention=first["metric"]["convention"],
        background=first["metric"]["background"],
        trials=trials,
    )


def unfinished(report: AblationReport, outputs: Path) -> dict[tuple[str, int], TrialStatus]:
    """Label of a setting and seed -> how far the trial is, for those of an ablation that have no result."""
    from omegaconf import OmegaConf

    from slime_bench.config.schema import validate
    from slime_bench.sweep.status import Sweep

    sweep = Sweep()
    found = {}
    for each in report.measured:
        for seed in each.missing if each.setting.in_grid else []:
            values = {key: value for key, value in each.setting.trials[seed].items() if key != "decided"}
            cfg = validate(OmegaConf.create({**values, "output_root": str(outputs)}))
            found[each.setting.label, seed] = sweep.status(cfg, each.setting.label)
    return found


def _ablation(overrides: Sequence[str]) -> tuple[str, list[str]]:
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

"""Trials of the small bench without their arithmetic: everything around it is real, the numbers are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from slime_bench.config.compose import Plan
from slime_bench.metrics.iou import IouCounts
from slime_bench.results import result as results
from slime_bench.results.result import TrialResult
from slime_bench.results.status import TrialStatus
from slime_bench.sweep.control import wait_for_others
from slime_bench.sweep.job import Job, Task
from slime_bench.sweep.launchers import InProcess
from slime_bench.sweep.outcome import Outcome
from slime_bench.sweep.status import Sweep
from slime_bench.sweep.telling import summarise
from slime_bench.trial import runner as trial
from slime_bench.trial.spec import Known


class Quick:
    """Stands in for `trial._compute`; its numbers depend on shots and seed alone.

    Attributes:
        computed: (shots, seed) of the trials, in the order in which they were computed.
        before: called with each trial's configuration first; it may raise.
    """

    def __init__(self) -> None:
        self.computed: list[tuple[int, int]] = []
        self.before = lambda cfg: None

    def __call__(self, known: Known, *_: Any) -> TrialResult:
        cfg, data, folder = known.cfg, known.data, known.folder
        self.before(cfg)
        draw = torch.Generator().manual_seed(100 * cfg.shots + cfg.seed)
        shape = (5, len(data.classes))
        union = torch.randint(10, 20, shape, generator=draw)
        counts = IouCounts(torch.randint(0, 10, shape, generator=draw), union, torch.ones(shape, dtype=torch.bool))
        result = results.from_counts(
            counts, config=known.plain, fingerprints=known.fingerprints, method=cfg.method.name,
            backbone=cfg.backbone.name, data=cfg.data.name, subject=cfg.data.subject, shots=cfg.shots, seed=cfg.seed,
            preset=cfg.preset, protocol=cfg.protocol.name, classes=data.classes,
        )  # fmt: skip
        results.write_per_image(folder / "per_image.parquet", [f"car-test-{n}" for n in range(5)], data.classes, counts)
        results.write_result(folder, result)
        self.computed.append((cfg.shots, cfg.seed))
        return result


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Quick:
    stand_in = Quick()
    monkeypatch.setattr(trial, "_compute", stand_in)
    return stand_in


@dataclass(frozen=True)
class Direct:
    """The trials of one command, composed once: what the command line does with them, without Hydra's second look."""

    plan: Plan
    outputs: Path

    def trials(self, **values: Any) -> list[Task]:
        """Its trials with other values of keys of the configuration's first level."""
        found = []
        for index, (name, cfg) in enumerate(zip(self.plan.names, self.plan.trials, strict=True)):
            own = cfg.copy()
            own.update({"output_root": str(self.outputs), **values})
            found.append(Task(index, name, own))
        return found

    def __call__(self, **values: Any) -> dict[int, Outcome]:
        """Run them one after another, as `launcher=sequential` does."""
        tasks = {task.index: task for task in self.trials(**values)}
        job = Job(self.outputs / "hydra" / "direct", self.plan.names, recorded=True)
        runner = InProcess(job)
        outcomes = {each.index: each for each in runner.run(list(tasks.values()))}
        outcomes = wait_for_others(outcomes, tasks, runner)
        summarise(outcomes, self.plan.names)
        return outcomes

    def states(self, **values: Any) -> list[TrialStatus]:
        """What `slime-bench status` says of them."""
        sweep = Sweep()
        return [sweep.state(task.cfg, task.name) for task in self.trials(**values)]

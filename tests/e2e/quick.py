"""Trials of the small bench without their arithmetic: everything around it is real, the numbers are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from slime_bench.config.compose import Plan
from slime_bench.config.schema import TrialConfig
from slime_bench.metrics.iou import IouCounts
from slime_bench.results import identity
from slime_bench.results import result as results
from slime_bench.results.result import TrialResult
from slime_bench.results.status import TrialStatus
from slime_bench.sweep.job_result import JobResult
from slime_bench.sweep.launcher import Command
from slime_bench.sweep.status import Sweep
from slime_bench.trial import runner as trial
from slime_bench.trial.spec import TrialSpec


class Quick:
    """Stands in for `trial._compute`; its numbers depend on shots and seed alone.

    Attributes:
        computed: (shots, seed) of the trials, in the order in which they were computed.
        before: called with each trial's configuration first; it may raise.
    """

    def __init__(self) -> None:
        self.computed: list[tuple[int, int]] = []
        self.before = lambda cfg: None

    def __call__(self, spec: TrialSpec, *_: Any) -> TrialResult:
        cfg, data, folder = spec.cfg, spec.data, spec.folder
        self.before(cfg)
        draw = torch.Generator().manual_seed(100 * cfg.shots + cfg.seed)
        shape = (5, len(data.classes))
        union = torch.randint(10, 20, shape, generator=draw)
        counts = IouCounts(torch.randint(0, 10, shape, generator=draw), union, torch.ones(shape, dtype=torch.bool))
        result = results.from_counts(
            counts, config=identity.recorded(cfg), signature=spec.signature,
            series=identity.series(cfg, spec.fingerprints), fingerprints=spec.fingerprints, method=cfg.method.name,
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

    def trials(self, **values: Any) -> list[TrialConfig]:
        """Its trials with other values."""
        own = {"launcher": {"trials_per_batch": 1}, **values}
        return [cfg.replace(output_root=str(self.outputs), **own) for cfg in self.plan.trials]

    def __call__(self, **values: Any) -> dict[int, JobResult]:
        """Run them one after another, as `launcher=sequential` does."""
        found = Command().run(self.trials(**values), self.plan.names, self.outputs / "hydra" / "direct")
        return dict(enumerate(found))

    def states(self, **values: Any) -> list[TrialStatus]:
        """What `slime-bench status` says of them."""
        sweep = Sweep()
        return [sweep.status(*each) for each in zip(self.trials(**values), self.plan.names, strict=True)]

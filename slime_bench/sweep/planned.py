"""The trials of a sweep's command and how far they are, as plain values: what reports are told of trials."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slime_bench.results.status import TrialStatus


def planned_trials(
    overrides: Sequence[str], outputs: Path | None, extra_dir: str | None
) -> list[tuple[dict[str, Any], TrialStatus]]:
    """The configuration of every trial as plain values, under `decided` what of it decides the numbers, and its status.

    Args:
        overrides: as they were given to the sweep.
        outputs: folder with runs/; that of the configuration by default.
        extra_dir: a further folder of configuration files.

    Raises:
        ConfigError: see `compose.plan`.
    """
    from slime_bench.config.compose import plan
    from slime_bench.results.identity import deciding
    from slime_bench.sweep.status import Sweep

    found, sweep, trials = plan(overrides, sweep=True, extra_dir=extra_dir), Sweep(), []
    for cfg, name in zip(found.trials, found.names, strict=True):
        there = cfg if outputs is None else cfg.replace(output_root=str(outputs))
        trials.append(({**there.plain, "decided": deciding(there)}, sweep.status(there, name)))
    return trials

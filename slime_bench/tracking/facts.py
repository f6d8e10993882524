"""What a trial's W&B run is called and filed under."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from slime_bench.config.schema import TrialConfig
from slime_bench.results.identity import recorded, series, signature

_LONGEST_TAG: Final = 64
_LONGEST_NAME: Final = 128


@dataclass(frozen=True)
class RunFacts:
    """Arguments of `wandb.init`.

    Attributes:
        id: the trial's signature; a trial that is computed anew by force has its number behind it.
        name: for a person. group: of trials that differ in their seed alone. job_type: the method.
        tags: to choose runs by. config: what decides the numbers, without secrets, and the trial's identity.
    """

    id: str
    name: str
    group: str
    job_type: str
    tags: tuple[str, ...]
    config: dict[str, Any]


def run_facts(cfg: TrialConfig, fingerprints: Mapping[str, str], attempt: int = 1) -> RunFacts:
    """Of a trial.

    Args:
        fingerprints: content hashes, see `identity.signature`.
        attempt: 1, and one more each time that a finished trial is computed anew: its curve would otherwise be drawn
            over the old one.
    """
    own, shared, plain = signature(cfg, fingerprints), series(cfg, fingerprints), cfg.plain
    method, data, backbone = (plain[group]["name"] for group in ("method", "data", "backbone"))
    shots = f"{plain['shots']}-shot"
    tags = [
        plain["preset"], plain["data"]["subject"], shots, plain["protocol"]["name"], data, backbone, method,
        f"metric {plain['metric']['convention']}",
    ]  # fmt: skip
    return RunFacts(
        id=own if attempt == 1 else f"{own}-{attempt}",
        name=f"{method} {data} {shots} seed {plain['seed']}"[:_LONGEST_NAME],
        group=f"{method}-{data}-{shots}"[: _LONGEST_NAME - len(shared) - 1] + f"-{shared}",
        job_type=method[:_LONGEST_TAG],
        tags=tuple(dict.fromkeys(tag[:_LONGEST_TAG] for tag in tags if tag)),
        config={**recorded(cfg), "signature": own, "series": shared, "fingerprints": dict(fingerprints)},
    )

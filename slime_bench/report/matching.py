"""Which result files belong to trials that were composed and not run: the same signature, whatever the folder holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from slime_bench.report.aggregate import Collected, FailedTrial
from slime_bench.results import identity
from slime_bench.results.identity import canonical_json
from slime_bench.results.result import RESULT_FILE, TrialResult

Key = TypeVar("Key", bound=Hashable)
Config = Mapping[str, Any]
_AUTO = "auto"


@dataclass(frozen=True)
class Matched(Generic[Key]):
    """What became of planned trials.

    Attributes:
        results: of the trials that are finished, all on one device, with the same weights and data.
        failed: trials without a result that left an error behind.
        left_out: further results of the same trials on another device, or with other weights or data.
    """

    results: dict[Key, TrialResult]
    failed: dict[Key, FailedTrial]
    left_out: int


def match(planned: Mapping[Key, Config], collected: Collected) -> Matched[Key]:
    """The results of planned trials.

    What a configuration only points to (weights, data, the device `auto` stands for) is known from the results alone.
    Results that differ in it must not stand in one table: the largest set is taken, of equal ones the latest.

    Args:
        planned: the resolved configurations of the trials as plain values.
    """
    candidates: dict[tuple[Any, ...], list[TrialResult]] = defaultdict(list)
    for result in collected.results:
        candidates[result.data, result.method, result.shots, result.seed].append(result)
    worlds: dict[str, dict[Key, TrialResult]] = defaultdict(dict)
    for key, config in planned.items():
        for result in candidates[_names(config)]:
            if signature_on(config, result) == result.signature:
                worlds[_world(result)][key] = result
    if not worlds:
        return Matched({}, {}, 0)
    chosen = max(worlds, key=lambda name: (len(worlds[name]), _latest(worlds[name], collected), name))
    results = worlds.pop(chosen)
    return Matched(results, _failed(planned, results, collected), sum(map(len, worlds.values())))


def _names(config: Config) -> tuple[Any, ...]:
    return config["data"]["name"], config["method"]["name"], config["shots"], config["seed"]


def signature_on(config: Config, witness: TrialResult) -> str | None:
    """The signature that the trial has on the device, weights and data of `witness`; None where these do not do."""
    decided = config["decided"]
    trainer = decided["trainer"]
    if trainer["device"] == _AUTO:
        trainer = {**trainer, "device": witness.config.get("trainer", {}).get("device", _AUTO)}
    return identity.signature_of({**decided, "trainer": trainer}, witness.fingerprints)


def _world(result: TrialResult) -> str:
    device = result.config.get("trainer", {}).get("device")
    return canonical_json([device, *(result.fingerprints.get(name) for name in ("backbone", "data"))])


def _latest(results: Mapping[Key, TrialResult], collected: Collected) -> float:
    files = [collected.folders[result.signature] / RESULT_FILE for result in results.values()]
    return max(file.stat().st_mtime for file in files)


def _failed(
    planned: Mapping[Key, Config], results: Mapping[Key, TrialResult], collected: Collected
) -> dict[Key, FailedTrial]:
    witness = next(iter(results.values()))
    errors = {trial.folder.name: trial for trial in collected.failed}
    found = {}
    for key, config in planned.items():
        trial = errors.get(f"seed{config['seed']}-{signature_on(config, witness)}")
        if key not in results and trial is not None:
            found[key] = trial
    return found

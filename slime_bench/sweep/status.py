"""How far a sweep is: what the trials' folders say, without running, loading or writing anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import yaml
from omegaconf import DictConfig, OmegaConf

from slime_bench import lock
from slime_bench.config.schema import build, load_target, parse
from slime_bench.config.secrets import redact
from slime_bench.errors import DataError, ResultError, SlimeBenchError
from slime_bench.results import identity
from slime_bench.results import result as results
from slime_bench.results.status import (
    DONE,
    FAILED,
    KILLED,
    MISSING,
    OOM,
    RUNNING,
    STATES,
    UNKNOWN,
    UNREADABLE,
    TrialStatus,
)
from slime_bench.trial.device import pick_device
from slime_bench.trial.failure import ERROR_FILE
from slime_bench.trial.spec import identify, is_misplaced, nameless_folder

_DEVICES: Final = ("cpu", "cuda")


class Sweep:
    """Looks at the trials of one command; what they share is looked at once."""

    def __init__(self) -> None:
        self._prints: dict[str, str | SlimeBenchError] = {}

    def state(self, cfg: DictConfig, name: str) -> TrialStatus:
        """How far the trial of a validated configuration is. `auto` may mean another device where it was run."""
        blank = TrialStatus(name, cfg.method.name, cfg.data.name, cfg.shots, cfg.seed, MISSING)
        found = [self._on(cfg, device, blank) for device in _devices(cfg.trainer.device)]
        return min(found, key=lambda each: STATES.index(each.state))  # of equals the first, which is this machine's

    def _on(self, cfg: DictConfig, device: str, blank: TrialStatus) -> TrialStatus:
        cfg = cast(DictConfig, OmegaConf.merge(cfg, {"trainer": {"device": device}}))
        try:
            data = build(cfg.data, shots=cfg.shots, seed=cfg.seed)
            known = identify(cfg, data, self._fingerprints(cfg, data))
        except SlimeBenchError as problem:
            return self._unidentified(cfg, blank, problem)
        return of_folder(known.folder, blank)

    def _fingerprints(self, cfg: DictConfig, data: Any) -> dict[str, str]:
        """Content hashes of data and backbone; files are read once for all trials that share them."""
        values = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
        node = cfg.backbone
        makers = {
            "data": lambda: _data_print(cfg, data),
            "backbone": lambda: load_target(node["_target_"]).content_hash_of(parse(node)),
        }
        found = {}
        for name, make in makers.items():
            key = identity.canonical_json([name, values[name], cfg.shots if name == "data" else 0])
            if key not in self._prints:
                try:
                    self._prints[key] = make()
                except SlimeBenchError as error:
                    self._prints[key] = error
            value = self._prints[key]
            if isinstance(value, SlimeBenchError):
                raise value
            found[name] = value
        return found

    def _unidentified(self, cfg: DictConfig, blank: TrialStatus, problem: SlimeBenchError) -> TrialStatus:
        """What the folders tell of a trial whose data or weights are not here."""
        nameless = nameless_folder(cfg)
        note = f"taken for this trial by its configuration alone: {problem.summary}"
        found = [of_folder(nameless, blank)]
        found += [replace(of_folder(folder, blank), note=note) for folder in _look_alikes(cfg, nameless)]
        best = min(found, key=lambda each: STATES.index(each.state))
        return best if best.state != MISSING else replace(blank, state=UNKNOWN, detail=_line(problem))


def of_folder(folder: Path, blank: TrialStatus) -> TrialStatus:
    """How far the trial with this folder is."""
    here = replace(blank, folder=str(folder))
    holder = lock.holder(folder)
    if holder is not None:
        return replace(here, state=RUNNING, detail=str(holder))
    path = folder / results.RESULT_FILE
    if path.exists():
        try:
            result = results.read_result(path)
        except ResultError as error:
            return replace(here, state=UNREADABLE, detail=_line(error))
        if is_misplaced(result, folder):
            return replace(here, state=UNREADABLE, detail="the result of another trial")
        average = result.average
        return replace(here, state=DONE, detail="" if average is None else f"mIoU {100 * average:.1f}")
    if (folder / ERROR_FILE).exists():
        kind, detail = _error(folder / ERROR_FILE)
        return replace(here, state=kind, detail=detail)
    killed = lock.left_by(folder)
    if killed is not None:
        return replace(here, state=KILLED, detail=str(killed))
    return replace(blank, folder=str(folder) if folder.exists() else None)


def _devices(name: str) -> Sequence[str]:
    if name != "auto":
        return [name]
    here = pick_device(name)
    return [here, *(other for other in _DEVICES if other != here)]


def _data_print(cfg: DictConfig, data: Any) -> str:
    if hasattr(data, "present_splits"):  # a trial would make the data, or stop; a hash of nothing would name no trial
        absent = [name for name in data.needed if name not in data.present_splits()]
        if absent:
            raise DataError(
                f"the data set `{cfg.data.name}` is not there", path=cfg.data.get("root"),
                found=f"no {', '.join(absent)} split", remedy=data.how_to_get(),
            )  # fmt: skip
    return str(data.fingerprint())


def _look_alikes(cfg: DictConfig, folder: Path) -> list[Path]:
    """Folders of the same names, shots and seed whose configuration decides the same."""
    wanted = _decides(cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True)))
    found = []
    for path in sorted(folder.parent.glob(f"seed{cfg.seed}-*/config.yaml")):
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            if isinstance(config, dict) and _decides(config) == wanted:
                found.append(path.parent)
        except (OSError, ValueError, yaml.YAMLError, SlimeBenchError):
            continue
    return found


def _decides(config: dict[str, Any]) -> str:
    return identity.canonical_json(redact(identity.deciding(config)))


def _error(path: Path) -> tuple[str, str]:
    try:
        facts: Any = json.loads(path.read_text(encoding="utf-8"))
        kind, summary = facts.get("type"), str(facts.get("summary") or facts.get("message") or "")
    except (OSError, ValueError, AttributeError):
        return FAILED, f"{path.name} does not say why"
    if facts.get("status") == "interrupted":
        return KILLED, "interrupted"
    detail = ": ".join(part for part in (kind, summary.partition("\n")[0]) if part)
    return (OOM if facts.get("status") == "oom" else FAILED), detail


def _line(error: SlimeBenchError) -> str:
    return error.summary if error.path is None else f"{error.summary} ({error.path})"

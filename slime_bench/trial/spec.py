"""A trial spec: what tells one trial from every other, found out before anything is loaded or computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_bench.config.schema import TrialConfig
from slime_bench.errors import ConfigError
from slime_bench.refine.config import Refinement
from slime_bench.results import identity
from slime_bench.results.environment import git_state, read_environment, version
from slime_bench.results.result import RESULT_FILE
from slime_bench.trial.device import check_precision, pick_device


@dataclass(frozen=True)
class TrialSpec:
    """A trial that can be told from every other one: its configuration and what that only points to.

    Attributes:
        cfg: with the device that it computes on.
        data: the data set, prepared. fingerprints: content hashes, see `identity.signature`.
        folder: of the trial; it need not be there.
    """

    cfg: TrialConfig
    data: Any
    fingerprints: dict[str, str]
    signature: str
    folder: Path

    @property
    def title(self) -> str:
        return f"{self.cfg.method.name} {self.cfg.data.name} {self.cfg.shots}-shot seed {self.cfg.seed}"


def on_device(cfg: TrialConfig) -> TrialConfig:
    """`cfg` with the device that `auto` means here, so that both are one trial; its parts go together.

    Raises:
        ConfigError: see `check_parts`. DeviceError: no such device, or one that cannot do the precision.
    """
    device = pick_device(cfg.trainer.device)
    check_precision(cfg.trainer.precision, device)
    check_parts(cfg)
    return cfg.replace(trainer={"device": device})


def prepared_data(cfg: TrialConfig) -> Any:
    """The data set of a trial, made where it can be, and checked. Raises DataError."""
    data = cfg.build("data", shots=cfg.shots, seed=cfg.seed)
    data.prepare_data()
    return data


def identify(cfg: TrialConfig, data: Any, fingerprints: Mapping[str, str] | None = None) -> TrialSpec:
    """What tells the trial of `on_device(cfg)` from every other one; no weights are loaded.

    Args:
        data: its data set. fingerprints: of data and backbone, where they are there already.

    Raises:
        DataError, BackboneError: what the configuration points to is not there. ConfigError: see `signature`.
    """
    if fingerprints is None:
        fingerprints = {
            "data": data.fingerprint(),
            "backbone": cfg.parts["backbone"].content_hash_of(cfg.backbone),
        }
    fingerprints = {**fingerprints, **cfg.parts["method"].fingerprints(cfg.method)}
    signature = identity.signature(cfg, fingerprints)
    return TrialSpec(cfg, data, fingerprints, signature, _folder(cfg, signature))


def nameless_folder(cfg: TrialConfig) -> Path:
    """Where a trial's failure is recorded as long as its data or weights, and so its own folder, are not there.

    A mistake in the command itself leaves nothing there: the right command is another trial, and would not remove it.
    """
    return _folder(cfg, identity.digest(identity.deciding(cfg)))


def _folder(cfg: TrialConfig, signature: str) -> Path:
    return identity.trial_folder(cfg.output_root, cfg.data.name, cfg.method.name, cfg.shots, cfg.seed, signature)


def check_parts(cfg: TrialConfig) -> None:
    """Refuse a backbone or protocol of another method's, what is no refinement, and fewer shots than the method needs.

    Raises:
        ConfigError: one of these.
    """
    method = cfg.parts["method"]
    for group, expected in (("backbone", method.Backbone), ("protocol", method.Protocol)):
        found = cfg.parts[group]
        if not issubclass(found, expected):
            raise ConfigError(
                f"the method {cfg.method.name} cannot use this {group}", path=group,
                found=f"{getattr(cfg, group).name} ({found.__name__})", expected=f"a {expected.__name__}",
                remedy=f"leave `{group}` out: the presets mini and paper choose what goes with the method",
            )  # fmt: skip
    if not issubclass(cfg.parts["refine"], Refinement):
        raise ConfigError(
            f"`{cfg.refine.name}` is no refinement", path="refine._target_", found=cfg.parts["refine"].__qualname__,
            expected=f"a dataclass that inherits {Refinement.__module__}.{Refinement.__qualname__}",
            remedy="refine=none, refine=guided or refine=crf, or see docs/extending.md",
        )  # fmt: skip
    if cfg.shots < method.least_shots:
        raise ConfigError(
            f"the method {cfg.method.name} needs a support image", path="shots", found=cfg.shots,
            expected=f"{method.least_shots} or more", remedy=f"e.g. shots={method.least_shots}",
        )  # fmt: skip


def check(spec: TrialSpec) -> None:
    """Refuse what is bound to go wrong, before any weights are loaded; see `SegmentationMethod.check`."""
    cfg = spec.cfg
    cfg.parts["method"].check(cfg.method, backbone_facts(cfg), spec.data.classes, cfg.data.image_size, cfg.shots)


def backbone_facts(cfg: TrialConfig) -> Any:
    """What the class of the backbone tells of it before it is loaded; None where it has no `describe`."""
    describe = getattr(cfg.parts["backbone"], "describe", None)
    return None if describe is None else describe(cfg.backbone)


def table_facts(cfg: TrialConfig) -> dict[str, Any]:
    """What tables need of a trial, see `MethodDescription.facts`; its refinement is stated too."""
    found = cfg.parts["method"].facts(cfg.method, cfg.shots)
    return {**found, "stated": {"refinement": cfg.refine.stated(cfg.data.image_size), **found["stated"]}}


def stamp(folder: Path) -> tuple[int, int] | None:
    """Something that changes when a trial's result is written again, whatever the clock says; None without a result."""
    try:
        status = (folder / RESULT_FILE).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def other_code(folder: Path) -> str | None:
    """Which code made the finished trial in `folder`, where that is known and is not the code that runs now."""
    facts, here = read_environment(folder) or {}, git_state() or {}
    commit = (facts.get("git") or {}).get("commit")
    if commit and here.get("commit"):
        return None if commit == here["commit"] else f"commit {commit[:12]}"
    installed = facts.get("slime_bench")
    return f"version {installed}" if installed and installed != version("slime-bench") else None

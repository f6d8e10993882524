"""One configuration with one seed -> one TrialResult, in files.

A finished trial with the same signature is returned as it is. `result.json` is written last and atomically: it alone
proves that the trial finished.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from slime_bench.config.secrets import redact
from slime_bench.errors import ConfigError, StorageError
from slime_bench.lock import held
from slime_bench.results import result as results
from slime_bench.results.confusion import CONFUSION_FILE, write_confusion
from slime_bench.results.curves import CURVES_FILE, write_curves
from slime_bench.results.environment import ENVIRONMENT_FILE, environment, reset_peaks, without_home
from slime_bench.results.result import TrialResult
from slime_bench.storage import ordered, remove_temporary, write_atomic
from slime_bench.tracking import closed_logger, log_result, mirror_finished
from slime_bench.trial import checkpoint
from slime_bench.trial.failure import ERROR_FILE, forget_failure, recorded_failure
from slime_bench.trial.fitting import (
    backbone_of,
    lightning_trainer,
    made_by,
    method_of,
    steps_of,
    threads,
    trainer_settings,
)
from slime_bench.trial.spec import (
    Known,
    check,
    identify,
    is_misplaced,
    nameless_folder,
    on_device,
    other_code,
    prepared_data,
    stamp,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """How `run` ended.

    Attributes:
        result: under the configured convention. folder: of the trial.
        reused: whether the trial was finished before. made_by: then, the code that made it, if it was not this one.
    """

    result: TrialResult
    folder: Path
    reused: bool = False
    made_by: str | None = None


def run(cfg: DictConfig, fitted: dict[str, Any] | None = None) -> Finished:
    """Run the trial that a validated configuration describes, or return its finished result.

    Args:
        fitted: the trial's state after a fit in one batch with others (`slime_bench.trial.batching`); it is only tested.

    Raises:
        SlimeBenchError: any mistake that the user can mend; finished trials are untouched.
        BusyError: another process computes this trial now.
    """
    cfg = on_device(cfg)
    with recorded_failure(nameless_folder(cfg), but=(ConfigError, KeyboardInterrupt)):
        known = identify(cfg, prepared_data(cfg))
    forget_failure(nameless_folder(cfg))
    seen = stamp(known.folder)
    if not cfg.force and (finished := _finished(known)) is not None:
        return finished
    check(known)  # a mistake of the command, which leaves no trace
    with held(known.folder):
        if stamp(known.folder) != seen and (finished := _finished(known)) is not None:  # by another process, just now
            return finished
        return Finished(_computed(known, fitted), known.folder)


def _finished(known: Known) -> Finished | None:
    """The trial's valid result, if it has one."""
    found = results.find_finished(known.folder, known.signature)
    if found is None:
        return None
    if is_misplaced(found, known.folder):
        _log.warning("This trial runs again: the result in %s belongs to another folder.", known.folder)
        return None
    result = found.under(known.cfg.metric.convention, known.cfg.metric.background)
    _log.info("%s  already finished: mIoU %s  %s", known.title, _percent(result.average), known.folder)
    mirror_finished(known.cfg, known.folder, known.plain, known.fingerprints, result)
    return Finished(result, known.folder, reused=True, made_by=other_code(known.folder))


def _computed(known: Known, fitted: dict[str, Any] | None) -> TrialResult:
    cfg, folder = known.cfg, known.folder
    _prepare(folder, known.plain)
    logged = closed_logger(cfg, folder, known.plain, known.fingerprints)
    with logged, recorded_failure(folder), threads(cfg.trainer.threads, cfg.trainer.deterministic):
        return _compute(known, fitted)


def _compute(known: Known, fitted: dict[str, Any] | None) -> TrialResult:
    """Fit, test, write."""
    cfg, data = known.cfg, known.data
    began = time.monotonic()
    reset_peaks(cfg.trainer.device)
    data.setup()  # mistakes in the data come before the backbone is loaded
    with backbone_of(known) as backbone:
        method = method_of(known, backbone, keep_maps=cfg.save_maps)
        try:
            return _fit_and_test(known, fitted, method, began)
        finally:
            method.restore()


def _fit_and_test(known: Known, fitted: dict[str, Any] | None, method: Any, began: float) -> TrialResult:
    cfg, plain, data, folder = known.cfg, known.plain, known.data, known.folder
    method.prepare(data, cfg.trainer.device)
    data.support_group = method.support_group
    keeper = _checkpoints(known, fitted, method, began)
    trainer, progress = make_trainer(cfg, data, method, folder, known.title, keeper)
    if method.epochs > 0:
        trainer.fit(method, data)
        method.use_best_state()
        write_curves(folder / CURVES_FILE, method.curve.points())
    tested = time.monotonic()
    _test(cfg, trainer, method, data, folder)
    counts = method.test_metric.counts()
    result = results.from_counts(
        counts,
        config=plain,
        fingerprints=known.fingerprints,
        method=cfg.method.name,
        backbone=cfg.backbone.name,
        data=cfg.data.name,
        subject=cfg.data.subject,
        shots=cfg.shots,
        seed=cfg.seed,
        preset=cfg.preset,
        protocol=cfg.protocol.name,
        classes=data.classes,
        convention=cfg.metric.convention,
        background=cfg.metric.background,
        support_ids=data.support_ids,
        prepared=data.prepared(),
        validation={"score": method.best_score, "epoch": method.best_epoch} if method.best_epoch is not None else {},
    )
    save_state(folder / "state.safetensors", method.learned_state(), plain, data.classes)
    results.write_per_image(folder / "per_image.parquet", method.test_ids, data.classes, counts)
    write_confusion(folder / CONFUSION_FILE, data.classes, method.test_metric.confusion.cpu().numpy())
    _write_qualitative(folder, method)
    for name, content in method.extra_files().items():
        write_atomic(folder / name, content)
    before, together = (0.0, []) if keeper is None else (keeper.seconds, keeper.together)
    # `before`: what killed processes have spent on it, or its part of a fit with others
    seconds = {"fit": round(before + tested - began, 2), "test": round(time.monotonic() - tested, 2)}
    facts = environment(cfg.trainer.device, seconds, known.fingerprints) | {"together": together}
    write_atomic(folder / ENVIRONMENT_FILE, _json(facts))
    results.write_result(folder, result)
    checkpoint.discard(folder)
    log_result(folder, result)
    if progress is not None:
        progress.finish(f"mIoU {_percent(result.average)}")
    return result


def _test(cfg: DictConfig, trainer: Any, method: Any, data: Any, folder: Path) -> None:
    """Test on as many devices as the trial is given, and as there are batches for."""
    devices = min(cfg.trainer.devices, len(data.test_dataloader()))
    if devices < 2:
        trainer.test(method, data, verbose=False)
        return
    from slime_bench.trial.sharding import test_on

    test_on(devices, method, data, trainer_settings(cfg, folder))


def _checkpoints(known: Known, fitted: dict[str, Any] | None, method: Any, began: float) -> Any:
    """The callback that resumes an interrupted fit and keeps it resumable; None where there is nothing to fit."""
    from slime_bench.trial.resume import Checkpoints

    every = known.cfg.trainer.checkpoint_every
    if known.cfg.force:
        checkpoint.discard(known.folder)
    if method.epochs == 0 or (every == 0 and fitted is None):
        return None
    keeper = Checkpoints(known.folder, made_by(known), every, began)
    step = keeper.find(method) if fitted is None else keeper.take(fitted, method)
    if step is not None and fitted is None:
        _log.info("%s  goes on after step %d of its optimisation", known.title, step)
    return keeper


def make_trainer(
    cfg: DictConfig, data: Any, method: Any, folder: Path, title: str, checkpoints: Any = None
) -> tuple[Any, Any]:
    from slime_bench.tracking import make_logger
    from slime_bench.trial.progress import ProgressLine

    steps = steps_of(cfg, data, method)
    progress = ProgressLine(title, steps, len(data.test_dataloader())) if cfg.trainer.progress else None
    trainer = lightning_trainer(cfg, method, steps, folder, [checkpoints, progress], make_logger(cfg, folder))
    return trainer, progress


def _prepare(folder: Path, plain: Any) -> None:
    """Make the trial's folder, which this process holds, fit for a new run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            "the trial's folder cannot be made", path=folder, found=error.strerror, expected="a writable folder",
            remedy="choose another with output_root=<folder>, or free some space",
        ) from error  # fmt: skip
    remove_temporary(folder)
    (folder / ERROR_FILE).unlink(missing_ok=True)
    if not plain["force"]:  # it is there and not valid; a valid one is only ever replaced, should the new run fail
        (folder / results.RESULT_FILE).unlink(missing_ok=True)
    settings = without_home(redact(plain))
    write_atomic(folder / "config.yaml", OmegaConf.to_yaml(settings, sort_keys=True).encode())


def save_state(path: Path, learned: Mapping[str, torch.Tensor], config: Any, classes: Any) -> None:
    """The learned tensors as safetensors, with all that inference needs besides the backbone in the metadata."""
    from safetensors.torch import save

    groups = ("method", "protocol", "backbone", "data")
    facts = {"classes": json.dumps(list(classes)), "seed": str(config["seed"])}
    facts |= {name: json.dumps(redact(config[name]), sort_keys=True) for name in groups}
    tensors = {name: value.detach().cpu().contiguous() for name, value in learned.items()}
    write_atomic(path, ordered(save(tensors, metadata=facts)))


def _write_qualitative(folder: Path, method: Any) -> None:
    if not method.kept:
        return
    from slime_bench.results.qualitative import QUALITATIVE_FILE, GridItem, write_qualitative

    items = [
        GridItem(
            image_id=name,
            image=(one["image"] * 255).round().byte().permute(1, 2, 0).numpy(),
            label=one["label"].byte().numpy(),
            prediction=one["prediction"].byte().numpy(),
            maps=one["maps"].half().numpy(),
        )
        for name, one in zip(method.test_ids, method.kept, strict=False)
    ]
    write_qualitative(folder / QUALITATIVE_FILE, items, method.classes)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:.1f}"

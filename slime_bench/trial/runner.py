"""A trial runs here: one configuration with one seed -> one TrialResult, in files.

A finished trial with the same signature is returned as it is. `result.json` is written last and atomically: it alone
proves that the trial finished.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slime_bench.config.schema import TrialConfig
from slime_bench.config.secrets import redact
from slime_bench.errors import ConfigError
from slime_bench.lock import held
from slime_bench.results import identity, result
from slime_bench.results.environment import ENVIRONMENT_FILE, environment, reset_peaks, without_home
from slime_bench.results.result import TrialResult
from slime_bench.results.state import write_state
from slime_bench.storage import remove_temporary, write_atomic
from slime_bench.tracking.loggers import curve_callback, log_result, mirror_finished, trial_logger
from slime_bench.trial.failure import ERROR_FILE, forget_failure, recorded_failure
from slime_bench.trial.spec import (
    TrialSpec,
    check,
    identify,
    nameless_folder,
    on_device,
    other_code,
    prepared_data,
    stamp,
    table_facts,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialEnd:
    """How `run` ended.

    Attributes:
        result: under the configured convention. folder: of the trial.
        reused: whether the trial was finished before. code: then, the code that made it, if it was not this one.
    """

    result: TrialResult
    folder: Path
    reused: bool = False
    code: str | None = None


def spec_of(cfg: TrialConfig) -> TrialSpec:
    """The spec of the trial that a configuration describes; its data are made where they can be, and checked.

    Raises:
        SlimeBenchError: any mistake that the user can mend. One of data or weights is left in the folder.
    """
    cfg = on_device(cfg)
    with recorded_failure(cfg, nameless_folder(cfg), but=(ConfigError, KeyboardInterrupt)):
        spec = identify(cfg, prepared_data(cfg))
    forget_failure(nameless_folder(cfg))
    return spec


def run(spec: TrialSpec, fitted: dict[str, Any] | None = None) -> TrialEnd:
    """Run a trial, or return its finished result.

    Args:
        fitted: the trial's state after a fit in one batch with others (`trial.batching`): it is only tested.

    Raises:
        SlimeBenchError: any mistake that the user can mend; finished trials are untouched.
        BusyError: another process computes this trial now.
    """
    seen = stamp(spec.folder)
    if not spec.cfg.force and (finished := _finished(spec)) is not None:
        return finished
    check(spec)  # a mistake of the command, which leaves no trace
    with held(spec.folder):
        if stamp(spec.folder) != seen and (finished := _finished(spec)) is not None:  # by another process, just now
            return finished
        _prepare(spec.folder, spec.cfg)
        logged = trial_logger(spec.cfg, spec.folder, spec.fingerprints)
        with logged as logger, recorded_failure(spec.cfg, spec.folder):
            return TrialEnd(_compute(spec, fitted, logger), spec.folder)


def _finished(spec: TrialSpec) -> TrialEnd | None:
    """The trial's valid result, if it has one."""
    found = result.find_finished(spec.folder, spec.signature)
    if found is None:
        return None
    stated = found.under(spec.cfg.metric.convention, spec.cfg.metric.background)
    _log.info("%s  already finished: mIoU %s  %s", spec.title, _percent(stated.average), spec.folder)
    mirror_finished(spec.cfg, spec.folder, spec.fingerprints, stated)
    return TrialEnd(stated, spec.folder, reused=True, code=other_code(spec.folder))


def _compute(spec: TrialSpec, fitted: dict[str, Any] | None, logger: Any) -> TrialResult:
    """Fit, test, write."""
    from slime_bench.trial.fitting import backbone_of, method_of, threads

    cfg, began = spec.cfg, time.monotonic()
    reset_peaks(cfg.trainer.device)
    with threads(cfg.trainer.threads, cfg.trainer.deterministic):
        batches = spec.data.datamodule()
        batches.setup()  # mistakes in the data come before the backbone is loaded
        with backbone_of(spec) as backbone:
            method = method_of(cfg, spec.data.classes, backbone, keep_maps=cfg.save_maps)
            try:
                return _fit_and_test(spec, batches, fitted, logger, method, began)
            finally:
                method.restore()


def _fit_and_test(
    spec: TrialSpec, batches: Any, fitted: dict[str, Any] | None, logger: Any, method: Any, began: float
) -> TrialResult:
    from slime_bench.results.artifacts import CONFUSION_FILE, CURVES_FILE, write_confusion, write_curves
    from slime_bench.trial import checkpoint
    from slime_bench.trial.fitting import lightning_trainer, steps_of
    from slime_bench.trial.progress import ProgressLine

    cfg, data, folder = spec.cfg, spec.data, spec.folder
    method.prepare(batches, cfg.trainer.device)
    batches.support_group = method.support_group
    keeper = _checkpoints(spec, fitted, method, began)
    steps = steps_of(cfg, data, method)
    progress = ProgressLine(spec.title, steps, len(batches.test_dataloader())) if cfg.trainer.progress else None
    curve = None if logger is None else curve_callback(logger)
    trainer = lightning_trainer(cfg, method, steps, folder, [keeper, progress, curve])
    if method.epochs > 0:
        trainer.fit(method, batches)
        method.use_best_state()
        write_curves(folder / CURVES_FILE, method.curve.points())
    tested = time.monotonic()
    trainer.test(method, batches, verbose=False)
    counts = method.test_metric.counts()
    found = result.from_counts(
        counts,
        config=identity.recorded(cfg),
        signature=spec.signature,
        series=identity.series(cfg, spec.fingerprints),
        fingerprints=spec.fingerprints,
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
        facts=table_facts(cfg),
    )
    write_state(folder / "state.safetensors", method.learned_state(), cfg.plain, data.classes)
    result.write_per_image(folder / "per_image.parquet", method.test_ids, data.classes, counts)
    write_confusion(folder / CONFUSION_FILE, data.classes, method.test_metric.confusion.cpu().numpy())
    _write_qualitative(folder, method)
    for name, content in method.extra_files().items():
        write_atomic(folder / name, content)
    before, batch = (0.0, []) if keeper is None else (keeper.seconds, keeper.batch)
    # `before`: what killed processes have spent on it, or its part of a fit with others
    seconds = {"fit": round(before + tested - began, 2), "test": round(time.monotonic() - tested, 2)}
    facts = environment(cfg.trainer.device, seconds, spec.fingerprints) | {"batch": batch}
    write_atomic(folder / ENVIRONMENT_FILE, _json(facts))
    result.write_result(folder, found)
    checkpoint.discard(folder)
    log_result(logger, folder, found)
    if progress is not None:
        progress.finish(f"mIoU {_percent(found.average)}")
    return found


def _checkpoints(spec: TrialSpec, fitted: dict[str, Any] | None, method: Any, began: float) -> Any:
    """The callback that resumes an interrupted fit and keeps it resumable; None where there is nothing to fit."""
    from slime_bench.trial import checkpoint
    from slime_bench.trial.fitting import origin_of
    from slime_bench.trial.resume import Checkpoints

    every = spec.cfg.trainer.checkpoint_every
    if spec.cfg.force:
        checkpoint.discard(spec.folder)
    if method.epochs == 0 or (every == 0 and fitted is None):
        return None
    keeper = Checkpoints(spec.folder, origin_of(spec), every, began)
    step = keeper.find(method) if fitted is None else keeper.take(fitted, method)
    if step is not None and fitted is None:
        _log.info("%s  goes on after step %d of its optimisation", spec.title, step)
    return keeper


def _prepare(folder: Path, cfg: TrialConfig) -> None:
    """Make the trial's folder, which this process holds, fit for a new run."""
    remove_temporary(folder)
    (folder / ERROR_FILE).unlink(missing_ok=True)
    if not cfg.force:  # it is there and not valid; a valid one is only ever replaced, should the new run fail
        (folder / result.RESULT_FILE).unlink(missing_ok=True)
    settings = without_home(redact(cfg.plain))
    write_atomic(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=True, allow_unicode=True).encode())


def _write_qualitative(folder: Path, method: Any) -> None:
    if not method.examples:
        return
    from slime_bench.results.artifacts import QUALITATIVE_FILE, GridItem, write_qualitative

    items = [
        GridItem(
            image_id=name,
            image=(one["image"] * 255).round().byte().permute(1, 2, 0).numpy(),
            label=one["label"].byte().numpy(),
            prediction=one["prediction"].byte().numpy(),
            maps=one["maps"].half().numpy(),
        )
        for name, one in zip(method.test_ids, method.examples, strict=False)
    ]
    write_qualitative(folder / QUALITATIVE_FILE, items, method.classes)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:.1f}"

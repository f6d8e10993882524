"""Trials of one sweep that are fitted in one batch, because they differ in nothing that the backbone's pass depends on.

Only the fit is shared. Each trial then goes on by itself, as one that was interrupted at the end of its fit: it is
tested, logged and written by `slime_bench.trial.runner`, and fails alone. Every step of a trial is the step that it
takes alone, on the same random draws; only the order in which a kernel adds up numbers depends on the batch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from slime_bench.config.schema import TrialConfig, implementation_of
from slime_bench.errors import StorageError
from slime_bench.lock import BusyError, held
from slime_bench.methods.batch import BatchData, TrialBatch
from slime_bench.results.result import find_finished
from slime_bench.trial import checkpoint
from slime_bench.trial.fitting import backbone_of, lightning_trainer, method_of, origin_of, steps_of, threads
from slime_bench.trial.progress import ProgressLine
from slime_bench.trial.resume import Checkpoints, fit_state
from slime_bench.trial.spec import TrialSpec

_log = logging.getLogger(__name__)


def is_pending(spec: TrialSpec, begun: bool = False) -> bool:
    """Whether the trial is to be fitted, and has not begun by itself.

    Args:
        begun: whether a batch that it may be of was interrupted, maybe while it was handing over to its trials.
    """
    if spec.cfg.force:
        return True
    if find_finished(spec.folder, spec.signature) is not None:
        return False
    path = spec.folder / checkpoint.FILE
    # The file comes first: `origin_of` hashes all code.
    return begun or not path.exists() or not checkpoint.is_of(path, origin_of(spec))


def fit_batch(candidates: Sequence[TrialSpec], limit: int | None, begun: bool = False) -> dict[str, dict[str, Any]]:
    """Fit the first of the trials, with as many of the others as one batch takes.

    Args:
        candidates: pending trials of one kind, at least two. limit: of trials in one batch; None for what the method
            thinks is of use on the device. begun: see `is_pending`.

    Returns:
        By signature the state of each trial that was fitted, see `resume.fit_state`. Empty where one trial at a
        time is best, or other processes compute them.
    """
    with ExitStack() as stack:
        locked = []
        for spec in candidates:
            try:
                stack.enter_context(held(spec.folder))
            except BusyError:
                continue
            if is_pending(spec, begun):  # nobody has finished it in the meantime
                locked.append(spec)
        if not locked or locked[0] is not candidates[0] or len(locked) < 2:
            return {}
        modules = {spec.signature: spec.data.datamodule() for spec in locked}
        for module in modules.values():
            module.setup("fit")  # mistakes in the data come before the backbone is loaded
        cfg = locked[0].cfg
        with threads(cfg.trainer.threads, cfg.trainer.deterministic), backbone_of(locked[0]) as backbone:
            size = limit
            if size is None:
                method = implementation_of(cfg.parts["method"])
                size = method.trials_per_batch(
                    backbone, cfg.data.image_size, cfg.data.train_batch_size, cfg.trainer.device
                )
            batch = locked[: even_share(len(locked), size)]
            return _fit(batch, [modules[spec.signature] for spec in batch], backbone) if len(batch) > 1 else {}


def even_share(count: int, most: int) -> int:
    """Size of the first of as few batches as possible, of at most `most` trials each and about one size."""
    return -(-count // -(-count // max(1, most)))


def _fit(batch: Sequence[TrialSpec], modules: Sequence[Any], backbone: Any) -> dict[str, dict[str, Any]]:
    began = time.monotonic()
    first, cfg = batch[0], batch[0].cfg
    methods = [method_of(spec.cfg, spec.data.classes, backbone) for spec in batch]
    try:
        for batches, method in zip(modules, methods, strict=True):
            method.prepare(batches, cfg.trainer.device)
            batches.support_group = method.support_group
        steps = {steps_of(spec.cfg, spec.data, method) for spec, method in zip(batch, methods, strict=True)}
        if len(steps) > 1 or not (total := steps.pop()):
            return {}
        module = TrialBatch(methods)
        keeper = _checkpoints(batch, module, began)
        title = f"{first.title.rpartition(' seed ')[0]}, {len(batch)} trials in one batch"
        progress = ProgressLine(title, total, 0) if cfg.trainer.progress else None
        trainer = lightning_trainer(cfg, module, total, first.folder, [keeper, progress])
        trainer.fit(module, BatchData(modules))
        if progress is not None:
            progress.finish("fitted")
        spent = time.monotonic() - began + (0.0 if keeper is None else keeper.seconds)
        return _handed_over(batch, methods, trainer, spent / len(batch))
    finally:
        for method in methods:
            method.restore()


def _keeps_checkpoints(cfg: TrialConfig) -> bool:
    """Whether a batch whose first trial is this one can go on after an interruption."""
    return bool(cfg.trainer.checkpoint_every > 0 and not cfg.force)


def _checkpoints(batch: Sequence[TrialSpec], module: Any, began: float) -> Any:
    """The callback that resumes the batch's interrupted fit and keeps it resumable; None where that is not wanted."""
    first = batch[0]
    if first.cfg.force:
        (first.folder / checkpoint.BATCH_FILE).unlink(missing_ok=True)
    if not _keeps_checkpoints(first.cfg):
        return None
    origin = {**origin_of(first), "signature": " ".join(spec.signature for spec in batch)}
    keeper = Checkpoints(first.folder, origin, first.cfg.trainer.checkpoint_every, began, checkpoint.BATCH_FILE)
    step = keeper.find(module)
    if step is not None:
        _log.info("%d trials in one batch go on after step %d of their optimisation", len(batch), step)
    return keeper


def _handed_over(
    batch: Sequence[TrialSpec], methods: Sequence[Any], trainer: Any, seconds: float
) -> dict[str, dict[str, Any]]:
    """The state of each trial, also as a checkpoint of its own: after an interruption the fit is not repeated."""
    signatures = [spec.signature for spec in batch]
    states = {
        spec.signature: fit_state(trainer, method, seconds, signatures, finished=True)
        for spec, method in zip(batch, methods, strict=True)
    }
    if _keeps_checkpoints(batch[0].cfg):
        try:
            for spec in batch:
                checkpoint.write(spec.folder / checkpoint.FILE, states[spec.signature], origin_of(spec))
        except StorageError as error:  # the states are in memory as well: the trials may yet finish
            _log.warning("No checkpoint could be written; the trials go on.\n%s", error)
    (batch[0].folder / checkpoint.BATCH_FILE).unlink(missing_ok=True)
    return states

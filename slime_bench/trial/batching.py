"""Trials of one sweep that are fitted in one batch, because they differ in nothing that the backbone's pass depends on.

Only the fit is shared. Each trial then goes on by itself, as one that was interrupted at the end of its fit: it is
tested, logged and written by `slime_bench.trial.runner`, and fails alone. Every step of a trial is the step that it
takes alone, on the same random draws; only the order in which a kernel adds up floating-point numbers depends on the batch.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Final

from omegaconf import DictConfig

from slime_bench.config.schema import load_target
from slime_bench.errors import ConfigError, SlimeBenchError, StorageError
from slime_bench.lock import BusyError, held
from slime_bench.results import identity
from slime_bench.results import result as results
from slime_bench.trial import checkpoint
from slime_bench.trial.fitting import backbone_of, lightning_trainer, made_by, method_of, steps_of, threads
from slime_bench.trial.spec import Known, check, identify, on_device, prepared_data

AUTO: Final = "auto"
_OWN: Final = ("seed", "logger", "launcher", "save_maps", "force", "per_preset")
_log = logging.getLogger(__name__)


def most(setting: int | str) -> int | None:
    """The number of trials that `launcher.trials_per_batch` allows in one batch; None for `auto`.

    Raises:
        ConfigError: neither `auto` nor a number of at least 1.
    """
    if setting == AUTO:
        return None
    if not isinstance(setting, int) or setting < 1:
        raise ConfigError(
            "bad number of trials in one batch", path="launcher.trials_per_batch", found=setting,
            expected=f"{AUTO}, or 1 or more", remedy="e.g. launcher.trials_per_batch=1 for each trial by itself",
        )  # fmt: skip
    return setting


def may_differ(cfg: DictConfig) -> tuple[str, ...] | None:
    """The method's `may_differ`; None too where the configuration alone says that the trial has to be fitted alone.

    Raises:
        ConfigError: the method cannot be loaded.
    """
    allowed: tuple[str, ...] | None = load_target(cfg.method["_target_"]).may_differ
    # Half precision scales the loss, by a factor that would be one for all.
    return None if cfg.trainer.precision == "fp16" else allowed


def kind(known: Known) -> str | None:
    """What trials of one batch have in common, as a hash; None for a trial that has to be fitted alone."""
    allowed = may_differ(known.cfg)
    if allowed is None:
        return None
    config = {key: value for key, value in known.plain.items() if key not in _OWN}
    config["method"] = {key: value for key, value in config["method"].items() if key not in allowed}
    prints = {name: known.fingerprints[name] for name in ("data", "backbone")}
    return hashlib.sha256(identity.canonical_json([config, prints]).encode()).hexdigest()


def is_pending(known: Known, begun: bool = False) -> bool:
    """Whether the trial is to be fitted, and has not begun by itself.

    Args:
        begun: whether a batch that it may be of was interrupted, maybe while it was handing over to its trials.
    """
    if known.cfg.force:
        return True
    path = known.folder / checkpoint.FILE
    # The file comes first: `made_by` hashes all code.
    if not begun and path.exists() and checkpoint.is_of(path, made_by(known)):
        return False
    return results.find_finished(known.folder, known.signature) is None


class Batches:
    """Which trials of a command are fitted in one batch, found out as they come up.

    Args:
        trials: the command's configurations, in order. limit: of trials in one batch; None for as many as are of use.
    """

    def __init__(self, trials: Sequence[DictConfig], limit: int | None) -> None:
        self._trials, self._limit = list(trials), limit
        self._known: dict[int, Known | None] = {}
        self._kinds: dict[int, str | None] = {}
        self._fitted: dict[str, dict[str, Any]] = {}
        self._tried: set[int] = set()

    def fitted(self, index: int) -> dict[str, Any] | None:
        """The state of the trial at `index` after a fit in one batch with later ones; None for one to be fitted alone.

        Raises:
            KeyboardInterrupt: whatever else goes wrong in the batch is a warning, and its trials are fitted alone.
        """
        if self._limit == 1 or len(self._trials) < 2:
            return None
        if index not in self._tried:
            self._fit(index)
        known = self._known.get(index)
        return None if known is None else self._fitted.pop(known.signature, None)

    def _fit(self, index: int) -> None:
        self._tried.add(index)
        wanted = self._kind(index)
        if wanted is None or (first := self._look(index)) is None:
            return
        begun = (first.folder / checkpoint.TOGETHER).exists()
        if not is_pending(first, begun):
            return
        candidates = {first.signature: (index, first)}
        for place in range(index + 1, len(self._trials)):
            known = self._look(place) if place not in self._tried and self._kind(place) == wanted else None
            if known is not None and known.signature not in candidates and is_pending(known, begun):
                candidates[known.signature] = (place, known)
        if len(candidates) < 2:
            return
        try:
            found = fit_together([known for _, known in candidates.values()], self._limit, begun)
        except Exception as error:
            summary = error.summary if isinstance(error, SlimeBenchError) else f"{type(error).__name__}: {error}"
            _log.warning(
                "%d trials could not be fitted in one batch, and go on one by one: %s", len(candidates), summary
            )
            self._tried.update(place for place, _ in candidates.values())
            return
        self._fitted |= found
        self._tried.update(candidates[signature][0] for signature in found)

    def _kind(self, index: int) -> str | None:
        """See `kind`. A trial whose configuration says that it is fitted alone is not looked at, which takes time."""
        if index not in self._kinds:
            self._kinds[index] = None
            with suppress(Exception):  # a method that cannot be loaded: the trial will say so itself
                if may_differ(self._trials[index]) is not None and (known := self._look(index)) is not None:
                    self._kinds[index] = kind(known)
        return self._kinds[index]

    def _look(self, index: int) -> Known | None:
        """What tells the trial from others; None where that cannot be found out, which it will say itself."""
        if index not in self._known:
            self._known[index] = None
            with suppress(Exception):
                cfg = on_device(self._trials[index])
                known = identify(cfg, prepared_data(cfg))
                check(known)
                self._known[index] = known
        return self._known[index]


def fit_together(candidates: Sequence[Known], limit: int | None, begun: bool = False) -> dict[str, dict[str, Any]]:
    """Fit the first of the trials, with as many of the others as one batch takes.

    Args:
        candidates: pending trials of one kind, at least two. limit: of trials in one batch; None for what the method
            thinks is of use on the device. begun: see `is_pending`.

    Returns:
        By signature the state of each trial that was fitted, see `resume.finished_state`. Empty where one trial at a
        time is best, or other processes compute them.
    """
    with ExitStack() as stack:
        locked = []
        for known in candidates:
            try:
                stack.enter_context(held(known.folder))
            except BusyError:
                continue
            if is_pending(known, begun):  # nobody has finished it in the meantime
                locked.append(known)
        if not locked or locked[0] is not candidates[0] or len(locked) < 2:
            return {}
        for known in locked:
            known.data.setup("fit")  # mistakes in the data come before the backbone is loaded
        trainer = locked[0].cfg.trainer
        with threads(trainer.threads, trainer.deterministic), backbone_of(locked[0]) as backbone:
            size = limit
            if size is None:
                size = load_target(locked[0].cfg.method["_target_"]).trials_of_use(
                    backbone, locked[0].cfg.data.image_size, locked[0].cfg.data.train_batch_size, trainer.device
                )
            batch = locked[: even_share(len(locked), size)]
            return _fit(batch, backbone) if len(batch) > 1 else {}


def even_share(count: int, most: int) -> int:
    """Size of the first of as few batches as possible, of at most `most` trials each and about one size."""
    return -(-count // -(-count // max(1, most)))


def _fit(batch: Sequence[Known], backbone: Any) -> dict[str, dict[str, Any]]:
    from slime_bench.methods.batching import Together, TogetherData
    from slime_bench.trial.progress import ProgressLine

    began = time.monotonic()
    first, signatures = batch[0], [known.signature for known in batch]
    cfg = first.cfg
    methods = [method_of(known, backbone) for known in batch]
    try:
        for known, method in zip(batch, methods, strict=True):
            method.prepare(known.data, cfg.trainer.device)
            known.data.support_group = method.support_group
        steps = {steps_of(known.cfg, known.data, method) for known, method in zip(batch, methods, strict=True)}
        if len(steps) > 1 or not (total := steps.pop()):
            return {}
        module = Together(methods)
        keeper = _checkpoints(batch, module, began)
        title = f"{first.title.rpartition(' seed ')[0]}, {len(batch)} trials in one batch"
        progress = ProgressLine(title, total, 0) if cfg.trainer.progress else None
        trainer = lightning_trainer(cfg, module, total, first.folder, [keeper, progress])
        trainer.fit(module, TogetherData([known.data for known in batch]))
        if progress is not None:
            progress.finish("fitted")
        spent = time.monotonic() - began + (0.0 if keeper is None else keeper.seconds)
        return _handed_over(batch, methods, trainer, spent / len(batch), signatures)
    finally:
        for method in methods:
            method.restore()


def _keeps_checkpoints(cfg: DictConfig) -> bool:
    """Whether a batch whose first trial is this one can go on after an interruption."""
    return bool(cfg.trainer.checkpoint_every > 0 and not cfg.force)


def _checkpoints(batch: Sequence[Known], module: Any, began: float) -> Any:
    """The callback that resumes the batch's interrupted fit and keeps it resumable; None where that is not wanted."""
    from slime_bench.trial.resume import Checkpoints

    first = batch[0]
    if first.cfg.force:
        (first.folder / checkpoint.TOGETHER).unlink(missing_ok=True)
    if not _keeps_checkpoints(first.cfg):
        return None
    origin = {**made_by(first), "signature": " ".join(known.signature for known in batch)}
    keeper = Checkpoints(first.folder, origin, first.cfg.trainer.checkpoint_every, began, checkpoint.TOGETHER)
    step = keeper.find(module)
    if step is not None:
        _log.info("%d trials in one batch go on after step %d of their optimisation", len(batch), step)
    return keeper


def _handed_over(
    batch: Sequence[Known], methods: Sequence[Any], trainer: Any, seconds: float, signatures: list[str]
) -> dict[str, dict[str, Any]]:
    """The state of each trial, also as a checkpoint of its own: after an interruption the fit is not repeated."""
    from slime_bench.trial.resume import finished_state

    states: dict[str, dict[str, Any]] = {}
    for known, method in zip(batch, methods, strict=True):
        states[known.signature] = finished_state(trainer, method, seconds, signatures)
    if _keeps_checkpoints(batch[0].cfg):
        _write(batch, states)
    (batch[0].folder / checkpoint.TOGETHER).unlink(missing_ok=True)
    return states


def _write(batch: Sequence[Known], states: Mapping[str, dict[str, Any]]) -> None:
    for known in batch:
        try:
            known.folder.mkdir(parents=True, exist_ok=True)
            checkpoint.write(known.folder / checkpoint.FILE, states[known.signature], made_by(known))
        except (StorageError, OSError) as error:  # the states are in memory as well: the trials may yet finish
            _log.warning("No checkpoint could be written; the trials go on.\n%s", error)
            return

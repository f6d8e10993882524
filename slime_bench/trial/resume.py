"""Going on with an interrupted optimisation where it stopped, to the same bit.

A checkpoint is the state between two steps. Lightning's own way, `fit(ckpt_path=...)`, needs pickle and holds the whole
frozen backbone; here a callback keeps what training changes, and puts it back before the first step. All randomness is
keyed (`slime_bench.seeding`), so no generator's state is part of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from slime_bench.results.artifacts import CURVES_FILE, write_curves
from slime_bench.results.result import RESULT_FILE
from slime_bench.trial import checkpoint

SHARE = 0.02
"""Part of the time that checkpoints may take, apart from the one at the end of the optimisation."""
_log = logging.getLogger(__name__)


class Checkpoints(Callback):
    """Writes checkpoints of a trial's optimisation, and restores the one that a killed process has left.

    A checkpoint is due when `every` steps have passed since the last, but not so often that writing takes more than
    `SHARE` of the time. One more is written at the end of the optimisation, so that it is not repeated when the test is
    interrupted.

    Args:
        folder: of the trial. origin: see `checkpoint.origin`. every: steps between two checkpoints, at least 1.
        began: when this process began with the trial, as `time.monotonic()`.
        name: of the checkpoint's file; beside `checkpoint.FILE`, a single trial's, the curve so far is written.

    Attributes:
        seconds: that earlier processes had spent on the trial when they wrote the checkpoint that is resumed.
        batch: signatures of the trials that were fitted in one batch with it, itself among them; empty for none.
    """

    def __init__(
        self, folder: Path, origin: Mapping[str, str], every: int, began: float, name: str = checkpoint.FILE
    ) -> None:
        self.path, self.origin, self.every = folder / name, dict(origin), every
        self.seconds = 0.0
        self.batch: list[str] = []
        self._began = began
        self._found: dict[str, Any] | None = None
        self._last_step, self._last_time = 0, began
        self._cost = 0.0  # of writing the last checkpoint, in seconds
        self._warned = False

    def find(self, method: Any) -> int | None:
        """Look for a checkpoint that `method`, ready to be fitted, can go on from; the number of its steps, or None."""
        return self.take(checkpoint.read(self.path, self.origin), method)

    def take(self, found: dict[str, Any] | None, method: Any) -> int | None:
        """Go on from a state of `fit_state`; see `find`."""
        if found is None:
            return None
        shapes, expected = (
            {name: (str(value.dtype), list(value.shape)) for name, value in each.items()}
            for each in (found["method"]["learned"], method.learned_state())
        )
        if shapes != expected:
            # The same signature, and yet: a device on which the choice of layers is not quite reproducible.
            _log.warning(
                "The trial starts anew: the checkpoint %s holds other tensors than the method learns.", self.path
            )
            return None
        self._found, self.seconds, self.batch = found, found["seconds"], found["batch"]
        return int(found["step"])

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Puts everything back; the optimisers exist and nothing has run."""
        self._last_time = time.monotonic()
        found, self._found = self._found, None
        if found is None:
            return
        pl_module.load_training_state(found["method"])
        loop = found["loop"]
        trainer.fit_loop.load_state_dict(loop if found["finished"] else _restarting(loop))
        self._last_step = found["step"]
        if found["finished"]:
            trainer.should_stop = True
            return
        trainer.datamodule.first_batch = loop["epoch_loop.batch_progress"]["current"]["completed"]  # type: ignore[attr-defined]
        for part, state in zip(_stateful(trainer), found["optimisation"], strict=True):
            part.load_state_dict(state)

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Between two steps: validation, logging and schedules of the step before are over."""
        if trainer.global_step - self._last_step < self.every:
            return
        if time.monotonic() - self._last_time >= self._cost / SHARE:
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._write(trainer, pl_module, finished=True)

    def _write(self, trainer: lightning.Trainer, method: Any, finished: bool = False) -> None:
        began = time.monotonic()
        spent = self.seconds + began - self._began
        try:
            checkpoint.write(self.path, fit_state(trainer, method, spent, self.batch, finished), self.origin)
            self._write_curves(method)
        except Exception as error:  # a full disk, or somebody else's state: the trial may yet finish
            if not self._warned:
                _log.warning("No checkpoint could be written; the trial goes on.\n%s", error)
            self._warned = True
        self._last_step, self._last_time = trainer.global_step, time.monotonic()
        self._cost = self._last_time - began

    def _write_curves(self, method: Any) -> None:
        # The curves of a trial that is repeated stay until its new result is there.
        if self.path.name == checkpoint.FILE and not self.path.with_name(RESULT_FILE).exists():
            write_curves(self.path.with_name(CURVES_FILE), method.curve.points())


def fit_state(
    trainer: lightning.Trainer, method: Any, seconds: float, batch: list[str], finished: bool
) -> dict[str, Any]:
    """What a checkpoint holds; after the last step nothing is needed of what leads from one step to the next.

    Args:
        trainer: which fits the method, maybe in a batch with others. seconds: that the fit has taken. batch: signatures
            of the trials that are fitted in one batch with it.
    """
    return {
        "finished": finished,
        "step": trainer.global_step,
        "seconds": seconds,
        "batch": batch,
        "method": method.training_state(),
        "loop": trainer.fit_loop.state_dict(),
        "optimisation": [] if finished else [part.state_dict() for part in _stateful(trainer)],
    }


def _stateful(trainer: lightning.Trainer) -> list[Any]:
    """Optimisers, schedules of the learning rate, and the scaler of fp16's losses."""
    schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
    return [*trainer.optimizers, *schedules, trainer.precision_plugin]


def _restarting(loop: Mapping[str, Any]) -> dict[str, Any]:
    """Lightning's loop state, to be loaded between two steps: on a restart it counts a logged step too many."""
    inner = loop["epoch_loop.state_dict"]
    return {**loop, "epoch_loop.state_dict": {**inner, "_batches_that_stepped": inner["_batches_that_stepped"] - 1}}

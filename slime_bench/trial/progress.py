"""One line of progress that a person at a terminal and a log file can both read."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

_BAR = 24


class ProgressLine(Callback):
    """Shows step, loss and best validation score of one trial on stderr.

    On a terminal the line is redrawn four times a second; in a file a new line comes every ten seconds.
    """

    def __init__(self, title: str, total_steps: int, total_test_batches: int) -> None:
        self._title, self._steps, self._batches = title, total_steps, total_test_batches
        self._terminal = sys.stderr.isatty()
        self._shown, self._began = 0.0, time.monotonic()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        loss = f"loss {float(outputs['loss']):.3f}" if isinstance(outputs, dict) and "loss" in outputs else ""
        best = f"best val mIoU {100 * pl_module.best_score:.1f}" if pl_module.best_epoch is not None else ""
        self._show("fit ", trainer.global_step, self._steps, f"{loss}  {best}")

    def on_test_batch_start(
        self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        def within(done: int, total: int) -> None:
            self._show("test", batch_idx, self._batches, f"{done / total:.0%} of the next batch", done / total)

        pl_module.progress = within

    def on_test_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self._show("test", batch_idx + 1, self._batches, "")

    def finish(self, text: str) -> None:
        """The trial's last line."""
        self._write(f"{self._title}  {text}  ({time.monotonic() - self._began:.0f} s)", end="\n")

    def _show(self, stage: str, done: int, total: int, facts: str, within: float = 0.0) -> None:
        now = time.monotonic()
        if done < total and now - self._shown < (0.25 if self._terminal else 10):
            return
        self._shown = now
        bar = "#" * round(_BAR * (done + within) / max(1, total))
        self._write(
            f"{self._title}  {stage} [{bar:<{_BAR}}] {done}/{total}  {facts}", end="" if self._terminal else "\n"
        )

    def _write(self, text: str, end: str) -> None:
        start = "\r\x1b[K" if self._terminal else ""
        sys.stderr.write(f"{start}{text.rstrip()}{end}")
        sys.stderr.flush()

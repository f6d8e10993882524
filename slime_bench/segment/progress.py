"""One line for each stage of `slime-bench segment`, with the time that is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

_BAR = 24


class Lines:
    """Writes to stderr: `note` a finished line, `count` a line that grows.

    On a terminal a growing line is redrawn four times a second; in a file it comes again every ten seconds.
    """

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._stage, self._began, self._first, self._shown = "", 0.0, 0, 0.0
        self._open = False

    def note(self, stage: str, text: str) -> None:
        """`stage   text`; further lines of `text` are indented."""
        self.end()
        self._write(f"{stage:<10}" + text.replace("\n", "\n" + " " * 10) + "\n")

    def count(self, stage: str, done: int, total: int, facts: str = "") -> None:
        """A bar at `done` of `total`; the first call of a stage starts its clock."""
        now = time.monotonic()
        if stage != self._stage:
            self.end()
            self._stage, self._began, self._first, self._shown = stage, now, done, 0.0
        if done < total and now - self._shown < (0.25 if self._terminal else 10):
            return
        self._shown = now
        spent = now - self._began
        each = spent / (done - self._first) if done > self._first else None
        left = (
            f"{duration(spent)} taken" if done >= total else f"{duration(each * (total - done))} left" if each else ""
        )
        bar = f"{stage:<10}[{'#' * round(_BAR * done / max(1, total)):<{_BAR}}] {done}/{total}"
        text = "  ".join(part for part in (bar, facts, left) if part)
        self._open = self._terminal and done < total
        self._write(("\r\x1b[K" if self._terminal else "") + text + ("" if self._open else "\n"))

    def end(self) -> None:
        """Close a line that is still growing."""
        if self._open:
            self._write("\n")
        self._open, self._stage = False, ""

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """`42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text below each other, the last column to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)]
        lines.append("  ".join([*cells, row[-1].rjust(widths[-1])]))
    return "\n".join(lines)


def fit_callback(lines: Lines, steps: int) -> Any:
    """A Lightning callback that counts the steps of an optimisation."""
    from lightning.pytorch.callbacks import Callback

    class FitLine(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            lines.count("fit", 0, steps)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
            loss = f"loss {float(outputs['loss']):.3f}" if isinstance(outputs, dict) and "loss" in outputs else ""
            lines.count("fit", trainer.global_step, steps, loss)

    return FitLine()

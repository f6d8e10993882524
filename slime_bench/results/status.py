"""How far a trial is, as one value: what `slime-bench status` shows and what reports say of trials without a result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from slime_bench.config.schema import DEFAULT_TRIAL

RUNNING: Final = "running"
DONE: Final = "done"
FAILED: Final = "failed"
OOM: Final = "oom"
KILLED: Final = "killed"
UNREADABLE: Final = "unreadable"
MISSING: Final = "missing"
UNKNOWN: Final = "unknown"
STATES: Final = (RUNNING, DONE, FAILED, OOM, KILLED, UNREADABLE, MISSING, UNKNOWN)
"""Of several folders that may be a trial's, the one whose state comes first here is taken."""


@dataclass(frozen=True)
class TrialStatus:
    """How far one trial is.

    Attributes:
        name: what sets it apart from the sweep's others.
        state: one of `STATES`. detail: the score, the process, or why it failed, in one line.
        folder: of the trial, if there is one. note: a reservation.
    """

    name: str
    method: str
    data: str
    shots: int
    seed: int
    state: str
    detail: str = ""
    folder: str | None = None
    note: str = ""

    @property
    def variant(self) -> str:
        """What the name says besides shots and seed; empty for the default trial."""
        words = [word for word in self.name.split() if word.partition("=")[0] not in ("shots", "seed")]
        return "" if self.name == DEFAULT_TRIAL else " ".join(words)

"""Lightning's end of a W&B session.

Lightning has a `WandbLogger` of its own. It opens the run itself, or takes whichever is active, raises what W&B raises,
and leaves the environment changed; here the trial has opened the run, and nothing of W&B's may end it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from slime_bench.tracking.session import Session


class WandbLogger(Logger):
    """Hands Lightning's metrics to `session`."""

    def __init__(self, session: Session, folder: Path) -> None:
        super().__init__()
        self._session, self._folder = session, folder

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return self._session.facts.id

    @property
    def save_dir(self) -> str:
        return str(self._folder)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._session.log(metrics, step)

    def replay(self, metrics: dict[str, float], step: int) -> None:
        """A row of a fit that is over: the clock does not tell what its step took."""
        self._session.log(metrics, step, timed=False)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run's configuration is the trial's, and stands there from the start."""

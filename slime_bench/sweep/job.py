"""One trial of a command as a unit of work: a callable that any launcher can send to any process, and that never raises
but for an interruption."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from slime_bench.console import FULL_ERROR, assign, environment, exit_code, is_interrupt, quieten, text_of, typed
from slime_bench.errors import GpuMemoryError, SlimeBenchError
from slime_bench.lock import BusyError
from slime_bench.sweep import outcome as states
from slime_bench.sweep.outcome import Outcome, read_records, write_record
from slime_bench.sweep.telling import announce, tell

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A trial to run: its place in the command's order, its name among the others, and its configuration."""

    index: int
    name: str
    cfg: DictConfig


@dataclass
class Job:
    """Runs trials, here or in a worker, and says what became of them.

    Attributes:
        folder: of the command, for the records.
        names: of the trials, in their order.
        recorded: write a record of every trial, for other processes to read.
        keep_going: run further trials after one has failed.
        tracebacks: the user's own value of HYDRA_FULL_ERROR, which Hydra's entry point overrides.
        cwd: the folder that relative paths start from. environment: variables that a worker has to have; None removes.
        away: whether this is a copy in a worker, which has nobody to talk to.
        outcomes: of the trials that this very process ran, by index.
        batches: which trials are fitted in one batch; None for none.
    """

    folder: Path
    names: tuple[str, ...] = ()
    recorded: bool = False
    keep_going: bool = True
    tracebacks: str | None = None
    cwd: str = field(default_factory=os.getcwd)
    environment: dict[str, str | None] = field(default_factory=dict)
    away: bool = False
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    batches: Any = None

    def __call__(self, cfg: DictConfig) -> None:
        """Hydra's task function."""
        from hydra.core.hydra_config import HydraConfig

        from slime_bench.results.status import DEFAULT_TRIAL

        node = HydraConfig.get()
        index = 0 if OmegaConf.is_missing(node.job, "num") else int(node.job.num)
        given = " ".join(node.overrides.task) or DEFAULT_TRIAL
        self.run(Task(index, self.names[index] if index < len(self.names) else given, cfg))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "away": True, "outcomes": {}, "batches": None}

    def run(self, task: Task) -> Outcome:
        """Run the trial; its failure, of whatever kind, is part of the outcome.

        Raises:
            KeyboardInterrupt: the trial was interrupted.
        """
        if self.away:
            self._settle_in()
        if not self.keep_going and self._has_failed():
            result = Outcome(task.index, task.name, states.LEFT_OUT)
        else:
            self._record(Outcome(task.index, task.name, states.STARTED))
            if not self.away:
                announce(task.index, task.name, len(self.names))
            began = time.monotonic()
            with environment({FULL_ERROR: self.tracebacks}):
                result = self._tried(task)
            result = replace(result, seconds=round(time.monotonic() - began, 2))
            if not self.away:
                tell(result, self.outcomes.values())
        self.outcomes[task.index] = result
        self._record(result)
        return result

    def _tried(self, task: Task) -> Outcome:
        from slime_bench.config.schema import validate
        from slime_bench.trial import runner as trial

        try:
            cfg = validate(task.cfg)
            if self.away and sys.stderr.isatty():  # several trials would redraw one line
                cfg.trainer.progress = False
            finished = trial.run(cfg, None if self.batches is None else self.batches.fitted(task.index))
        except BusyError as error:
            who = error.holder or "another process"
            return replace(_blank(task, states.BUSY), message=f"{who}, computes it now", folder=str(error.folder))
        except SystemExit as error:
            if is_interrupt(error):
                raise KeyboardInterrupt from error
            raise
        except Exception as error:
            return _failure(task, typed(error), self.tracebacks == "1")
        average = finished.result.average
        return replace(
            _blank(task, states.SKIPPED if finished.reused else states.DONE),
            score="" if average is None else f"mIoU {100 * average:.1f}",
            folder=str(finished.folder),
            made_by=finished.made_by,
        )

    def _has_failed(self) -> bool:
        seen = [*self.outcomes.values(), *(read_records(self.folder).values() if self.recorded else ())]
        return any(each.status in states.BAD for each in seen)

    def _record(self, result: Outcome) -> None:
        if not self.recorded:
            return
        try:
            write_record(self.folder, result)
        except SlimeBenchError as error:  # a full disk takes the record, not the trial; the outcome is also returned
            _log.warning("the outcome could not be recorded: %s", error.summary)

    def _settle_in(self) -> None:
        """Make a worker's process like the one that started it."""
        os.chdir(self.cwd)
        assign({**self.environment, FULL_ERROR: self.tracebacks})
        quieten()
        logging.getLogger("slime_bench").setLevel(logging.WARNING)


def _blank(task: Task, status: str) -> Outcome:
    return Outcome(task.index, task.name, status)


def _failure(task: Task, error: Exception, with_traceback: bool) -> Outcome:
    log: Path | None = getattr(error, "recorded_in", None)
    return replace(
        _blank(task, states.OOM if isinstance(error, GpuMemoryError) else states.FAILED),
        message=text_of(error),
        exit_code=exit_code(error),
        folder=None if log is None else str(log.parent),
        log=None if log is None else str(log),
        traceback="".join(traceback.format_exception(error)) if with_traceback else None,
    )

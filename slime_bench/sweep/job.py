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

from slime_bench.config.schema import TrialConfig
from slime_bench.console import FULL_ERROR, assign, environment, exit_code, is_interrupt, quieten, text_of, typed
from slime_bench.errors import GpuMemoryError, SlimeBenchError
from slime_bench.lock import BusyError
from slime_bench.sweep import job_result as states
from slime_bench.sweep.job_result import JobResult, read_records, write_record
from slime_bench.sweep.summary import announce, tell
from slime_bench.sweep.trials import Trials
from slime_bench.trial import runner
from slime_bench.trial.spec import TrialSpec

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A trial to run: its place in the command's order, its name among the others, and its configuration.

    Attributes:
        again: whether it is run once more, after another process was found to compute it.
    """

    index: int
    name: str
    cfg: TrialConfig
    again: bool = False

    def ended(self, status: str, **facts: Any) -> JobResult:
        return JobResult(self.index, self.name, status, **facts)


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
        results: of the trials that this very process ran, by index.
        trials: those of the command, which know what is fitted in one batch; None in a worker.
    """

    folder: Path
    names: tuple[str, ...] = ()
    recorded: bool = False
    keep_going: bool = True
    tracebacks: str | None = None
    cwd: str = field(default_factory=os.getcwd)
    environment: dict[str, str | None] = field(default_factory=dict)
    away: bool = False
    results: dict[int, JobResult] = field(default_factory=dict)
    trials: Trials | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "away": True, "results": {}, "trials": None}

    def run(self, task: Task) -> JobResult:
        """Run the trial; its failure, of whatever kind, is part of the result.

        Raises:
            KeyboardInterrupt: the trial was interrupted.
        """
        if self.away:
            self._settle_in()
        if not self.keep_going and self._has_failed():
            result = task.ended(states.LEFT_OUT)
        else:
            self._record(task.ended(states.STARTED))
            if not self.away:
                announce(task.index, task.name, len(self.names))
            began = time.monotonic()
            with environment({FULL_ERROR: self.tracebacks}):
                result = self._tried(task)
            result = replace(result, seconds=round(time.monotonic() - began, 2))
            if not self.away:
                tell(result, self.results.values())
        self.results[task.index] = result
        self._record(result)
        return result

    def _tried(self, task: Task) -> JobResult:
        try:
            finished = runner.run(*self._ready(task))
        except BusyError as error:
            who = error.holder or "another process"
            return task.ended(states.BUSY, message=f"{who}, computes it now", folder=str(error.folder))
        except SystemExit as error:
            if is_interrupt(error):
                raise KeyboardInterrupt from error
            raise
        except Exception as error:
            return _failure(task, typed(error), self.tracebacks == "1")
        return task.ended(
            states.SKIPPED if finished.reused else states.DONE,
            average=finished.result.average,
            folder=str(finished.folder),
            code=finished.code,
        )

    def _ready(self, task: Task) -> tuple[TrialSpec, dict[str, Any] | None]:
        """The trial's spec, and its state where it was fitted in one batch with others."""
        if self.trials is None or task.again:
            cfg = task.cfg
            if self.away and sys.stderr.isatty():  # several trials would redraw one line
                cfg = cfg.replace(trainer={"progress": False})
            return runner.spec_of(cfg), None
        return self.trials.spec(task.index), self.trials.fitted(task.index)

    def _has_failed(self) -> bool:
        seen = [*self.results.values(), *(read_records(self.folder).values() if self.recorded else ())]
        return any(each.status in states.BAD for each in seen)

    def _record(self, result: JobResult) -> None:
        if not self.recorded:
            return
        try:
            write_record(self.folder, result)
        except SlimeBenchError as error:  # a full disk takes the record, not the trial; the result is also returned
            _log.warning("the result could not be recorded: %s", error.summary)

    def _settle_in(self) -> None:
        """Make a worker's process like the one that started it."""
        os.chdir(self.cwd)
        assign({**self.environment, FULL_ERROR: self.tracebacks})
        quieten()
        logging.getLogger("slime_bench").setLevel(logging.WARNING)


def _failure(task: Task, error: Exception, with_traceback: bool) -> JobResult:
    log: Path | None = getattr(error, "recorded_in", None)
    return task.ended(
        states.OOM if isinstance(error, GpuMemoryError) else states.FAILED,
        message=text_of(error),
        exit_code=exit_code(error),
        folder=None if log is None else str(log.parent),
        log=None if log is None else str(log),
        traceback="".join(traceback.format_exception(error)) if with_traceback else None,
    )

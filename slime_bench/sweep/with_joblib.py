"""Trials in several processes of this machine at once, through joblib, each of which keeps its backbone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from slime_bench.sweep import outcome as states
from slime_bench.sweep.job import Job, Task
from slime_bench.sweep.outcome import Outcome, died, forget_records, read_records


class JoblibRunner:
    """Args:
    at_once: trials, and processes, at the same time.
    options: parameters of joblib.Parallel.
    """

    def __init__(self, job: Job, at_once: int, options: Mapping[str, Any]) -> None:
        self._job, self._at_once, self._options = job, at_once, dict(options)

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """The outcomes, as the trials end. Where the caller stops early, or is interrupted, so are the trials.

        When a process dies, joblib kills the others, and does not say whose trial it was: all that were running then
        are run again, each alone, and then the rest together.
        """
        waiting = {task.index: task for task in tasks}
        alone = list(waiting) if self._at_once == 1 else []
        try:
            while waiting:
                batch = [waiting[alone.pop(0)]] if alone else list(waiting.values())
                forget_records(self._job.folder, [task.index for task in batch])
                try:
                    for outcome in self._together(batch):
                        del waiting[outcome.index]
                        yield outcome
                except BrokenProcessPool:
                    suspects = self._running(batch, waiting)
                    if len(suspects) != 1:
                        alone = suspects
                        continue
                    task = waiting.pop(suspects[0])
                    yield died(task.index, task.name, "it may have been killed for want of memory")
        finally:
            _end_workers()

    def _together(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        from joblib import Parallel, delayed

        # One process would be this one. A batch is one trial, lest a second one wait behind the first for nothing.
        fixed = {"n_jobs": max(2, min(self._at_once, len(tasks))), "batch_size": 1, "return_as": "generator_unordered"}
        run = delayed(self._job.run)
        yield from Parallel(**{**self._options, **fixed}, backend="loky")(run(task) for task in tasks)

    def _running(self, batch: Sequence[Task], waiting: Mapping[int, Task]) -> list[int]:
        """Indices of the trials that may have been running just now; all that are left, where no record tells."""
        left = [task.index for task in batch if task.index in waiting]
        records = read_records(self._job.folder)
        started = [index for index in left if index in records and records[index].status == states.STARTED]
        return started or left


def _end_workers() -> None:
    """End joblib's processes, which would wait for further work, and keep the memory of their backbones until then."""
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True, kill_workers=True)

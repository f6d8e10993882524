"""The engines of a sweep: who runs its trials, and where. `sequential` and `joblib`; the others are in `pools`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Final, Protocol

from slime_bench.config.schema import LauncherConfig, TrialConfig
from slime_bench.errors import ConfigError
from slime_bench.sweep import job_result as states
from slime_bench.sweep.job import Job, Task
from slime_bench.sweep.job_result import JobResult, died, forget_records, read_records

SEQUENTIAL: Final = "sequential"


class Engine(Protocol):
    """Runs trials, one or several at a time."""

    def run(self, tasks: Sequence[Task]) -> Iterator[JobResult]:
        """The results, in whatever order the trials end."""


class InProcess:
    """One trial after another in this process, which keeps the backbone."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def run(self, tasks: Sequence[Task]) -> Iterator[JobResult]:
        for task in tasks:
            yield self._job.run(task)


class Joblib:
    """Trials in several processes of this machine at once, each of which keeps its backbone.

    Args:
        at_once: trials, and processes, at the same time. options: parameters of joblib.Parallel.
    """

    def __init__(self, job: Job, at_once: int, options: Mapping[str, Any]) -> None:
        self._job, self._at_once, self._options = job, at_once, dict(options)

    def run(self, tasks: Sequence[Task]) -> Iterator[JobResult]:
        """The results, as the trials end. Where the caller stops early, or is interrupted, so are the trials.

        When a process dies, joblib kills the others, and does not say whose trial it was: all that were running then
        are run again, each alone, and then the rest at once.
        """
        waiting = {task.index: task for task in tasks}
        alone = list(waiting) if self._at_once == 1 else []
        try:
            while waiting:
                batch = [waiting[alone.pop(0)]] if alone else list(waiting.values())
                forget_records(self._job.folder, [task.index for task in batch])
                try:
                    for result in self._parallel(batch):
                        del waiting[result.index]
                        yield result
                except BrokenProcessPool:
                    suspects = self._running(batch, waiting)
                    if len(suspects) != 1:
                        alone = suspects
                        continue
                    task = waiting.pop(suspects[0])
                    yield died(task.index, task.name, "it may have been killed for want of memory")
        finally:
            _end_workers()

    def _parallel(self, tasks: Sequence[Task]) -> Iterator[JobResult]:
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


def launcher_of(trials: Sequence[TrialConfig]) -> LauncherConfig:
    """The launcher's settings of a command; a ConfigError where its trials name several."""
    first = trials[0].launcher
    if any(each.launcher != first for each in trials):
        raise ConfigError(
            "one command has one launcher", path="launcher", found="several", expected="one",
            remedy="give `launcher` and its keys one value each",
        )  # fmt: skip
    return first


def engine(launcher: LauncherConfig, job: Job) -> Engine:
    """Who runs the trials of `job`.

    Raises:
        ConfigError: the launcher's library is not installed, or does not take its options.
    """
    if launcher.name == SEQUENTIAL:
        return InProcess(job)
    _check_library(launcher.name.partition("_")[0])
    if launcher.name == "joblib":
        return Joblib(job, launcher.jobs, launcher.options)
    from slime_bench.sweep.pools import RayPool, SubmititPool

    if launcher.name == "ray":
        return RayPool(job, launcher.jobs, launcher.options)
    return SubmititPool(job, launcher.name.removeprefix("submitit_"), launcher.jobs, launcher.options)


def _check_library(library: str) -> None:
    try:
        importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        extra = "ray" if library == "ray" else "launchers"
        raise ConfigError(
            f"the launcher `{library}` needs a library that is not installed", path="launcher", found=f"no {library}",
            expected=f"the extra `{extra}` of slime-bench",
            remedy=f"pip install 'slime-bench[{extra}]', or in a checkout: pip install --editable '.[{extra}]'",
        ) from error  # fmt: skip

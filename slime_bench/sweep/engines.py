"""The engines of a sweep: who runs its trials, and where. In this process, or in processes of their own (joblib,
submitit, Ray), each of which is looked at until it has ended."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Final

from slime_bench.config.schema import LauncherConfig, TrialConfig
from slime_bench.errors import ConfigError
from slime_bench.sweep import job_result as states
from slime_bench.sweep.job import Job, Task
from slime_bench.sweep.job_result import JobResult, died, forget_records, read_records

SEQUENTIAL: Final = "sequential"
_A_WEEK: Final = 7 * 24 * 60  # minutes
GONE: Final = "no longer known"
_ENDED: Final = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT", GONE,
}  # fmt: skip
"""SLURM's states of a job that does not come again; one that was put back into the queue is PENDING."""


class InProcess:
    """One trial after another in this process, which keeps the backbone."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def run(self, tasks: Sequence[Task]) -> Iterator[JobResult]:
        for task in tasks:
            yield self._job.run(task)


class Pool(ABC):
    """What a launcher has to be able to do with a `Job`. A handle is whatever it knows a started trial by.

    Attributes:
        at_once: trials that may run at the same time; None leaves that to the cluster.
        pause: seconds between two looks at the running trials.
        grace: seconds that trials are given to end by themselves, before they are interrupted.
        patience: seconds that interrupted trials are given to end.
    """

    at_once: int | None = None
    pause: float = 0.2
    grace: float = 0.0
    patience: float = 0.0

    def __init__(self, job: Job) -> None:
        self.job = job

    @abstractmethod
    def start(self, tasks: Sequence[Task]) -> list[Any]:
        """Start the trials and return a handle for each."""

    @abstractmethod
    def ended(self, handle: Any) -> bool:
        """Whether the trial's process has ended, however it did."""

    @abstractmethod
    def result(self, handle: Any, task: Task) -> JobResult:
        """What became of a trial that has ended; `died` where its process ended without a word."""

    @abstractmethod
    def cancel(self, handles: Sequence[Any]) -> None:
        """Interrupt trials, one at least, that have not ended."""

    def close(self) -> None:  # noqa: B027 - most launchers hold nothing
        """Let go of everything, when no trial is running any more."""

    def run(self, tasks: Sequence[Task]) -> Iterator[JobResult]:
        """The results, as the trials end. Where the caller stops early, or is interrupted, so are the trials."""
        waiting, running = deque(tasks), list[tuple[Any, Task]]()
        try:
            while waiting or running:
                free = len(waiting) if self.at_once is None else self.at_once - len(running)
                batch = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                if batch:
                    forget_records(self.job.folder, [task.index for task in batch])
                    running += zip(self.start(batch), batch, strict=True)
                ended = [pair for pair in running if self.ended(pair[0])]
                running = [pair for pair in running if pair not in ended]
                for handle, task in ended:
                    yield self.result(handle, task)
                if not ended:
                    time.sleep(self.pause)
        finally:
            self._end([handle for handle, _ in running])
            self.close()

    def _end(self, handles: list[Any]) -> None:
        # Ctrl-C at a terminal reaches the trials as well: then they are ending by themselves, and a second interruption
        # would only hinder them.
        if left := self._not_ended(handles, self.grace):
            self.cancel(left)
            self._not_ended(left, self.patience)

    def _not_ended(self, handles: list[Any], seconds: float) -> list[Any]:
        """Those of the trials that have not ended after so many seconds."""
        until = time.monotonic() + seconds
        left = [handle for handle in handles if not self.ended(handle)]
        while left and time.monotonic() < until:
            time.sleep(self.pause)
            left = [handle for handle in left if not self.ended(handle)]
        return left


class JoblibPool(Pool):
    """Trials in several processes of this machine, each of which keeps its backbone, through joblib's loky. A pool for
    each process: one that dies takes no other's trial along.

    Args:
        at_once: trials, and processes, at the same time. options: parameters of loky's ProcessPoolExecutor.
    """

    def __init__(self, job: Job, at_once: int, options: Mapping[str, Any]) -> None:
        super().__init__(job)
        self.at_once, self._options = at_once, dict(options)
        self._idle: list[Any] = []

    def start(self, tasks: Sequence[Task]) -> list[Any]:
        from joblib.externals.loky import ProcessPoolExecutor as Process

        chosen = [self._idle.pop() if self._idle else Process(max_workers=1, **self._options) for _ in tasks]
        return [(process, process.submit(self.job.run, task)) for process, task in zip(chosen, tasks, strict=True)]

    def ended(self, handle: Any) -> bool:
        return bool(handle[1].done())

    def result(self, handle: Any, task: Task) -> JobResult:
        try:
            found: JobResult = handle[1].result()
        except BrokenProcessPool:
            self.cancel([handle])
            return died(task.index, task.name, "it may have been killed for want of memory")
        self._idle.append(handle[0])
        return found

    def cancel(self, handles: Sequence[Any]) -> None:
        for process, _ in handles:
            process.shutdown(kill_workers=True)

    def close(self) -> None:
        self.cancel([(process, None) for process in self._idle])


@dataclass
class Submitted:
    """What submitit pickles: one trial. A job that SLURM stops for its time or for another's sake comes again, and goes
    on from its trial's checkpoint."""

    job: Job
    task: Task

    def __call__(self) -> JobResult:
        return self.job.run(self.task)

    def checkpoint(self) -> Any:
        """Called by submitit before it puts the job into the queue again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class SlurmQueue:
    """What SLURM says of this user's jobs. Every cluster has `squeue`; `sacct`, which submitit asks, needs accounting.

    Attributes:
        every: seconds that an answer is good for, lest many commands keep SLURM from its work.
    """

    every: float = 10.0

    def __init__(self) -> None:
        self._states: dict[str, str] = {}
        self._until = 0.0
        self._warned = False

    def forget(self) -> None:
        """Ask anew when asked next: there are new jobs."""
        self._until = 0.0

    def state(self, job: str) -> str:
        """One of SLURM's states, e.g. PENDING; GONE for a job that was there and is not any more, and the last one
        that is known where SLURM gives no answer."""
        if time.monotonic() >= self._until:
            self._ask()
            self._until = time.monotonic() + self.every
        return self._states.get(job, "UNKNOWN")

    def _ask(self) -> None:
        listing = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%i|%T"]
        answer = subprocess.run(listing, capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            found = dict(line.split("|", 1) for line in answer.stdout.split())
            self._states = {**dict.fromkeys(self._states, GONE), **found}
        elif not self._warned:
            self._warned = True
            print(
                f"warning: SLURM does not say how the jobs are; asked again every {self.every:.0f} s\n"
                f"  found: squeue: {answer.stderr.strip()}",
                file=sys.stderr, flush=True,
            )  # fmt: skip


class SubmititPool(Pool):
    """Trials as jobs of SLURM, or as processes of this machine that SLURM's jobs are tried out with, through submitit.

    Args:
        cluster: `slurm`, or `local` for this machine.
        at_once: trials at the same time.
        options: parameters of submitit's executor, e.g. timeout_min, gpus_per_node, slurm_partition; null is left out.

    Raises:
        ConfigError: options that submitit does not know, or no SLURM on this machine.
    """

    def __init__(self, job: Job, cluster: str, at_once: int, options: Mapping[str, Any]) -> None:
        import submitit

        super().__init__(job)
        given = {name: value for name, value in options.items() if value is not None}
        # Seconds that a file of a job that has ended may take to be seen here: network drives are slow to tell.
        self._sight = 1.0 if cluster == "local" else 30.0
        self._queue = None if cluster == "local" else SlurmQueue()
        if cluster == "local":
            self.at_once, self.grace, self.patience = at_once, 3.0, 5.0
            # Its own limit is two minutes; and it hides all GPUs but those that it is asked for, which `job` mends.
            given = {"timeout_min": _A_WEEK, **given}
            job.environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES")
        else:
            self.pause = 2.0
            given = {"slurm_array_parallelism": at_once, **given}
        try:
            self._executor = submitit.AutoExecutor(job.folder / "submitit" / "%j", cluster=cluster)
            self._executor.update_parameters(name="slime-bench", **given)
        except (RuntimeError, ValueError, TypeError, NameError, AssertionError) as error:
            raise ConfigError(
                f"submitit refuses to start jobs: {error}", path="launcher.options", found=given or "none",
                expected="parameters of submitit.AutoExecutor, on a machine that has `sbatch` for SLURM",
                remedy="correct launcher.options, or choose launcher=submitit_local or launcher=joblib",
            ) from error  # fmt: skip

    def start(self, tasks: Sequence[Task]) -> list[Any]:
        if self._queue is not None:
            self._queue.forget()
        try:
            with self._executor.batch():
                return [self._executor.submit(Submitted(self.job, task)) for task in tasks]
        except (RuntimeError, subprocess.CalledProcessError) as error:
            raise ConfigError(
                "the cluster did not take the jobs", path="launcher.options", found=str(error).strip(),
                expected="options that `sbatch` takes here", remedy="correct launcher.options",
            ) from error  # fmt: skip

    def ended(self, handle: Any) -> bool:
        if self._queue is None:
            return bool(handle.done())
        return bool(handle.paths.result_pickle.exists() or self._state(handle) in _ENDED)

    def _state(self, handle: Any) -> str:
        return str(handle.state) if self._queue is None else self._queue.state(handle.job_id)

    def result(self, handle: Any, task: Task) -> JobResult:
        """From the trial's own record, as long as there is one: for a job that died submitit has none, and waits."""
        log, state = str(handle.paths.stderr), self._state(handle)
        # A trial that failed has a job that is completed; any other left nothing worth a long wait.
        until = time.monotonic() + min(self._sight, 30.0 if state in ("COMPLETED", GONE) else 3.0)
        while True:
            found = read_records(self.job.folder).get(task.index)
            if found is not None and found.status != states.STARTED:
                return found
            if handle.paths.result_pickle.exists():
                error = handle.exception()
                last = str(error).strip().splitlines()[-1] if error else ""
                return died(task.index, task.name, last, log) if error else handle.result()
            if time.monotonic() > until:
                return died(task.index, task.name, f"job {handle.job_id} {state}", log)
            time.sleep(self.pause)

    def cancel(self, handles: Sequence[Any]) -> None:
        if self._queue is None:
            for handle in handles:
                handle.cancel(check=False)
            return
        line = ["scancel", *(handle.job_id for handle in handles)]
        # Said first: whoever interrupts this, too, knows what is left to do.
        print(f"ending the jobs of this sweep: {' '.join(line)}", file=sys.stderr, flush=True)
        subprocess.run(line, check=False)


class RayPool(Pool):
    """Trials on a Ray cluster, or on a Ray of this machine.

    Args:
        at_once: trials at the same time.
        options: `address` of a cluster, null for a Ray of this machine that ends with the sweep; everything else is a
            parameter of ray.remote for each trial, e.g. num_cpus, num_gpus.
    """

    pause = 0.5

    def __init__(self, job: Job, at_once: int, options: Mapping[str, Any]) -> None:
        super().__init__(job)
        self.at_once = at_once
        self._address = options.get("address")
        self._each = {name: value for name, value in options.items() if name != "address" and value is not None}

    def start(self, tasks: Sequence[Task]) -> list[Any]:
        import ray

        if not ray.is_initialized():
            # Without an address Ray would join a cluster that happens to run on this machine.
            address = self._address or "local"
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
        # A trial that died is run again by the next command, and not at once, when it may kill the next worker as well.
        run = ray.remote(**{"max_retries": 0, **self._each})(Job.run)
        job = ray.put(self.job)
        return [run.remote(job, task) for task in tasks]

    def ended(self, handle: Any) -> bool:
        import ray

        return bool(ray.wait([handle], timeout=0)[0])

    def result(self, handle: Any, task: Task) -> JobResult:
        import ray

        try:
            return ray.get(handle)
        except ray.exceptions.RayError as error:
            return died(task.index, task.name, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")

    def cancel(self, handles: Sequence[Any]) -> None:
        import ray

        for handle in handles:
            ray.cancel(handle, force=True)

    def close(self) -> None:
        import ray

        ray.shutdown()


Engine = InProcess | Pool


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
    if launcher.name in ("joblib", "ray"):
        return {"joblib": JoblibPool, "ray": RayPool}[launcher.name](job, launcher.jobs, launcher.options)
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

"""Trials as jobs of SLURM, or as processes of this machine that SLURM's jobs are tried out with, through submitit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_bench.errors import ConfigError
from slime_bench.sweep import outcome as states
from slime_bench.sweep.job import Job, Task
from slime_bench.sweep.outcome import Outcome, died, read_records
from slime_bench.sweep.pool import Pool

_A_WEEK = 7 * 24 * 60  # minutes


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Let processes that are started meanwhile write to a file instead of this process's output."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {stream: os.dup(stream) for stream in (1, 2)}
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        for stream in saved:
            os.dup2(file, stream)
        yield
    finally:
        os.close(file)
        for stream, copy in saved.items():
            os.dup2(copy, stream)
            os.close(copy)


@dataclass
class Submitted:
    """What submitit pickles: one trial. A job that SLURM stops for its time or for another's sake comes again, and goes
    on from its trial's checkpoint."""

    job: Job
    task: Task

    def __call__(self) -> Outcome:
        return self.job.run(self.task)

    def checkpoint(self) -> Any:
        """Called by submitit before it puts the job into the queue again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class SubmititPool(Pool):
    """Args:
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
        # submitit's own process for each local job would show a traceback here when it is interrupted.
        log = self.job.folder / "submitit" / "controllers.txt"
        try:
            with _output_to(log), self._executor.batch():
                return [self._executor.submit(Submitted(self.job, task)) for task in tasks]
        except (RuntimeError, subprocess.CalledProcessError) as error:
            raise ConfigError(
                "the cluster did not take the jobs", path="launcher.options", found=str(error).strip(),
                expected="options that `sbatch` takes here", remedy=f"correct launcher.options; {log} may say more",
            ) from error  # fmt: skip

    def ended(self, handle: Any) -> bool:
        return bool(handle.done())

    def outcome(self, handle: Any, task: Task) -> Outcome:
        """From the trial's own record, as long as there is one: for a job that died submitit has none, and waits."""
        log, until = str(handle.paths.stderr), time.monotonic() + self._sight
        while True:
            found = read_records(self.job.folder).get(task.index)
            if found is not None and found.status != states.STARTED:
                return found
            if handle.paths.result_pickle.exists():
                error = handle.exception()
                last = str(error).strip().splitlines()[-1] if error else ""
                return died(task.index, task.name, last, log) if error else handle.result()
            if time.monotonic() > until:
                return died(task.index, task.name, f"job {handle.job_id} {handle.state}", log)
            time.sleep(self.pause)

    def cancel(self, handle: Any) -> None:
        handle.cancel(check=False)

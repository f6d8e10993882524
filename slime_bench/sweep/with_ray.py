"""Trials on a Ray cluster, or on a Ray of this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slime_bench.sweep.job import Job, Task
from slime_bench.sweep.outcome import Outcome, died
from slime_bench.sweep.pool import Pool


class RayPool(Pool):
    """Args:
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
            ray.init(address=self._address, include_dashboard=False, log_to_driver=False)
        # A trial that died is run again by the next command, and not at once, when it may kill the next worker as well.
        run = ray.remote(**{"max_retries": 0, **self._each})(Job.run)
        job = ray.put(self.job)
        return [run.remote(job, task) for task in tasks]

    def ended(self, handle: Any) -> bool:
        import ray

        return bool(ray.wait([handle], timeout=0)[0])

    def outcome(self, handle: Any, task: Task) -> Outcome:
        import ray

        try:
            return ray.get(handle)
        except ray.exceptions.RayError as error:
            return died(task.index, task.name, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")

    def cancel(self, handle: Any) -> None:
        import ray

        ray.cancel(handle, force=True)

    def close(self) -> None:
        import ray

        ray.shutdown()

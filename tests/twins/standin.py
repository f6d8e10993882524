"""A `Job` whose trials take no time and do what their names say, in whatever process a launcher runs them."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from slime_bench.sweep import outcome as states
from slime_bench.sweep.job import Job, Task
from slime_bench.sweep.outcome import Outcome

_RUNS = "runs.txt"


class StandIn(Job):
    """Names of tasks: `ok`, `fail`, `die` (the process ends without a word), `sleep` (for a minute)."""

    def _tried(self, task: Task) -> Outcome:
        with (Path(self.folder) / _RUNS).open("a") as file:  # appended in one piece: several processes write here
            file.write(f"{task.index} {os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')} {os.getcwd()}\n")
        if task.name == "die":
            os._exit(3)
        if task.name == "sleep":
            time.sleep(60)
        if task.name == "fail":
            return Outcome(task.index, task.name, states.FAILED, message="it failed\n  where: here", exit_code=2)
        return Outcome(task.index, task.name, states.DONE, score="mIoU 50.0")


def tasks(names: Sequence[str]) -> list[Task]:
    return [Task(index, name, OmegaConf.create({"force": False})) for index, name in enumerate(names)]


def runs(folder: Path) -> list[list[str]]:
    """Index, process, CUDA_VISIBLE_DEVICES and working folder of every trial that was begun, in that order."""
    path = folder / _RUNS
    return [line.split(" ", 3) for line in path.read_text().splitlines()] if path.exists() else []


def times_run(folder: Path) -> Counter[int]:
    return Counter(int(line[0]) for line in runs(folder))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False

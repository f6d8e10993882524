"""Peak memory of one way in a process of its own: another way's leftovers would count as well.

    python -m slime_bench.bench.memory <case, way and tasks as JSON>

prints the bytes that are held before each task, and at its peak, as JSON. On CUDA they are torch's
allocations, on the CPU the resident set.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from slime_bench.bench.case import Case, Pictures
from slime_bench.bench.stopwatch import Stopwatch
from slime_bench.bench.ways import WAYS
from slime_bench.errors import DeviceError

_NAME = "slime_bench.bench.memory"


@dataclass(frozen=True)
class Peak:
    """Bytes that are held before the task, with everything loaded, and at most during it."""

    loaded: int
    peak: int

    @property
    def added(self) -> int:
        """What the task takes beside what is loaded; at least 1, so that it can be divided by."""
        return max(1, self.peak - self.loaded)


def restart_peak(device: str) -> int:
    """Bytes that are held now; the peak counts from here.

    Raises:
        DeviceError: the system does not tell.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    _give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError as error:
        raise DeviceError(
            "this system does not tell how much memory a process takes", found=error.strerror,
            expected="Linux with /proc", remedy="leave memory out: --no-memory",
        ) from error  # fmt: skip


def peak(device: str) -> int:
    """Most bytes that were held since `restart_peak`."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _give_back() -> None:
    """Let malloc return what it keeps of freed memory: a task that fills it again would seem to take nothing."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # another C library
        return


def _status(name: str) -> int:
    """A figure of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def measure(case: Case, way: str, tasks: Sequence[str]) -> dict[str, Peak]:
    """Of one step, or one inference call, in this process; the smaller task, inference, first."""
    runner, pictures = WAYS[way].make(case, Stopwatch(on=False)), Pictures(case)
    batches = [pictures.support(0, trial) for trial in range(WAYS[way].trials(case))]
    images, ids = pictures.test(0)
    found = {}
    for task in sorted(tasks):
        loaded = restart_peak(case.device)
        if task == "step":
            runner.step(batches)
        else:
            runner.segment(images, ids)
        found[task] = Peak(loaded, peak(case.device))
    return found


def measure_apart(case: Case, way: str, tasks: Sequence[str]) -> dict[str, Peak]:
    """`measure` in a process of its own, with as many threads as this one.

    Raises:
        DeviceError: it did not finish, perhaps for want of memory.
    """
    words = json.dumps({"case": dataclasses.asdict(case), "way": way, "tasks": list(tasks)})
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-m", _NAME, words], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise DeviceError(
            f"the memory of `{way}` could not be measured",
            found=f"exit code {done.returncode}: {' / '.join(done.stderr.strip().splitlines()[-4:])}",
            expected="a process that finishes", remedy="free some memory, or measure something smaller (--size)",
        )  # fmt: skip
    return {task: Peak(**value) for task, value in json.loads(done.stdout.splitlines()[-1]).items()}


def main(words: list[str] | None = None) -> int:
    asked = json.loads((sys.argv[1:] if words is None else words)[0])
    asked["case"]["overrides"] = tuple(asked["case"]["overrides"])
    found = measure(Case(**asked["case"]), asked["way"], asked["tasks"])
    print(json.dumps({task: dataclasses.asdict(value) for task, value in found.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

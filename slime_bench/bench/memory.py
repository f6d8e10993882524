"""Peak memory of one way in a process of its own: another way's leftovers would count as well.

On CUDA it is that of torch's allocations, on the CPU that of the resident set.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from slime_bench.bench.case import Case, Pictures
from slime_bench.bench.ways import WAYS, call_of
from slime_bench.errors import DeviceError
from slime_bench.results.environment import peak_rss, reset_peaks

T = TypeVar("T")


@dataclass(frozen=True)
class Peak:
    """Bytes that are held before the task, with everything loaded, and at most during it."""

    loaded: int
    peak: int

    @property
    def added(self) -> int:
        """What the task takes beside what is loaded; at least 1, so that it can be divided by."""
        return max(1, self.peak - self.loaded)


def measure(case: Case, way: str, tasks: Sequence[str]) -> dict[str, Peak]:
    """Of one step, or one inference call, in this process; the smaller task, inference, first."""
    runner, pictures, found = WAYS[way].make(case), Pictures(case), {}
    pictures.prepare(1)
    for task in sorted(tasks):
        call = call_of(runner, pictures, task, WAYS[way].trials(case))
        gc.collect()
        if case.device == "cuda":
            torch.cuda.empty_cache()
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)  # a task that fills freed memory again would seem to take nothing
        reset_peaks(case.device)
        loaded = _peak(case.device)
        call(0)
        found[task] = Peak(loaded, _peak(case.device))
    return found


def _peak(device: str) -> int:
    """Most bytes that were held since `reset_peaks`."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else peak_rss() or 0


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """What a function returns in a process of its own, with as many threads as this one.

    Raises:
        DeviceError: it did not finish, perhaps for want of memory.
    """
    fresh, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
    with ProcessPoolExecutor(1, fresh, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise DeviceError(
                "this could not be measured", found="a process that was killed",
                expected="a process that finishes", remedy="free some memory, or measure something smaller",
            ) from error  # fmt: skip

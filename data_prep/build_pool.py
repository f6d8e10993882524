"""Jobs over worker processes: a few in flight at a time, none of them left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path

from data_prep.build_types import Job, Work
from data_prep.build_worker import Outcome, make
from slime_bench.errors import DataError

_IN_FLIGHT = 3  # jobs per worker that are running or waiting: enough that no worker is idle, few enough for memory
_SHOWN = 5


def outcomes(
    jobs: Sequence[Job], work: Work, folder: Path, num_classes: int, workers: int, tick: float = 1.0
) -> Generator[Outcome | None]:
    """The outcome of each job as it is finished, in any order; None when `tick` seconds went by without one.

    With one worker the jobs run in this process. A consumer that stops early, an interruption included, closes the
    generator, which ends the workers; what they were writing is then absent, not half there.

    Raises:
        DataError: a worker process died. StorageError: a sample cannot be written.
    """
    if workers == 1 or len(jobs) <= 1:
        for job in jobs:
            yield make(job, work, folder, num_classes)
        return
    before = set(multiprocessing.active_children())
    # A forked copy of a process with threads (torch has them) may hang; a spawned one is fresh.
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), multiprocessing.get_context("spawn"), _begin, (work, folder, num_classes)
    )
    waiting = iter(jobs)
    running: dict[Future[Outcome], str] = {}
    finished = False
    try:
        while True:
            for job in waiting:
                running[pool.submit(_make, job)] = job.key
                if len(running) >= _IN_FLIGHT * workers:
                    break
            if not running:
                break
            done = wait(running, timeout=tick, return_when=FIRST_COMPLETED).done
            # Good ones first: what is computed is recorded, also when another job ends the whole.
            for future in sorted(done, key=lambda each: each.exception() is not None):
                yield future.result()
                del running[future]
            if not done:
                yield None
        finished = True
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died",
            path=", ".join(list(running.values())[:_SHOWN]),
            found="an end without an error, as when the system kills a process for lack of memory",
            expected="source pictures that fit into memory, one for each of the workers",
            remedy="repeat the command with fewer --workers; it goes on where this one stopped",
        ) from error
    finally:
        pool.shutdown(wait=finished, cancel_futures=True)
        if not finished:
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
                process.join(5)


_TASK: tuple[Work, Path, int] | None = None


def _begin(work: Work, folder: Path, num_classes: int) -> None:
    """Runs once in each worker: the work is sent here, not with every job."""
    global _TASK
    _TASK = (work, folder, num_classes)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A worker whose parent was killed waits for its next job for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _make(job: Job) -> Outcome:
    if _TASK is None:
        raise RuntimeError("the worker process was not set up")
    return make(job, *_TASK)

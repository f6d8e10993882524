"""Jobs over worker processes. Nothing here imports torch, so that a worker starts in a moment."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, Final, TypeVar

from slime_bench.data.verify import processors, progress_bar
from slime_bench.errors import DataError, SlimeBenchError

SHOWN: Final = 20
"""Faulty sources that are named in a message."""


@dataclass(frozen=True)
class Job:
    """One source picture.

    Attributes:
        key: unique among the jobs, the same in every run; it names the job in messages.
        payload: what the work needs to know; picklable. A finished job counts, when a build is resumed, only if its
            payload reads (`repr`) as it did then: put in a `manifest.stamp` of each source file.
    """

    key: str
    payload: Any = None


Result = TypeVar("Result")


def in_processes(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, title: str, done: int = 0
) -> tuple[dict[str, Result], dict[str, SlimeBenchError]]:
    """What `function`, which is pickled, makes of each job, by its key, and the errors of those that it finds faulty,
    in the jobs' order. DataError: a process died.

    Args:
        workers: processes; 0 = one for each processor. done: how many jobs were finished before.
    """
    count = min(len(jobs), workers or processors())
    # A forked copy of this process would hang where a thread (torch has them) held a lock.
    context = multiprocessing.get_context(None if sys.platform == "win32" else "forkserver")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(max(1, count), context, _begin)
    pending = {pool.submit(function, job): job for job in jobs}
    bar = progress_bar(title, done + len(jobs), done)
    results: dict[str, Result] = {}
    errors: dict[str, SlimeBenchError] = {}
    try:
        for future in as_completed(list(pending)):
            try:
                results[pending[future].key] = future.result()
            except SlimeBenchError as error:
                errors[pending[future].key] = error
            del pending[future]
            bar.update()
    except BrokenProcessPool as error:
        # They are taken in order, so that these were at work.
        unfinished = [job.key for future, job in pending.items() if not future.done() or future.exception()]
        raise DataError(
            "a worker process died", path=", ".join(unfinished[:count]),
            found="an end without an error, as for lack of memory, or when a damaged file crashes what reads it",
            expected="source pictures that fit into memory, one for each of the workers",
            remedy="repeat the command with fewer --workers (1 names the one picture that a worker dies of); "
            "it goes on where this one stopped",
        ) from error  # fmt: skip
    finally:
        bar.close()
        pool.shutdown(cancel_futures=True)
    return results, {job.key: errors[job.key] for job in jobs if job.key in errors}


def faulty_sources(errors: Mapping[str, SlimeBenchError], total: int) -> DataError:
    """One error for all faulty sources of `total`, a line for each."""
    lines = [f"{each.path or key}: {each.summary} ({each.found})" for key, each in errors.items()]
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return DataError(
        f"{len(lines)} of {total} source pictures are faulty",
        found="".join(f"\n    {line}" for line in [*lines[:SHOWN], *more]),
        expected="source files that are whole and fit together",
        remedy="restore these files and repeat the command, which goes on where this one stopped, "
        "or leave them out with --faulty skip",
    )


def _begin() -> None:
    """Runs once in each worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A worker whose parent was killed waits for its next job for ever.
    if (parent := multiprocessing.parent_process()) is not None:
        connection.wait([parent.sentinel])
        os._exit(1)

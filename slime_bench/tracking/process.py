"""W&B's side of the process: its environment, the service that uploads, and what its waiting may cost."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slime_bench.tracking.record import FOLDER


def waiting(folder: Path) -> Path:
    """Where tables wait for the upload; W&B would keep them in the user's home."""
    return folder / FOLDER / "data"


@contextmanager
def environment(folder: Path) -> Iterator[None]:
    """W&B reads these two from nowhere else."""
    wanted = {
        "WANDB_DATA_DIR": str(waiting(folder)),
        "WANDB_ERROR_REPORTING": "false",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def within(limit: float, action: Callable[[], Any], hurry: Callable[[], Any]) -> None:
    """Run `action`, in a thread that may outlast the limit in seconds, and `hurry` if it does.

    Raises:
        TimeoutError: it is not done. Exception: what `action` raises.
    """
    errors: list[Exception] = []

    def run() -> None:
        try:
            action()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit)
    if thread.is_alive():
        hurry()
        thread.join(limit)
        raise TimeoutError(f"not done after {limit:g} s")
    if errors:
        raise errors[0]


def stop_service(wandb: Any) -> None:
    """End the process that uploads; what it has not sent is in the run's file. (There is no public way to it.)"""
    with contextlib.suppress(Exception):
        wandb.setup()._connection._proc._process.terminate()


def teardown(wandb: Any) -> None:
    """Forget the service and all its runs; the next run starts another. A service that has died may complain."""
    with contextlib.suppress(Exception):
        wandb.teardown()


def memory() -> float:
    """Peak memory so far in GiB: of the GPU where one computes, else of the process; NaN where nobody counts it."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)

"""What a trial that failed leaves behind: `error.json` in its folder, for reports, `slime-bench status` and people."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from slime_bench.config.schema import TrialConfig
from slime_bench.errors import GpuMemoryError, SlimeBenchError
from slime_bench.results.environment import without_home
from slime_bench.storage import write_atomic
from slime_bench.trial.spec import table_facts

ERROR_FILE: Final = "error.json"
_log = logging.getLogger(__name__)


def forget_failure(nameless: Path) -> None:
    """Remove the record of an earlier failure: by now the trial has a folder of its own."""
    with suppress(OSError):
        (nameless / ERROR_FILE).unlink()
        nameless.rmdir()


@contextmanager
def recorded_failure(cfg: TrialConfig, folder: Path, but: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Leave `error.json` in the folder when the block fails, and pass the error on with the file as its `recorded_in`.

    Args:
        cfg: of the trial; what tables need of its method is in the file, as in a result. but: errors that are passed on
            as they are.
    """
    try:
        yield
    except but:
        raise
    except (Exception, KeyboardInterrupt) as error:
        typed = typed_error(error)
        interrupted = isinstance(error, KeyboardInterrupt)
        status = "oom" if isinstance(typed, GpuMemoryError) else "interrupted" if interrupted else "failed"
        facts = {
            "type": type(typed).__name__,
            "status": status,
            "message": str(typed),
            "summary": getattr(typed, "summary", str(typed)),
            "traceback": "".join(traceback.format_exception(error)),
            "facts": table_facts(cfg),
        }
        try:
            text = json.dumps(without_home(facts), indent=1, sort_keys=True)
            write_atomic(folder / ERROR_FILE, f"{text}\n".encode())
        except SlimeBenchError as second:  # a full disk must not hide the first error
            _log.warning("the error could not be recorded: %s", second.summary)
        else:
            typed.__dict__["recorded_in"] = folder / ERROR_FILE
            if not isinstance(typed, SlimeBenchError):  # a typed error's message says all that the file does
                typed.add_note(f"see {folder / ERROR_FILE}")
        if typed is error:
            raise
        raise typed from error


def typed_error(error: BaseException, remedy: str | None = None) -> BaseException:
    """CUDA's out-of-memory error with a remedy, which is a trial's unless one is given; any other error as it is."""
    torch = sys.modules.get("torch")  # without it nothing has run on a GPU
    if torch is None or not isinstance(error, torch.OutOfMemoryError):
        return error
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return GpuMemoryError(
        "the GPU has too little memory",
        path="trainer.device",
        found=f"peak of {peak:.1f} GiB, then: {str(error).splitlines()[0]}",
        expected=None if remedy else "enough memory for data.batch_size test images at once",
        remedy=remedy or "lower data.batch_size (it does not change any number), or use trainer.precision=bf16",
    )

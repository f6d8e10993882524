"""What became of a trial of a sweep, and the file that says so: any process can read it, whoever ran the trial."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from slime_bench.storage import write_atomic

STARTED: Final = "started"  # a worker has begun; where it stays so, the worker died
DONE: Final = "done"
SKIPPED: Final = "skipped"  # it was finished before
BUSY: Final = "busy"  # another process computes it
FAILED: Final = "failed"
OOM: Final = "oom"  # the GPU has too little memory
DIED: Final = "died"  # its process ended without a word
LEFT_OUT: Final = "left out"  # after another's failure, where `launcher.keep_going` is false
UNKNOWN: Final = "unknown"

FINISHED: Final = (DONE, SKIPPED)
BAD: Final = (FAILED, OOM, DIED, UNKNOWN)
_RECORDS: Final = "jobs"


@dataclass(frozen=True)
class JobResult:
    """What became of one trial of a command.

    Attributes:
        index, name: place in the command's order, and what sets the trial apart from the command's others.
        status: one of this module's constants.
        message: of a failure, as a person reads it; its first line is the summary.
        exit_code: that the failure asks for: 2 a mistake that the user can mend, 1 anything else, 0 none.
        seconds: that the trial took.
        average: IoU in [0,1] of a finished trial, None without any. folder: the trial's.
        log: the file with the whole story of a failure.
        code: what made a finished result, if it was not this code.
        traceback: of a failure, where the user asked for it.
    """

    index: int
    name: str
    status: str
    message: str = ""
    exit_code: int = 0
    seconds: float = 0.0
    average: float | None = None
    folder: str | None = None
    log: str | None = None
    code: str | None = None
    traceback: str | None = None

    @property
    def summary(self) -> str:
        return self.message.partition("\n")[0]

    @property
    def finished(self) -> bool:
        return self.status in FINISHED


def died(index: int, name: str, what: str, log: str | None = None) -> JobResult:
    """The result of a trial whose process ended without a word."""
    text = f"its process ended without a word: {what}\n  what to do: repeat the command; it runs what is missing"
    return JobResult(index, name, DIED, message=text, exit_code=1, log=log)


def write_record(folder: Path, result: JobResult) -> None:
    """Write `<folder>/jobs/<index>.json`, in place of an earlier one of the same trial.

    Raises:
        StorageError: see `write_atomic`.
    """
    text = json.dumps(dataclasses.asdict(result), indent=1, sort_keys=True)
    write_atomic(_record(folder, result.index), f"{text}\n".encode())


def read_records(folder: Path) -> dict[int, JobResult]:
    """The results that have been written below `folder`, by index."""
    paths = (folder / _RECORDS).glob("[0-9]*.json")
    found = [JobResult(**json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    return {each.index: each for each in found}


def forget_records(folder: Path, indices: Sequence[int]) -> None:
    """Remove the records of trials that are about to be run again."""
    for index in indices:
        with suppress(OSError):
            _record(folder, index).unlink(missing_ok=True)


def _record(folder: Path, index: int) -> Path:
    return folder / _RECORDS / f"{index:04d}.json"

"""A small data set for the tests of `data_prep.build`: its work runs in worker processes, so it needs its own module.

As a program it builds that data set: python toy_build.py OUT WORKERS LOG [SECONDS PER JOB]
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.build import BuildReport, Dropped, Job, Made, Recipe, Sample, build
from slime_bench.errors import DataError

CLASSES = ("background", "body", "wheel")
SPLITS = ("support", "val", "test")


def picture(index: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture that depends on `index` only, of a size of its own."""
    rng = np.random.default_rng(index)
    height, width = 8 + index % 5, 9 + index % 3
    label = rng.integers(0, 3, (height, width), dtype=np.uint8)
    label[0, 0] = 255
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), label


def work(job: Job, log: Path | None = None, faults: Path | None = None, seconds: float = 0.0) -> list[Made | Dropped]:
    """Two samples from every job, one from every third, none from every seventh.

    Args:
        log: every call adds a line to it.
        faults: a folder in which a file named as the job says what goes wrong with it.
    """
    index = int(job.payload)
    if log is not None:
        with log.open("a") as file:
            file.write(f"{job.key}\n")
    time.sleep(seconds)
    if faults is not None and (faults / job.key).is_file():
        misfortune((faults / job.key).read_text(), job)
    if index % 7 == 6:
        return [Dropped("support", f"{job.key} object 1", "too small")]
    made = []
    for part in range(1 if index % 3 == 0 else 2):
        image, label = picture(10 * index + part)
        facts = {"source": job.key, "object": np.int64(part + 1), "box": (0, np.float32(0.5), 9, 8)}
        made.append(Made(SPLITS[index % 3], f"{job.key}_{part}", image, label, facts))
    return [*made, *([Dropped("test", f"{job.key} object 3", "overlaps another box")] if index % 5 == 0 else [])]


def misfortune(kind: str, job: Job) -> None:
    """What can happen to a job."""
    if kind == "faulty":
        raise DataError("cannot read the image", path=f"/voc/{job.key}.jpg", found="0 bytes", remedy="copy it again")
    if kind == "locked":
        raise PermissionError(13, "Permission denied", f"/voc/{job.key}.mat")
    if kind == "huge":
        raise MemoryError
    if kind == "bug":
        raise KeyError("parts")
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "full disk":
        from PIL import Image

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        Image.Image.save = refuse  # type: ignore[method-assign]
    if kind == "interrupt":
        raise KeyboardInterrupt


def named(job: Job) -> list[Made | Dropped]:
    """One sample with the id that the job carries, and pixels that tell the jobs apart."""
    return [Made("test", job.payload, *picture(len(job.key)))]


def lists(samples: list[Sample]) -> dict[str, list[str]]:
    return {"drawn-1-seed0": [samples[0].id], "first-2": [each.id for each in samples[:2]]}


def assign(samples: list[Sample]) -> dict[str, str]:
    """The second sample becomes a test sample; the first is named, and stays."""
    return {samples[0].id: samples[0].split, samples[1].id: "test"}


def recipe(**changed: Any) -> Recipe:
    values: dict[str, Any] = {"name": "toy_car", "subject": "car", "classes": CLASSES, "settings": {"rule": "paper"}}
    values |= {"sources": {"voc": "VOC2010"}, "splits": lists}
    return Recipe(**(values | changed))


def jobs(count: int = 12) -> list[Job]:
    return [Job(f"2008_{index:06d}", index) for index in range(count)]


def make(
    out: Path,
    *,
    workers: int = 1,
    count: int = 12,
    log: Path | None = None,
    faults: Path | None = None,
    seconds: float = 0.0,
    of: Recipe | None = None,
    the_jobs: Sequence[Job] | None = None,
    the_work: Callable[[Job], list[Made | Dropped]] | None = None,
    **arguments: Any,
) -> BuildReport:
    """Build the toy."""
    chosen = the_work or partial(work, log=log, faults=faults, seconds=seconds)
    return build(
        out,
        of or recipe(),
        the_jobs or jobs(count),
        chosen,
        workers=workers,
        **({"assign": assign} | arguments),
    )


def main(argv: list[str]) -> int:
    make(Path(argv[0]), workers=int(argv[1]), count=60, log=Path(argv[2]), seconds=float(argv[3]))
    return 0


if __name__ == "__main__":
    from data_prep.commands import run

    sys.exit(run(main))

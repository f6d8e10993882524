"""What the three painting orders of CelebAMask-HQ make of the same faces, in pixels per class."""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.build_types import Job
from data_prep.celebamask_hq.files import Face
from data_prep.celebamask_hq.merge import CLASSES, PAINTING, merge
from data_prep.celebamask_hq.read import check_face, read_masks
from slime_bench.errors import SlimeBenchError

_AT_ONCE = 256
_SHOWN = 20


@dataclass(frozen=True)
class Comparison:
    """Pixels per class, int64 [order, class] in the order of `PAINTING` and `CLASSES`.

    Attributes:
        faces: how many were read.
        faulty: "key: what is wrong" of those that could not be.
    """

    faces: int
    pixels: np.ndarray
    faulty: list[str]


def compare(jobs: Sequence[Job], root: Path, size: int, workers: int = 0) -> Comparison:
    """Read the masks of all faces and count each class under each order; nothing is written.

    Faces without a mask count as background in no order: they are not read.
    """
    total = np.zeros((len(PAINTING), len(CLASSES)), np.int64)
    faces, faulty = 0, []
    for done, (job, counts) in enumerate(_counted(jobs, root, size, workers or os.cpu_count() or 1), start=1):
        if isinstance(counts, str):
            faulty.append(f"{job.key}: {counts}")
        elif counts is not None:
            faces += 1
            total += counts
        if done % 500 == 0:
            print(f"reading masks: {done}/{len(jobs)}", file=sys.stderr, flush=True)
    return Comparison(faces, total, faulty)


def print_comparison(comparison: Comparison) -> None:
    """Print pixels per class, the orders side by side, to stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False)
    table = Table("class", title=f"pixels of {comparison.faces} faces by painting order (difference from slime)")
    for name in PAINTING:
        table.add_column(name, justify="right")
    first = comparison.pixels[0]
    for index, name in enumerate(CLASSES):
        cells = [str(first[index])]
        cells += [f"{row[index]} ({row[index] - first[index]:+d})" for row in comparison.pixels[1:]]
        table.add_row(name, *cells)
    console.print(table)
    if comparison.faulty:
        console.print(f"{len(comparison.faulty)} faulty face(s) left out:")
        for line in comparison.faulty[:_SHOWN]:
            console.print(f"  {line}")


def count_face(job: Job, root: str, size: int) -> np.ndarray | str | None:
    """Pixels per class of one face, [order, class]; None without masks; what is wrong with a faulty one."""
    face: Face = job.payload
    try:
        check_face(face, Path(root))
        masks = read_masks(face, Path(root), size)
    except SlimeBenchError as error:
        return f"{error.summary} ({error.path}: {error.found})"
    if not masks:
        return None
    return np.stack([np.bincount(merge(masks, order).ravel(), minlength=len(CLASSES)) for order in PAINTING])


def _counted(jobs: Sequence[Job], root: Path, size: int, workers: int) -> Iterator[tuple[Job, np.ndarray | str | None]]:
    count = functools.partial(count_face, root=str(root), size=size)
    if workers == 1 or len(jobs) < 2 * workers:
        yield from ((job, count(job)) for job in jobs)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    try:
        # `map` hands out all that it is given at once.
        for start in range(0, len(jobs), _AT_ONCE):
            some = jobs[start : start + _AT_ONCE]
            yield from zip(some, pool.map(count, some, chunksize=8), strict=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)

"""CelebAMask-HQ (Lee et al. 2020) -> the face data set of SLiMe's Table 4: ten classes, 512x512, official splits.

    python -m data_prep.celebamask_hq --root CelebAMask-HQ.zip --out data/celebamask_hq
    python -m data_prep.celebamask_hq --root CelebAMask-HQ --compare-merges --limit 500     writes nothing

The licence forbids to pass its images on: keep what is made here to yourself.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

import numpy as np

from data_prep.archive import opened
from data_prep.build import BuildReport, Job, Recipe, Sample, build, print_report
from data_prep.celebamask_hq.files import differences_from_official, find_root, is_needed, list_faces
from data_prep.celebamask_hq.merge import CLASSES, PAINTING
from data_prep.celebamask_hq.read import count_face, make_face
from data_prep.commands import build_options
from data_prep.processes import in_processes
from data_prep.split_lists import drawn_lists
from slime_bench.data.class_table import stdout_console
from slime_bench.errors import ConfigError

NAME = "celebamask_hq"
SIZE = 512


def prepare(
    root: Path,
    out: Path,
    *,
    merge: str = "slime",
    size: int = SIZE,
    workers: int = 0,
    faulty: str = "stop",
    force: bool = False,
    limit: int | None = None,
    work: Path | None = None,
) -> BuildReport:
    """Prepare the data set `out` from CelebAMask-HQ's folder or archive.

    Args:
        root: the folder, or the archive, which is extracted below `work` first.
        merge: painting order, see `data_prep.celebamask_hq.merge`.
        size: side of the masks, which are never resized; images are brought to it.
        workers, faulty, force: see `data_prep.build.build`.
        limit: only the first faces, for trying out; recorded in the manifest's settings.
        work: where archives are extracted; by default `raw/` beside `out`.

    Raises:
        DataError: see `find_root`, `list_faces`, `make_face` and `build`. StorageError: a file cannot be written.
    """
    folder, jobs = _jobs(root, work or out.parent / "raw", limit)
    recipe = Recipe(
        name=NAME,
        subject="face",
        classes=CLASSES,
        settings={"merge": merge, "size": size, "limit": limit},
        sources={"root": Path(root).name},
        splits=_lists,
    )
    make = functools.partial(make_face, root=str(folder), order=merge, size=size)
    return build(out, recipe, jobs, make, workers=workers, faulty=faulty, force=force)


def _jobs(root: Path, work: Path, limit: int | None) -> tuple[Path, list[Job]]:
    folder = find_root(opened(root, work, is_needed))
    faces = list_faces(folder)
    note = differences_from_official(faces)
    if note:
        print(f"note: {note}", file=sys.stderr, flush=True)
    return folder, [Job(f"{face.index:05d}", face) for face in faces[:limit]]


def _lists(samples: list[Sample]) -> dict[str, list[str]]:
    return drawn_lists([sample for sample in samples if sample.split == "support"])


def compare(jobs: list[Job], root: Path, size: int, workers: int) -> list[str]:
    """Print the pixels per class of all faces under each painting order; what is wrong with faulty ones comes back.

    Faces without a mask count as background in no order: they are not read.
    """
    from rich.table import Table

    total = np.zeros((len(PAINTING), len(CLASSES)), np.int64)
    faces, faulty = 0, []
    count = functools.partial(count_face, root=str(root), size=size)
    for job, counts in in_processes(count, jobs, workers, title="comparing orders"):
        if isinstance(counts, str):
            faulty.append(f"{job.key}: {counts}")
        elif counts is not None:
            faces += 1
            total += counts
    table = Table("class", title=f"pixels of {faces} faces by painting order (difference from slime)")
    for name in PAINTING:
        table.add_column(name, justify="right")
    for name, (first, *others) in zip(CLASSES, total.T.tolist(), strict=True):
        table.add_row(name, str(first), *(f"{each} ({each - first:+d})" for each in others))
    console = stdout_console()
    console.print(table)
    if faulty:
        console.print(f"{len(faulty)} faulty face(s) left out:")
        for line in sorted(faulty)[:20]:
            console.print(f"  {line}")
    return faulty


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.celebamask_hq",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--root", type=Path, required=True, help="CelebAMask-HQ's folder, or the downloaded archive")
    add("--merge", choices=tuple(PAINTING), default="slime", help="which mask wins where they overlap")
    add("--size", type=int, default=SIZE, help="side of the masks in pixels (default: %(default)s)")
    build_options(parser, "data/celebamask_hq")
    add("--limit", type=int, help="only the first N faces, for trying out")
    add("--compare-merges", action="store_true", help="print the pixels per class under each order; writes no data set")
    args = parser.parse_args(arguments)
    for name, value in (("--limit", args.limit), ("--size", args.size)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is a whole number from 1 on", found=value, remedy="name such a number")
    if args.compare_merges:
        folder, jobs = _jobs(args.root, args.work or (args.out or args.root).parent / "raw", args.limit)
        faulty = compare(jobs, folder, args.size, args.workers)
        return 2 if faulty and args.faulty == "stop" else 0
    if args.out is None:
        parser.error("the following arguments are required: --out")
    report = prepare(
        args.root, args.out, merge=args.merge, size=args.size, workers=args.workers, faulty=args.faulty,
        force=args.force, limit=args.limit, work=args.work,
    )  # fmt: skip
    print_report(report)
    return 0

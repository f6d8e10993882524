"""CelebAMask-HQ (Lee et al. 2020) -> the face data set of SLiMe's Table 4: ten classes, 512x512, official splits.

    python -m data_prep.celebamask_hq --root CelebAMask-HQ.zip --out data/celebamask_hq
    python -m data_prep.celebamask_hq --root CelebAMask-HQ --compare-merges --limit 500     writes nothing

The licence forbids to pass its images on: keep what is made here to yourself.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np

from data_prep.archive import Download, check_there, opened
from data_prep.build import Recipe, build
from data_prep.celebamask_hq.files import differences_from_official, find_root, is_needed, list_faces
from data_prep.celebamask_hq.merge import CLASSES, PAINTING
from data_prep.celebamask_hq.read import count_face, make_face
from data_prep.commands import parser_of, run
from data_prep.place import print_report
from data_prep.processes import Job, faulty_sources, in_processes
from slime_bench.data.class_table import stdout_console
from slime_bench.errors import ConfigError, SlimeBenchError
from slime_bench.paths import user_path

SIZE = 512


def main(arguments: list[str]) -> int:
    """The command; see the module."""
    parser = parser_of("celebamask_hq", __doc__, "data/celebamask_hq")
    add = parser.add_argument
    add("--root", type=user_path, required=True, help="CelebAMask-HQ's folder, or the downloaded archive")
    add("--merge", choices=tuple(PAINTING), default="slime", help="which mask wins where they overlap")
    add("--size", type=int, default=SIZE, help="side of the masks in pixels (default: %(default)s)")
    add("--limit", type=int, help="only the first N faces, for trying out")
    add("--compare-merges", action="store_true", help="print the pixels per class under each order; writes no data set")
    args = parser.parse_args(arguments)
    if args.size < 1 or (args.limit is not None and args.limit < 1):
        raise ConfigError("--size and --limit are whole numbers from 1 on", found=f"{args.size}, {args.limit}")
    if args.out is None and not args.compare_merges:
        parser.error("the following arguments are required: --out")

    check_there(Download("--root", args.root, "CelebAMask-HQ.zip", "https://github.com/switchablenorms/CelebAMask-HQ"))
    folder = find_root(opened(args.root, args.work or (args.out or args.root).parent / "raw", is_needed))
    faces = list_faces(folder)
    if note := differences_from_official(faces):
        print(f"note: {note}", file=sys.stderr, flush=True)
    jobs = [Job(f"{face.index:05d}", face) for face in faces[: args.limit]]
    if args.compare_merges:
        faulty = compare(jobs, folder, args.size, args.workers)
        if faulty and args.faulty == "stop":
            raise faulty_sources(faulty, len(jobs))
        return 0
    recipe = Recipe(
        name="celebamask_hq",
        subject="face",
        classes=CLASSES,
        settings={"merge": args.merge, "size": args.size, "limit": args.limit},
        sources={"root": args.root.name},
    )
    make = partial(make_face, root=folder, order=args.merge, size=args.size)
    print_report(build(args.out, recipe, jobs, make, workers=args.workers, faulty=args.faulty, force=args.force))
    return 0


def compare(jobs: list[Job], root: Path, size: int, workers: int) -> dict[str, SlimeBenchError]:
    """Print the pixels per class of all faces under each painting order; what is wrong with faulty ones comes back."""
    from rich.table import Table

    counts, faulty = in_processes(partial(count_face, root=root, size=size), jobs, workers, "comparing orders")
    total = sum(counts.values(), np.zeros((len(PAINTING), len(CLASSES)), np.int64))
    table = Table("class", title=f"pixels of {len(counts)} faces by painting order (difference from slime)")
    for name in PAINTING:
        table.add_column(name, justify="right")
    for name, (first, *others) in zip(CLASSES, total.T.tolist(), strict=True):
        table.add_row(name, str(first), *(f"{each} ({each - first:+d})" for each in others))
    stdout_console().print(table)
    return faulty


if __name__ == "__main__":
    sys.exit(run(main))

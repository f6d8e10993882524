"""Builds a data set from jobs: in parallel, resumable, whole or absent.

Everything is made in `.<name>.building/` beside its place: pictures first, a line in the journal for each finished job,
then the split lists, the manifest last, and then the folder is renamed. The same jobs and recipe give the same bytes,
whatever the number of processes, and however often the build was interrupted.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

from data_prep.build_files import Journal, plain, remove, sweep, writing
from data_prep.build_finish import complete, whole
from data_prep.build_place import finished, place
from data_prep.build_pool import outcomes
from data_prep.build_report import print_report, report_of
from data_prep.build_types import Assign, BuildReport, Dropped, Job, Made, Recipe, Sample, Work
from data_prep.build_worker import spelling
from slime_bench.data.manifest import MANIFEST
from slime_bench.data.verify import progress_bar
from slime_bench.errors import ConfigError, DataError, SlimeBenchError
from slime_bench.storage import alone

__all__ = ["BuildReport", "Dropped", "Job", "Made", "Recipe", "Sample", "Work", "build", "print_report"]

VERSION: Final = 1
FAULTY: Final = ("stop", "skip")
_SHOWN = 20


def build(
    out: Path,
    recipe: Recipe,
    jobs: Sequence[Job],
    work: Work,
    *,
    workers: int = 0,
    faulty: str = "stop",
    assign: Assign | None = None,
    force: bool = False,
) -> BuildReport:
    """Build the data set `out`, or go on with it where an earlier run stopped.

    Args:
        out: folder of the data set; it appears when the data set is whole.
        recipe: what decides the content. With another recipe than an interrupted run's the build starts afresh.
        jobs: the source pictures; samples are listed in their order.
        work: makes the samples of one job.
        workers: processes; 1 = this one, 0 = one for each processor.
        faulty: what a source that `work` finds faulty does: `stop` ends the build with one error for all of them,
            after everything else is made; `skip` leaves it out and lists it in the manifest.
        assign: moves samples between the splits, once all are made.
        force: replace a data set that a manifest vouches for.

    Returns:
        what the data set holds; for one that was there already, from its manifest.

    Raises:
        ConfigError: bad `workers` or `faulty`. DataError: `out` holds something else, faulty sources, two samples of
        one id, nothing kept, or a worker that died. StorageError: a file cannot be written.
    """
    began = time.monotonic()
    workers = _checked(workers, faulty)
    order = _numbered(jobs)
    out = Path(os.path.realpath(out))  # a link to a folder on another disk: build there
    if not out.name:
        raise ConfigError(
            "no folder for the data set", path="--out", found=out, expected="e.g. data/pascal_part/car",
            remedy="name a folder",
        )  # fmt: skip
    identity = plain(
        {
            "version": VERSION,
            "name": recipe.name,
            "subject": recipe.subject,
            "classes": recipe.classes,
            "settings": recipe.settings,
            "sources": recipe.sources,
        }
    )
    inputs = {"count": len(jobs), "sha256": hashlib.sha256("\n".join(order).encode("utf-8", "replace")).hexdigest()}
    with ExitStack() as stack:
        with writing(out):
            stack.enter_context(alone(out))
        manifest, note = finished(out, identity, inputs, force=force)
        if manifest is not None:
            return report_of(manifest, out, note=note)
        building = out.with_name(f".{out.name}.building")
        made = resumed = 0
        if (building / MANIFEST).is_file():
            # Interrupted between the manifest and the renaming, or of other inputs.
            manifest = whole(building, identity, inputs)
        if manifest is None:
            records, resumed = _make_all(building, recipe, identity, jobs, order, work, workers, faulty)
            made = len(jobs) - resumed
            manifest = complete(building, recipe, {**identity, "inputs": inputs}, records, assign)
        place(building, out, force=force)
        return report_of(manifest, out, made=made, resumed=resumed, seconds=time.monotonic() - began)


def _checked(workers: int, faulty: str) -> int:
    if workers < 0:
        raise ConfigError(
            "bad number of workers", path="--workers", found=workers, expected="1 or more, or 0 for one per processor",
            remedy="leave it out",
        )  # fmt: skip
    if faulty not in FAULTY:
        raise ConfigError(
            "unknown way to treat faulty sources", path="--faulty", found=faulty, expected=" or ".join(FAULTY),
            remedy="leave it out, or choose one of the two",
        )  # fmt: skip
    if workers == 0 and hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return workers or os.cpu_count() or 1


def _numbered(jobs: Sequence[Job]) -> dict[str, int]:
    """The position of each job by its key."""
    order = {job.key: position for position, job in enumerate(jobs)}
    if len(order) != len(jobs):
        twice = sorted(key for key, count in Counter(job.key for job in jobs).items() if count > 1)
        raise DataError(
            "two source pictures of one name",
            found=", ".join(twice[:_SHOWN]),
            expected="every name once",
            remedy="remove or rename one of the two",
        )
    if not jobs:
        raise DataError("no source picture", found="an empty list", remedy="check the folders that the command names")
    return order


def _make_all(
    building: Path,
    recipe: Recipe,
    identity: Mapping[str, Any],
    jobs: Sequence[Job],
    order: Mapping[str, int],
    work: Work,
    workers: int,
    faulty: str,
) -> tuple[list[dict[str, Any]], int]:
    """Records of all jobs in their order, and how many of them were finished before; faulty sources have one too."""
    journal = Journal(building, identity)
    seen = {job.key: hashlib.sha256(repr(job.payload).encode("utf-8", "replace")).hexdigest() for job in jobs}
    # A job whose sources are others by now (a file came or went since) is not finished.
    records = journal.read(lambda each: seen.get(each["key"]) == each.get("payload"))
    with writing(building):
        if records is None:
            remove(building)
            records = {}
        building.mkdir(exist_ok=True)
    resumed = len(records)
    sweep(building, (name for each in records.values() for name in each["files"]))
    owners: dict[str, str] = {}
    errors: dict[str, SlimeBenchError] = {}
    missing = [job for job in jobs if job.key not in records]
    progress = progress_bar(recipe.name, len(jobs), resumed)
    journal.start(records.values())
    try:
        for record in records.values():
            _own(record, owners)
        with closing(outcomes(missing, work, building, len(recipe.classes), workers)) as results:
            for outcome in results:
                if outcome is None:
                    progress.refresh()
                    continue
                if outcome.error is not None:
                    errors[outcome.key] = outcome.error
                elif outcome.record is not None:
                    _add({**outcome.record, "payload": seen[outcome.key]}, records, owners, journal)
                progress.update()
    finally:
        journal.close()
        progress.close()
    if errors and faulty == "stop":
        raise _faulty(dict(sorted(errors.items(), key=lambda each: order[each[0]])), len(jobs))
    records |= {key: _skipped(key, error) for key, error in errors.items()}
    return sorted(records.values(), key=lambda each: order[each["key"]]), resumed


def _own(record: Mapping[str, Any], owners: dict[str, str]) -> str | None:
    """Enter the samples of a record; returns the id that another record has too."""
    for sample in record["samples"]:
        if spelling(sample["id"]) in owners:
            return str(sample["id"])
        owners[spelling(sample["id"])] = record["key"]
    return None


def _add(record: dict[str, Any], records: dict[str, Any], owners: dict[str, str], journal: Journal) -> None:
    known = dict(owners) if len(record["samples"]) > 1 else owners
    twice = _own(record, known)
    if twice is not None:
        other = known[spelling(twice)]
        if other in records:  # its files may have been written over
            journal.undo(other)
        raise DataError(
            "two samples of one id",
            path=" and ".join(dict.fromkeys((other, record["key"]))),
            found=twice,
            expected="every id once in all splits, also where capitals and accents make no difference",
            remedy="remove or rename one of the two sources",
        )
    owners |= known
    journal.add(record)
    records[record["key"]] = record


def _faulty(errors: Mapping[str, SlimeBenchError], total: int) -> DataError:
    lines = [f"{each.path or key}: {each.summary} ({each.found})" for key, each in errors.items()]
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return DataError(
        f"{len(errors)} of {total} source pictures are faulty",
        found="".join(f"\n    {line}" for line in [*lines[:_SHOWN], *more]),
        expected="source files that are whole and fit together; all others are made and kept",
        remedy="restore these files and repeat the command, which goes on where this one stopped, "
        "or leave them out with --faulty skip",
    )


def _skipped(key: str, error: SlimeBenchError) -> dict[str, Any]:
    name = f" ({Path(str(error.path)).name})" if error.path is not None else ""
    return {"key": key, "samples": [], "files": {}, "dropped": [], "faulty": (error.summary, name)}

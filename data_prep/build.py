"""Builds a data set from jobs: in parallel, resumable, whole or absent.

Everything is made in `.<name>.building/` beside its place: the pictures of each job and then its record, the split
lists when all are made, the manifest last; then the folder is renamed. A job with a record is not done again. The same
jobs and recipe give the same bytes, whatever the number of processes, and however often the build was interrupted.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from data_prep.place import KINDS, RECORDS, SPLITS, BuildReport, finished, replaced, tidy
from data_prep.processes import Job, faulty_sources, in_processes
from slime_bench.data.label_maps import class_pixels
from slime_bench.data.manifest import MANIFEST, pixels_sha256, text_sha256
from slime_bench.errors import DataError, SlimeBenchError, StorageError
from slime_bench.storage import alone

VERSION: Final = 1
# Measured on photographs of 512x512 (Pillow 13, zlib-ng): level 1 takes 17 ms and 380 kB, the usual 6 takes 75 ms and
# 350 kB.
_COMPRESSION: Final = 1


@dataclass(frozen=True)
class Made:
    """One sample of the data set.

    Attributes:
        split: `support`, `val` or `test`; `assign` may still change it.
        id: unique over all splits; the stem of its two files.
        image: uint8 [H,W,3] RGB.
        label: uint8 [H,W], class indices in label order, 255 = ignore.
        facts: what the manifest says about it (JSON): source, object, box, ...
    """

    split: str
    id: str
    image: np.ndarray
    label: np.ndarray
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Dropped:
    """What the rules of the data set leave out: `what`, e.g. "2008_000008 object 1", and the `reason` in few words, the
    same for the same reason."""

    split: str
    what: str
    reason: str


@dataclass(frozen=True)
class Sample:
    """A sample that is written: `facts` as in `Made`, with `size` [H, W] and `pixels`, the count of each class."""

    split: str
    id: str
    facts: dict[str, Any]


Work = Callable[[Job], "Sequence[Made | Dropped]"]
"""A function of a module, or `functools.partial` of one: it is pickled to worker processes. It reads files and raises a
`SlimeBenchError` where one is faulty."""


@dataclass(frozen=True)
class Recipe:
    """What decides the content of a data set, but for the source files themselves.

    Attributes:
        name, subject: e.g. "pascal_part_car" and "car". classes: names in label order.
        settings: everything that decides the content (JSON), e.g. {"rule": "paper"}.
        sources: the inputs' names as they were given, for the manifest.
        splits: the lists under `splits/`: all samples, after `assign` -> {name of the list: ids}.
        assign: all samples in order of the jobs -> {id: split} of those that change their split.
    """

    name: str
    subject: str
    classes: tuple[str, ...]
    settings: dict[str, Any]
    sources: dict[str, str]
    splits: Callable[[list[Sample]], Mapping[str, Sequence[str]]] = lambda samples: {}
    assign: Callable[[list[Sample]], Mapping[str, str]] = lambda samples: {}


def build(
    out: Path,
    recipe: Recipe,
    jobs: Sequence[Job],
    work: Work,
    *,
    workers: int = 0,
    faulty: str = "stop",
    force: bool = False,
) -> BuildReport:
    """Build the data set `out`, or go on with it where an earlier run stopped.

    Args:
        out: folder of the data set; it appears when the data set is whole.
        recipe: with another one than an interrupted run's the build starts afresh.
        jobs: the source pictures; samples are listed in their order.
        workers: processes; 0 = one for each processor.
        faulty: what a source that `work` finds faulty does: `stop` ends the build with one error for all of them,
            after everything else is made; `skip` leaves it out and lists it in the manifest.
        force: replace a data set that a manifest vouches for.

    Raises:
        DataError: `out` holds something else, faulty sources, nothing kept, or a worker that died.
        StorageError: a file cannot be written.
    """
    began = time.monotonic()
    out = Path(os.path.realpath(out))  # a link to a folder on another disk: build there
    head = {
        "version": VERSION,
        "name": recipe.name,
        "subject": recipe.subject,
        "classes": list(recipe.classes),
        "settings": json.loads(json.dumps(recipe.settings)),  # as a manifest holds them: tuples become lists
        "sources": recipe.sources,
        "inputs": {"count": len(jobs), "sha256": text_sha256(job.key for job in jobs)},
    }
    building = out.with_name(f".{out.name}.building")
    try:
        with alone(out):
            if (report := finished(out, head, force)) is not None:
                return report
            records = _finished_jobs(building, head, jobs)
            resumed = len(records)
            missing = [job for job in jobs if job.key not in records]
            task = partial(_make, work=work, folder=building, num_classes=len(recipe.classes))
            made, errors = in_processes(task, missing, workers, recipe.name, resumed)
            records |= made
            if errors and faulty == "stop":
                raise faulty_sources(errors, len(jobs))
            manifest = _complete(building, recipe, head, [records[j.key] for j in jobs if j.key in records], errors)
            if out.exists():
                out.rename(replaced(out))
            building.rename(out)
            tidy(out)
    except OSError as error:
        raise StorageError.of(error, error.filename or out, "--out") from error
    return BuildReport(out, manifest, len(jobs) - resumed, resumed, time.monotonic() - began)


def _finished_jobs(building: Path, head: Mapping[str, Any], jobs: Sequence[Job]) -> dict[str, Any]:
    """The records of finished jobs by their keys, where the recipe is still the same; else the folder starts afresh."""
    identity = json.dumps({key: value for key, value in head.items() if key != "inputs"})
    recipe_file = building / RECORDS / "recipe.json"
    if not recipe_file.is_file() or recipe_file.read_text(encoding="utf-8") != identity:
        shutil.rmtree(building, ignore_errors=True)
        recipe_file.parent.mkdir(parents=True)
        recipe_file.write_text(identity, encoding="utf-8")
    records = {job.key: _record_of(building, job) for job in jobs}
    return {key: record for key, record in records.items() if record is not None}


def _record_of(folder: Path, job: Job) -> dict[str, Any] | None:
    """The record of a finished job, if its sources are the same by now and its files still have their sizes: after a
    power cut a file system may hold a file's name without its content."""
    try:
        record = json.loads(_record_file(folder, job.key).read_text(encoding="utf-8"))
        intact = all((folder / name).stat().st_size == size for name, (_, size) in record["files"].items())
    except (OSError, ValueError):
        return None
    return dict(record) if intact and record["payload"] == repr(job.payload) else None


def _record_file(folder: Path, key: str) -> Path:
    return folder / RECORDS / f"{text_sha256([key])[:32]}.json"


def _make(job: Job, *, work: Work, folder: Path, num_classes: int) -> dict[str, Any]:
    """Write the samples of a job below `folder`, then its record, which is returned. Runs in a worker process."""
    try:
        results = work(job)
    except Exception as error:
        error.add_note(f"while preparing {job.key}")
        raise
    samples, files = [], {}
    for made in (each for each in results if isinstance(each, Made)):
        for kind, pixels in zip(KINDS, (made.image, made.label), strict=True):
            name = f"{made.split}/{kind}/{made.id}.png"
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, "PNG", compress_level=_COMPRESSION)
            files[name] = (pixels_sha256(pixels), path.stat().st_size)
        counts = class_pixels(made.label, num_classes).tolist()
        facts = {**made.facts, "size": made.label.shape, "pixels": counts}
        samples.append({"split": made.split, "id": made.id, "facts": facts})
    dropped = [[each.split, each.what, each.reason] for each in results if isinstance(each, Dropped)]
    text = json.dumps({"payload": repr(job.payload), "samples": samples, "files": files, "dropped": dropped})
    _record_file(folder, job.key).write_text(text, encoding="utf-8")
    return dict(json.loads(text))


def _complete(
    building: Path,
    recipe: Recipe,
    head: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    errors: Mapping[str, SlimeBenchError],
) -> dict[str, Any]:
    """Move samples between splits, write the split lists and the manifest, which is returned."""
    samples = [Sample(**each) for record in records for each in record["samples"]]
    dropped = [each for record in records for each in record["dropped"]]
    reasons = Counter(reason for _, _, reason in dropped)
    reasons.update(f"unreadable: {error.summary}" for error in errors.values())
    if not samples:
        raise DataError(
            f"no sample of {recipe.name} was kept",
            found=", ".join(f"{reason}: {count}" for reason, count in reasons.most_common()) or "no object",
            expected="at least one",
            remedy="check that the sources are those of this data set, and the rules that drop samples",
        )
    files = {name: sha256 for record in records for name, (sha256, _) in record["files"].items()}
    wanted = recipe.assign(samples)
    for index, sample in enumerate(samples):
        split = wanted.get(sample.id, sample.split)
        if split != sample.split:
            samples[index] = replace(sample, split=split)
            for kind in KINDS:
                old, new = (f"{each}/{kind}/{sample.id}.png" for each in (sample.split, split))
                (building / new).parent.mkdir(parents=True, exist_ok=True)
                (building / old).replace(building / new)
                files[new] = files.pop(old)
    for path in [path for split in SPLITS for path in (building / split).rglob("*") if path.is_file()]:
        if path.relative_to(building).as_posix() not in files:  # of killed processes and of other runs
            path.unlink()
    shutil.rmtree(building / "splits", ignore_errors=True)
    for name, ids in recipe.splits(samples).items():
        (building / "splits").mkdir(exist_ok=True)
        text = "\n".join([f"# {name}: {len(ids)} of the samples of {recipe.name}", *ids])
        (building / "splits" / f"{name}.txt").write_text(f"{text}\n", encoding="utf-8", newline="\n")
    listed: dict[str, list[str]] = {}
    for split, what, reason in dropped:
        listed.setdefault(reason, []).append(f"{split}/{what}")
    manifest = {
        **head,
        "dropped": dict(sorted(reasons.items())),
        "dropped_samples": dict(sorted(listed.items())),
        "faulty": [{"source": key, "what": _what(error)} for key, error in errors.items()],
        "files": dict(sorted(files.items())),
        "samples": {f"{each.split}/{each.id}": each.facts for each in samples},
    }
    (building / MANIFEST).write_bytes(_manifest_text(manifest).encode())
    if hasattr(os, "sync"):
        os.sync()  # the data set must not get its name before a power cut that its files do not outlive
    return manifest


def _what(error: SlimeBenchError) -> str:
    """The error of a faulty source without the user's folders."""
    return error.summary + (f" ({Path(error.path).name})" if error.path is not None else "")


def _manifest_text(manifest: Mapping[str, Any]) -> str:
    """JSON with one line for each file and sample, in the order given: quick to write, read and compare by eye."""
    parts = []
    for key, value in manifest.items():
        if key in ("files", "samples"):
            entries = ",\n".join(f"  {_json(name)}: {_json(each)}" for name, each in value.items())
            parts.append(f" {_json(key)}: {{\n{entries}\n }}")
        else:
            parts.append(f" {_json(key)}: {_json(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)

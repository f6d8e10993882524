"""Verification of a data set: every file is decoded once, counted, compared with the others and with the manifest.

A good verdict is remembered by name, size and time of every file, as decoding them takes minutes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from tqdm import tqdm

from slime_bench.data.config import TEST
from slime_bench.data.duplicates import SIDE, find_duplicates, fingerprint
from slime_bench.data.label_maps import IGNORE, class_pixels, listing
from slime_bench.data.manifest import MANIFEST, pixels_sha256, read_manifest, stamp
from slime_bench.data.mask_files import Mask
from slime_bench.data.masks import check_hard_edges
from slime_bench.data.reading import FolderDataset
from slime_bench.errors import DataError, SlimeBenchError, StorageError
from slime_bench.storage import write_atomic

CACHE: Final = ".verified.json"
VERSION: Final = 2
_KEPT = 8  # verdicts of one data set, e.g. with other class lists
_SHOWN = 5
_BATCH = 64  # samples that wait for a thread at a time

_log = logging.getLogger(__name__)

State = dict[str, str]
"""Per split a hash of what was verified and of the state that its files were in."""


@dataclass(frozen=True)
class DatasetReport:
    """What a split holds; both counts are per class, in label order; `sizes` is images of each "WIDTHxHEIGHT"."""

    images: int
    images_with_class: dict[str, int]
    pixels_of_class: dict[str, int]
    ignored_pixels: int
    sizes: dict[str, int]


@dataclass(frozen=True)
class VerifyReport:
    """What a data set holds, and what is wrong with it.

    Attributes:
        splits: counts per split, of the samples that could be read.
        problems: an error for each sample that cannot be used, with `path`, `summary` and `found`.
        duplicates: near-identical images, as "<split>/<id>"; each is named once, after the first that it equals.
        differences: how the files differ from the manifest, in words; empty also where there is no manifest.
        remembered: the files were decoded on an earlier occasion.
    """

    splits: dict[str, DatasetReport]
    problems: list[SlimeBenchError] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    remembered: bool = False

    @property
    def leaks(self) -> list[str]:
        """Images that are in the test split and in another, in words."""
        return [" = ".join(both) for both in self.duplicates if _leak(both)]

    @property
    def twins(self) -> list[str]:
        """Images that appear twice on one side, in words."""
        return [" = ".join(both) for both in self.duplicates if not _leak(both)]

    @property
    def usable(self) -> bool:
        """Whether a trial may run on it: all samples can be read and are those of the manifest."""
        return not self.problems and not self.differences


def _leak(both: tuple[str, str]) -> bool:
    return sum(name.startswith(f"{TEST}/") for name in both) == 1


def verify_splits(splits: Mapping[str, FolderDataset], root: Path) -> VerifyReport:
    """Decode every sample of `splits`, and compare the files with the manifest of `root`, if there is one; what is
    faulty is listed, nothing is raised for it."""
    files: dict[str, str] = {}
    problems: list[SlimeBenchError] = []
    if (root / MANIFEST).is_file():
        try:
            files = read_manifest(root)["files"]
        except DataError as error:
            problems.append(error)
    total = sum(len(dataset) for dataset in splits.values())
    reports: dict[str, DatasetReport] = {}
    names: list[str] = []
    # In arrays: kept one by one among the images that are decoded meanwhile, they would hold the memory of these.
    bits, thumbs = np.zeros(total, np.uint64), np.zeros((total, SIDE, SIDE, 3), np.uint8)
    hashes: dict[str, str] = {}
    # Decoding and hashing let go of Python's lock, so that threads use all processors.
    with progress_bar(f"verify {root.name}", total) as line, ThreadPoolExecutor(processors()) as pool:
        for name, dataset in splits.items():
            counts = np.zeros((2, len(dataset.classes)), np.int64)
            ignored, sizes = 0, Counter[str]()
            for pair, found in zip(dataset.pairs, _looks(pool, dataset, root, files), strict=True):
                line.update()
                if isinstance(found, SlimeBenchError):
                    problems.append(found)
                    continue
                bits[len(names)], thumbs[len(names)] = found.bits, found.thumb
                names.append(f"{name}/{pair.id}")
                hashes |= found.hashes
                counts += (found.counts > 0, found.counts)
                ignored += found.ignored
                sizes[found.size] += 1
            shown, pixels = (dict(zip(dataset.classes, each, strict=True)) for each in counts.tolist())
            reports[name] = DatasetReport(sizes.total(), shown, pixels, ignored, dict(sorted(sizes.items())))
    duplicates = [(names[i], names[j]) for i, j in find_duplicates(bits[: len(names)], thumbs[: len(names)])]
    faulty = {_relative(Path(str(each.path)), root) for each in problems}
    tops = {_relative(folder, root).split("/")[0] for dataset in splits.values() for folder in _folders(dataset)}
    listed = {name: each for name, each in files.items() if name.split("/")[0] in tops}
    return VerifyReport(reports, problems, duplicates, _differences(root, listed, hashes, faulty))


def ensure_verified(splits: Mapping[str, FolderDataset], root: Path) -> None:
    """Verify the data set unless these very files (by size and time) were found good before.

    A leak between the test split and the others is a warning here, as trials on given data must stay possible; so is
    an image that appears twice.

    Raises:
        DataError, LabelError: the one bad sample's own error, or one that names the first of several; or files that
            differ from the manifest.
    """
    report = verified(splits, root)
    problems = report.problems
    if len(problems) == 1:
        raise problems[0]
    if problems:
        good = sum(split.images for split in report.splits.values())
        raise DataError(
            f"{len(problems)} of {good + len(problems)} samples are unusable", path=root,
            found="; ".join(f"{each.path}: {each.summary} ({each.found})" for each in problems[:_SHOWN]),
            expected="images and label maps that decode, agree in size and hold only known classes",
            remedy=f"mend or remove these files; the first: {problems[0].remedy}",
        )  # fmt: skip
    if report.differences:
        raise DataError(
            "the data set differs from its manifest", path=root, found="; ".join(report.differences),
            expected=f"the files of {MANIFEST}", remedy=f"delete {root} and prepare the data again",
        )  # fmt: skip
    for found, what in ((report.leaks, "of the test split are in another split too"), (report.twins, "appear twice")):
        if found:
            _log.warning("%s: %d image(s) %s: %s", root, len(found), what, listing(found))


def verified(splits: Mapping[str, FolderDataset], root: Path, *, fresh: bool = False) -> VerifyReport:
    """The report of `verify_splits`, remembered (unless `fresh`) of a usable data set of which no file has changed."""
    state = _state(root, splits)
    remembered = None if fresh else _recall(root, state)
    if remembered is not None:
        return remembered
    report = verify_splits(splits, root)
    # Only what is good is remembered: a mended permission changes neither size nor time of a file.
    if report.usable and _state(root, splits) == state:
        _remember(root, state, report)
    return report


def progress_bar(title: str, total: int, done: int = 0) -> tqdm[Any]:
    """How many of `total` images are done, on stderr: redrawn on a terminal, every ten seconds in a file. Those that
    were `done` before do not count for the speed."""
    every, delay = (0.25, 1.0) if sys.stderr.isatty() else (10.0, 10.0)
    return tqdm(
        total=total, initial=done, desc=title, unit=" images", mininterval=every, delay=delay, dynamic_ncols=True
    )  # fmt: skip


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- what one sample holds


class _Look(NamedTuple):
    """What one sample holds: `counts` int64 [K], `hashes` of those of its files that the manifest lists; see
    `fingerprint` for `bits` and `thumb`."""

    counts: np.ndarray
    ignored: int
    size: str
    bits: int
    thumb: np.ndarray
    hashes: dict[str, str]


def _looks(
    pool: ThreadPoolExecutor, dataset: FolderDataset, root: Path, files: Mapping[str, str]
) -> Iterator[_Look | SlimeBenchError]:
    """What every sample holds, in their order, or its error."""

    def look(index: int) -> _Look | SlimeBenchError:
        pair = dataset.pairs[index]
        try:
            sample = dataset[index]
            both = ((_relative(pair.image, root), sample.image), (_relative(pair.label, root), sample.label))
            hashes = {name: pixels_sha256(pixels.astype(np.uint8)) for name, pixels in both if name in files}
            label = both[1][0]
            if label not in files or hashes[label] != files[label]:  # one that a builder made has hard edges
                check_hard_edges(Mask(pair.label, sample.label), named=True)
        except SlimeBenchError as error:
            return error
        height, width = sample.label.shape
        counts, ignored = class_pixels(sample.label, len(dataset.classes)), int((sample.label == IGNORE).sum())
        return _Look(counts, ignored, f"{width}x{height}", *fingerprint(sample.image), hashes)

    for start in range(0, len(dataset), _BATCH):
        yield from pool.map(look, range(start, min(start + _BATCH, len(dataset))))


def _relative(path: Path, root: Path) -> str:
    """`path` below `root`, with forward slashes, as a manifest names it; whole where it lies elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _folders(dataset: FolderDataset) -> set[Path]:
    return {path.parent for pair in dataset.pairs for path in pair.files}


def _differences(root: Path, files: Mapping[str, str], hashes: Mapping[str, str], faulty: set[str]) -> list[str]:
    """How the files below `root` differ from `files` of the manifest, in words; `hashes` are those of decoded files."""
    present: set[str] = set()
    for folder in {name.rpartition("/")[0] for name in files}:
        if (root / folder).is_dir():
            with os.scandir(root / folder) as entries:
                present |= {f"{folder}/{each.name}".lstrip("/") for each in entries if not each.name.startswith(".")}
    kinds = {
        "missing": sorted(files.keys() - present - faulty),
        "changed": sorted(name for name in files.keys() & hashes.keys() if hashes[name] != files[name]),
        "not listed": sorted(present - files.keys() - {MANIFEST} - faulty),
    }
    return [f"{kind}: {listing(names)}" for kind, names in kinds.items() if names]


# --- what is remembered


def _state(root: Path, splits: Mapping[str, FolderDataset]) -> State:
    """The state of all files in the folders of each split; 60,000 take a fraction of a second."""
    states = {}
    for name, dataset in splits.items():
        folders = sorted(_folders(dataset))
        meaning = [[str(each) for each in folders], dataset.ids, dataset.classes, dataset.colours, *dataset.meaning]
        found = hashlib.sha256(json.dumps([VERSION, *meaning]).encode())
        found.update(repr(stamp(root / MANIFEST)).encode())
        for folder in folders:
            with os.scandir(folder) as entries:
                files = sorted((each.name, stamp(each)) for each in entries if not each.name.startswith("."))
            found.update(repr(files).encode())
        states[name] = found.hexdigest()
    return states


def _caches(root: Path) -> tuple[Path, Path]:
    """Where verdicts on `root` are kept: there, or, where it cannot be written, in the user's cache folder."""
    name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:32]
    user = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return root / CACHE, user / "slime-bench" / "verified" / f"{name}.json"


def _verdicts(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return list(content["verdicts"]) if content["version"] == VERSION else []
    except (OSError, ValueError, RecursionError, TypeError, KeyError):  # none yet, or of another version
        return []


def _recall(root: Path, state: State) -> VerifyReport | None:
    """What was remembered of these splits in this very state, alone or among others; or None."""
    for path in _caches(root):
        for verdict in _verdicts(path):
            if state.items() <= verdict["state"].items():
                splits = {name: DatasetReport(**verdict["report"]["splits"][name]) for name in state}
                duplicates = [(each["first"], each["second"]) for each in verdict["report"]["duplicates"]]
                inside = [both for both in duplicates if {name.split("/")[0] for name in both} <= {*state}]
                return VerifyReport(splits, duplicates=inside, remembered=True)
    return None


def _remember(root: Path, state: State, report: VerifyReport) -> None:
    """Write `report` down; where no folder can be written the data set is verified again next time."""
    said = {
        "splits": {name: vars(split) for name, split in report.splits.items()},
        "duplicates": [{"first": one, "second": other} for one, other in report.duplicates],
    }
    for path in _caches(root):
        others = [each for each in _verdicts(path) if not each["state"].items() <= state.items()]
        verdicts = [*others[1 - _KEPT :], {"state": state, "report": said}]
        try:
            write_atomic(path, json.dumps({"version": VERSION, "verdicts": verdicts}).encode())
            return
        except StorageError as error:
            _log.debug("cannot remember the verdict in %s: %s", path, error.found)

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
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from tqdm import tqdm

from slime_bench.data.config import TEST
from slime_bench.data.duplicates import Fingerprint, Fingerprints, fingerprint
from slime_bench.data.label_maps import IGNORE, class_pixels, listing
from slime_bench.data.manifest import MANIFEST, pixels_sha256, read_manifest
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
class Duplicate:
    """Two samples of near-identical images, as "<split>/<id>"; `leak`: one is in `test`, the other is not."""

    first: str
    second: str
    leak: bool

    def __str__(self) -> str:
        return f"{self.first} = {self.second}"


@dataclass(frozen=True)
class VerifyReport:
    """What a data set holds, and what is wrong with it.

    Attributes:
        splits: counts per split, of the samples that could be read.
        problems: an error for each sample that cannot be used, with `path`, `summary` and `found`.
        duplicates: near-identical images; each image is named once, with the first that it equals.
        differences: how the files differ from the manifest, in words; empty also where there is no manifest.
        remembered: the files were decoded on an earlier occasion.
    """

    splits: dict[str, DatasetReport]
    problems: list[SlimeBenchError] = field(default_factory=list)
    duplicates: list[Duplicate] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    remembered: bool = False

    @property
    def leaks(self) -> list[Duplicate]:
        """Images that are in the test split and in another."""
        return [each for each in self.duplicates if each.leak]

    @property
    def usable(self) -> bool:
        """Whether a trial may run on it: all samples can be read and are those of the manifest."""
        return not self.problems and not self.differences

    @property
    def absent(self) -> dict[str, list[str]]:
        """Per split the classes without a pixel."""
        shown = {
            name: [each for each, count in split.pixels_of_class.items() if not count]
            for name, split in self.splits.items()
        }
        return {name: classes for name, classes in shown.items() if classes}


def verify_splits(splits: Mapping[str, FolderDataset], root: Path, *, progress: bool = False) -> VerifyReport:
    """Decode every sample of `splits`; what is faulty is listed, nothing is raised for it.

    Args:
        splits: by name; an image in `test` and in any other split is a leak.
        root: folder of the data set, whose manifest (if there is one) the files are compared with.
        progress: show a line on stderr where it takes long.
    """
    files: dict[str, str] = {}
    problems: list[SlimeBenchError] = []
    if (root / MANIFEST).is_file():
        try:
            files = read_manifest(root)["files"]
        except DataError as error:
            problems.append(error)
    total = sum(len(dataset) for dataset in splits.values())
    reports: dict[str, DatasetReport] = {}
    names: list[tuple[str, str]] = []
    prints = Fingerprints(total)
    hashes: dict[str, str] = {}
    # Decoding and hashing let go of Python's lock, so that threads use all processors.
    with (
        progress_bar(f"verify {root.name}", total, hidden=not progress) as line,
        ThreadPoolExecutor(processors()) as pool,
    ):
        for name, dataset in splits.items():
            counts = np.zeros((2, len(dataset.classes)), np.int64)
            ignored, sizes = 0, Counter[str]()
            for pair, found in zip(dataset.pairs, _looks(pool, dataset, root, files), strict=True):
                line.update()
                if isinstance(found, SlimeBenchError):
                    problems.append(found)
                    continue
                names.append((name, f"{name}/{pair.id}"))
                prints.add(found.print)
                hashes |= found.hashes
                counts += (found.counts > 0, found.counts)
                ignored += found.ignored
                sizes[found.size] += 1
            shown, pixels = (dict(zip(dataset.classes, each, strict=True)) for each in counts.tolist())
            reports[name] = DatasetReport(sizes.total(), shown, pixels, ignored, dict(sorted(sizes.items())))
    duplicates = [
        Duplicate(names[i][1], names[j][1], (names[i][0] == TEST) != (names[j][0] == TEST))
        for i, j in prints.duplicates()
    ]
    faulty = {_relative(Path(str(each.path)), root) for each in problems}
    folders = {_relative(folder, root) for dataset in splits.values() for folder in _folders(dataset)}
    listed = {
        name: each
        for name, each in files.items()
        if name.rpartition("/")[0] in folders
        or any(f"{folder}/".startswith(f"{name.split('/')[0]}/") for folder in folders)
    }
    return VerifyReport(reports, problems, duplicates, compare_manifest(root, listed, hashes, faulty))


def ensure_verified(splits: Mapping[str, FolderDataset], root: Path) -> None:
    """Verify the data set unless these very files (by size and time) were found good before.

    A leak between the test split and the others is a warning here, as trials on given data must stay possible; so is
    an image that appears twice.

    Raises:
        DataError, LabelError: the one bad sample's own error, or one that names the first of several; or files that
            differ from the manifest.
    """
    report = verified(splits, root)
    refuse(report, root)
    within = [each for each in report.duplicates if not each.leak]
    for found, what in ((report.leaks, "of the test split are in another split too"), (within, "appear twice")):
        if found:
            _log.warning("%s: %d image(s) %s: %s", root, len(found), what, listing([str(each) for each in found]))


def verified(splits: Mapping[str, FolderDataset], root: Path, *, fresh: bool = False) -> VerifyReport:
    """The report of `verify_splits`, remembered where the data set is usable and no file has changed since.

    Args:
        fresh: do not trust what is remembered.
    """
    verdicts = Verdicts(root)
    state = _state(verdicts, splits)
    remembered = None if fresh else verdicts.read(state)
    if remembered is not None:
        return _report(remembered, splits)
    report = verify_splits(splits, root, progress=True)
    # Only what is good is remembered: a mended permission changes neither size nor time of a file.
    if report.usable and _state(verdicts, splits) == state:
        verdicts.write(state, _plain(report))
    return report


def refuse(report: VerifyReport, root: Path) -> None:
    """Raise for what `report` finds unusable.

    Raises:
        SlimeBenchError: see `ensure_verified`.
    """
    if len(report.problems) == 1:
        raise report.problems[0]
    if report.problems:
        good = sum(split.images for split in report.splits.values())
        raise DataError(
            f"{len(report.problems)} of {good + len(report.problems)} samples are unusable", path=root,
            found="; ".join(f"{each.path}: {each.summary} ({each.found})" for each in report.problems[:_SHOWN]),
            expected="images and label maps that decode, agree in size and hold only known classes",
            remedy=f"mend or remove these files; the first: {report.problems[0].remedy}",
        )  # fmt: skip
    if report.differences:
        raise DataError(
            "the data set differs from its manifest", path=root, found="; ".join(report.differences),
            expected=f"the files of {MANIFEST}", remedy=f"delete {root} and prepare the data again",
        )  # fmt: skip


def compare_manifest(
    root: Path, files: Mapping[str, str], hashes: Mapping[str, str], skip: frozenset[str] | set[str] = frozenset()
) -> list[str]:
    """How the files below `root` differ from those that the manifest lists, in words; [] when they do not.

    Args:
        files: the manifest's sha256 by relative path.
        hashes: those of the files that were decoded.
        skip: files that were found faulty.
    """
    present: set[str] = set()
    for folder in {name.rpartition("/")[0] for name in files}:
        if (root / folder).is_dir():
            with os.scandir(root / folder) as entries:
                present |= {f"{folder}/{each.name}".lstrip("/") for each in entries if not each.name.startswith(".")}
    kinds = {
        "missing": sorted(files.keys() - present - skip),
        "changed": sorted(name for name in files.keys() & hashes.keys() if hashes[name] != files[name]),
        "not listed": sorted(present - files.keys() - {MANIFEST} - skip),
    }
    return [f"{kind}: {listing(names)}" for kind, names in kinds.items() if names]


def progress_bar(title: str, total: int, done: int = 0, *, hidden: bool = False) -> tqdm[Any]:
    """How many of `total` images are done, on stderr: redrawn on a terminal, every ten seconds in a file.

    Args:
        done: how many of them were ready before; they do not count for the speed.
    """
    every, delay = (0.25, 1.0) if sys.stderr.isatty() else (10.0, 10.0)
    return tqdm(
        total=total, initial=done, desc=title, unit=" images", mininterval=every, delay=delay, disable=hidden,
        dynamic_ncols=True,
    )  # fmt: skip


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- what one sample holds


class _Look(NamedTuple):
    """What one sample holds: `counts` int64 [K], `hashes` of those of its files that the manifest lists."""

    counts: np.ndarray
    ignored: int
    size: str
    print: Fingerprint
    hashes: dict[str, str]


def _looks(
    pool: ThreadPoolExecutor, dataset: FolderDataset, root: Path, files: Mapping[str, str]
) -> Iterator[_Look | SlimeBenchError]:
    """What every sample holds, in their order, or its error."""

    def look(index: int) -> _Look | SlimeBenchError:
        pair = dataset.pairs[index]
        try:
            sample = dataset[index]
        except SlimeBenchError as error:
            return error
        height, width = sample.label.shape
        both = ((_relative(pair.image, root), sample.image), (_relative(pair.label, root), sample.label))
        hashes = {name: pixels_sha256(pixels.astype(np.uint8)) for name, pixels in both if name in files}
        counts, ignored = class_pixels(sample.label, len(dataset.classes)), int((sample.label == IGNORE).sum())
        return _Look(counts, ignored, f"{width}x{height}", fingerprint(sample.image), hashes)

    for start in range(0, len(dataset), _BATCH):
        yield from pool.map(look, range(start, min(start + _BATCH, len(dataset))))


def _relative(path: Path, root: Path) -> str:
    """`path` below `root`, with forward slashes, as a manifest names it; whole where it lies elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _folders(dataset: FolderDataset) -> set[Path]:
    return {path.parent for pair in dataset.pairs for path in (pair.image, pair.label)}


# --- what is remembered


class Verdicts:
    """The verdicts on the data set in `root`: in `<root>/.verified.json`, or, where that cannot be written, in the
    user's cache folder ($XDG_CACHE_HOME or ~/.cache, slime-bench/verified/)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:32]
        user = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
        self._files = (root / CACHE, user / "slime-bench" / "verified" / f"{name}.json")

    def state(self, folders: Iterable[Path], *meaning: Any) -> str:
        """The state of all files in the folders of a split; 60,000 take a fraction of a second.

        Args:
            meaning: what else decides what the files mean, such as the classes (JSON).
        """
        found = hashlib.sha256(json.dumps([VERSION, *meaning]).encode())
        found.update(_stamp(self.root / MANIFEST))
        for each in sorted(folders):
            for line in _stamps(each):
                found.update(line)
        return found.hexdigest()

    def read(self, state: State) -> dict[str, Any] | None:
        """What was remembered of these splits in this very state, alone or among others; or None."""
        for path in self._files:
            for verdict in _read(path):
                if state.items() <= verdict["state"].items():
                    return dict(verdict["report"])
        return None

    def write(self, state: State, report: Mapping[str, Any]) -> None:
        """Remember `report`; where no folder can be written the data set is verified again next time."""
        for path in self._files:
            others = [each for each in _read(path) if not each["state"].items() <= state.items()]
            verdicts = [*others[1 - _KEPT :], {"state": state, "report": dict(report)}]
            try:
                write_atomic(path, json.dumps({"version": VERSION, "verdicts": verdicts}).encode())
                return
            except StorageError as error:
                _log.debug("cannot remember the verdict in %s: %s", path, error.found)


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return list(content["verdicts"]) if content["version"] == VERSION else []
    except (OSError, ValueError, RecursionError, TypeError, KeyError):  # none yet, or of another version
        return []


def _stamps(folder: Path) -> list[bytes]:
    found = [os.fsencode(folder)]
    try:
        with os.scandir(folder) as entries:
            for each in entries:
                if not each.name.startswith("."):
                    found.append(b"%s\t%s\n" % (os.fsencode(each.name), _stamp(each)))
    except OSError as error:  # cannot be verified either, which then says why
        found.append(str(error).encode("utf-8", "replace"))
    return sorted(found)


def _stamp(file: Path | os.DirEntry[str]) -> bytes:
    try:
        stat = file.stat()
    except OSError:
        return b"-"
    return b"%d\t%d" % (stat.st_size, stat.st_mtime_ns)


def _state(verdicts: Verdicts, splits: Mapping[str, FolderDataset]) -> State:
    states = {}
    for name, dataset in splits.items():
        folders = sorted(_folders(dataset))
        said = [[str(each) for each in folders], list(dataset.classes), dataset.colours, *dataset.meaning]
        states[name] = verdicts.state(folders, *said)
    return states


def _plain(report: VerifyReport) -> dict[str, object]:
    return {
        "splits": {name: vars(split) for name, split in report.splits.items()},
        "duplicates": [vars(each) for each in report.duplicates],
    }


def _report(values: Mapping[str, Any], names: Iterable[str]) -> VerifyReport:
    """The part of a remembered report that is about the splits called `names`."""
    splits = {name: DatasetReport(**values["splits"][name]) for name in names}
    duplicates = [Duplicate(**each) for each in values["duplicates"]]
    inside = [
        each for each in duplicates if {each.first.split("/", 1)[0], each.second.split("/", 1)[0]} <= splits.keys()
    ]
    return VerifyReport(splits, duplicates=inside, remembered=True)

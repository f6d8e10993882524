"""Verification of a data set: every file is decoded once, counted, compared with the others and with the manifest."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slime_bench.data.counts import DatasetReport
from slime_bench.data.folder import FolderDataset, listing
from slime_bench.data.look import Tally, looks, relative, threads
from slime_bench.data.manifest import MANIFEST, read_manifest
from slime_bench.data.phash import Fingerprints
from slime_bench.data.progress import Progress
from slime_bench.data.verified import State, Verdicts
from slime_bench.errors import DataError, SlimeBenchError

TEST = "test"
_SHOWN = 5

_log = logging.getLogger(__name__)


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
        progress: show a line on stderr.
    """
    files: dict[str, str] = {}
    problems: list[SlimeBenchError] = []
    if (root / MANIFEST).is_file():
        try:
            files = read_manifest(root)["files"]
        except DataError as error:
            problems.append(error)
    total = sum(len(dataset) for dataset in splits.values())
    line = Progress(f"verify {root.name}", total, final=False) if progress else None
    reports: dict[str, DatasetReport] = {}
    names: list[tuple[str, str]] = []
    seen = Fingerprints(total)
    hashes: dict[str, str] = {}
    with threads() as pool:
        for name, dataset in splits.items():
            tally = Tally(dataset.classes)
            for found in looks(pool, dataset, root, files):
                tally.add(found)
                hashes |= found.hashes
                if found.error is not None:
                    problems.append(found.error)
                if found.print is not None:
                    names.append((name, f"{name}/{found.id}"))
                    seen.add(found.print)
                if line is not None:
                    line.advance()
            reports[name] = tally.report()
    if line is not None:
        line.close()
    duplicates = [
        Duplicate(names[i][1], names[j][1], (names[i][0] == TEST) != (names[j][0] == TEST))
        for i, j in seen.duplicates()
    ]
    faulty = {relative(Path(str(each.path)), root) for each in problems}
    folders = {relative(folder, root) for dataset in splits.values() for folder in _folders(dataset)}
    listed = {
        name: each
        for name, each in files.items()
        if name.rpartition("/")[0] in folders or any(f"{folder}/".startswith(f"{name.split('/')[0]}/") for folder in folders)
    }
    differences = compare_manifest(root, listed, hashes, faulty)
    return VerifyReport(reports, problems, duplicates, differences)


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
    if report.leaks:
        _log.warning(
            "%s: %d image(s) of the test split are in another split too: %s",
            root, len(report.leaks), listing([str(each) for each in report.leaks]),
        )  # fmt: skip
    within = [each for each in report.duplicates if not each.leak]
    if within:
        _log.warning("%s: %d image(s) appear twice: %s", root, len(within), listing([str(each) for each in within]))


def verified(splits: Mapping[str, FolderDataset], root: Path, *, fresh: bool = False) -> VerifyReport:
    """The report of `verify_splits`, remembered where the data set is usable and no file has changed since.

    Args:
        fresh: do not trust what is remembered.
    """
    verdicts = Verdicts(root)
    state = _state(verdicts, splits)
    known = None if fresh else verdicts.read(state)
    if known is not None:
        return _report(known, splits)
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
            f"{len(report.problems)} of {good + len(report.problems)} samples are unusable",
            path=root,
            found="; ".join(f"{each.path}: {each.summary} ({each.found})" for each in report.problems[:_SHOWN]),
            expected="images and label maps that decode, agree in size and hold only known classes",
            remedy=f"mend or remove these files; the first: {report.problems[0].remedy}",
        )
    if report.differences:
        raise DataError(
            "the data set differs from its manifest",
            path=root,
            found="; ".join(report.differences),
            expected=f"the files of {MANIFEST}",
            remedy=f"delete {root} and prepare the data again",
        )


def compare_manifest(
    root: Path, files: Mapping[str, str], hashes: Mapping[str, str], skip: frozenset[str] | set[str] = frozenset()
) -> list[str]:
    """How the files below `root` differ from those that the manifest lists, in words; [] when they do not.

    Args:
        files: the manifest's sha256 by relative path.
        hashes: those of the files that were decoded.
        skip: files that are known to be faulty already.
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


def _folders(dataset: FolderDataset) -> set[Path]:
    return {path.parent for pair in dataset.pairs for path in (pair.image, pair.label)}


def _state(verdicts: Verdicts, splits: Mapping[str, FolderDataset]) -> State:
    states = {}
    for name, dataset in splits.items():
        colours = {key: list(each) for key, each in dict(getattr(dataset, "colours", None) or {}).items()}
        folders = sorted(_folders(dataset))
        more = getattr(dataset, "meaning", [])  # e.g. which files of a common folder are the split
        states[name] = verdicts.state(folders, [str(each) for each in folders], list(dataset.classes), colours, *more)
    return states


def _plain(report: VerifyReport) -> dict[str, object]:
    return {
        "splits": {name: vars(split) for name, split in report.splits.items()},
        "duplicates": [vars(each) for each in report.duplicates],
    }


def _report(values: Mapping[str, Any], names: Iterable[str]) -> VerifyReport:
    """The part of a remembered report that is about the splits called `names`."""
    splits = {name: DatasetReport(**values["splits"][name]) for name in names}
    known = [Duplicate(**each) for each in values["duplicates"]]
    inside = [each for each in known if {_split(each.first), _split(each.second)} <= splits.keys()]
    return VerifyReport(splits, duplicates=inside, remembered=True)


def _split(sample: str) -> str:
    return sample.split("/", 1)[0]

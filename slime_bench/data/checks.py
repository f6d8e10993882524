"""Verification before anything expensive starts: decode every file once, count what is there."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slime_bench.data.counts import DatasetReport, class_pixels
from slime_bench.data.folder import LABELS, FolderDataset, Sample, listing, read_image, read_label
from slime_bench.data.manifest import MANIFEST, pixels_sha256, read_manifest
from slime_bench.data.verify import VerifyReport, compare_manifest, refuse, verify_splits
from slime_bench.errors import DataError

__all__ = [
    "MANIFEST", "DatasetReport", "check_manifest", "check_support", "class_pixels", "file_sha256", "folder_sha256",
    "read_manifest", "verify_dataset",
]  # fmt: skip

_log = logging.getLogger(__name__)


def verify_dataset(dataset: FolderDataset) -> DatasetReport:
    """Decode every sample of `dataset` and count; see `slime_bench.data.verify.verify_splits`.

    Raises:
        SlimeBenchError: the error of the one bad file.
        DataError: several bad files; the message names the first ones and says how many there are.
    """
    report = verify_splits({"": dataset}, dataset.folder)
    refuse(report, dataset.folder)
    return report.splits[""]


def check_support(samples: Sequence[Sample], classes: Sequence[str]) -> list[str]:
    """Refuse a support set that shows nothing to learn, and say which classes it does not show.

    Args:
        samples: the support set.
        classes: the K class names.

    Returns:
        the classes without a single pixel, in label order; a warning is logged when there are any.

    Raises:
        DataError: no support image has a foreground pixel.
    """
    total = torch.zeros(len(classes), dtype=torch.int64)
    for sample in samples:
        total += class_pixels(sample.label, len(classes))
    ids = listing([sample.id for sample in samples]) or "no image"
    if int(total[1:].sum()) == 0:
        raise DataError(
            "the support set has no foreground",
            path="data.support_ids",
            found=f"only background or ignored pixels in {ids}",
            expected=f"pixels of at least one of {', '.join(classes[1:])}",
            remedy="choose other support images, another seed, or mend the label maps",
        )
    missing = [name for name, count in zip(classes, total.tolist(), strict=True) if count == 0]
    if missing:
        _log.warning("the support set (%s) shows no %s: nothing can be learnt about it", ids, ", ".join(missing))
    return missing


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            "cannot read a file of the data set", path=path, found=str(error), remedy="prepare the data again"
        ) from error


def folder_sha256(root: Path, files: Iterable[Path]) -> str:
    """A hash of names, sizes and contents of `files` (below `root`), independent of their order and of `root`."""
    lines = sorted(f"{file.relative_to(root).as_posix()}\t{file.stat().st_size}\t{file_sha256(file)}" for file in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check_manifest(root: Path, manifest: dict[str, Any]) -> None:
    """Compare every listed picture with its hash, so that numbers never come from data that were changed by hand.

    Raises:
        DataError: names the first files that are missing or differ, or that are there and not listed.
    """
    files: dict[str, str] = manifest["files"]
    hashes = {name: _pixels_sha256(root / name) for name in files if (root / name).is_file()}
    refuse(VerifyReport({}, differences=compare_manifest(root, files, hashes)), root)


def _pixels_sha256(path: Path) -> str:
    try:
        if path.parent.name == LABELS:
            array = read_label(path).numpy().astype(np.uint8)
        else:
            array = read_image(path).permute(1, 2, 0).contiguous().numpy()
    except DataError:
        return ""  # unreadable is changed
    return pixels_sha256(array)

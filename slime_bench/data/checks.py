"""Verification before anything expensive starts: decode every file once, count what is there."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slime_bench.data.folder import LABELS, FolderDataset, Sample, listing, read_image, read_label
from slime_bench.data.labels import IGNORE
from slime_bench.errors import DataError, SlimeBenchError

MANIFEST = "manifest.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetReport:
    """What a verified folder holds; both counts are per class, in label order."""

    images: int
    images_with_class: dict[str, int]
    pixels_of_class: dict[str, int]
    ignored_pixels: int
    sizes: dict[str, int]
    """Number of images of each "WIDTHxHEIGHT"."""


def class_pixels(label: Tensor, num_classes: int) -> Tensor:
    """Pixels of each class: int64 [K], from a label map [H,W] whose 255 count for no class."""
    return torch.bincount(label[label != IGNORE].flatten(), minlength=num_classes)


def verify_dataset(dataset: FolderDataset) -> DatasetReport:
    """Decode every sample of `dataset` and count.

    Raises:
        SlimeBenchError: the error of the one bad file.
        DataError: several bad files; the message names the first ones and says how many there are.
    """
    total = torch.zeros(len(dataset.classes), dtype=torch.int64)
    present = torch.zeros_like(total)
    ignored = 0
    sizes: dict[str, int] = {}
    problems: list[SlimeBenchError] = []
    for index in range(len(dataset)):
        try:
            sample = dataset[index]
        except SlimeBenchError as error:
            problems.append(error)
            continue
        pixels = class_pixels(sample.label, len(dataset.classes))
        total += pixels
        present += pixels > 0
        ignored += int((sample.label == IGNORE).sum())
        size = f"{sample.image.shape[2]}x{sample.image.shape[1]}"
        sizes[size] = sizes.get(size, 0) + 1
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise DataError(
            f"{len(problems)} of {len(dataset)} samples are unusable",
            path=dataset.folder,
            found="; ".join(f"{error.path}: {error.summary} ({error.found})" for error in problems[:5]),
            expected="images and label maps that decode, agree in size and hold only known classes",
            remedy=f"mend or remove these files; the first: {problems[0].remedy}",
        )
    return DatasetReport(
        images=len(dataset),
        images_with_class=dict(zip(dataset.classes, present.tolist(), strict=True)),
        pixels_of_class=dict(zip(dataset.classes, total.tolist(), strict=True)),
        ignored_pixels=ignored,
        sizes=dict(sorted(sizes.items())),
    )


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


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a prepared data set: {"version", "subject", "classes", "files": {relative path: sha256}}.

    Raises:
        DataError: missing, not JSON, or without these keys.
    """
    path = root / MANIFEST
    remedy = f"delete {root} and prepare the data again"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError("cannot read the data set's manifest", path=path, found=str(error), remedy=remedy) from error
    keys = ("version", "subject", "classes", "files")
    missing = [key for key in keys if key not in manifest] if isinstance(manifest, dict) else list(keys)
    if missing:
        raise DataError(
            "the data set's manifest is not complete", path=path, found=f"no {', '.join(missing)}", remedy=remedy
        )
    return dict(manifest)


def check_manifest(root: Path, manifest: dict[str, Any]) -> None:
    """Compare every listed picture with its hash, so that numbers never come from data that were changed by hand.

    A hash is the sha256 of the decoded pixels, [H,W,3] or [H,W] uint8 in C order: PNG files of the same picture differ
    between versions of zlib, and the manifest must not.

    Raises:
        DataError: names the first files that are missing or differ, or that are there and not listed.
    """
    files: dict[str, str] = manifest["files"]
    missing = [name for name in sorted(files) if not (root / name).is_file()]
    changed = [name for name in sorted(files) if name not in missing and _pixels_sha256(root / name) != files[name]]
    folders = sorted({str(Path(name).parent) for name in files})
    extra = [
        name
        for folder in folders
        if (root / folder).is_dir()
        for name in (f"{folder}/{file.name}" for file in sorted((root / folder).iterdir()) if file.name[0] != ".")
        if name not in files
    ]
    kinds = (("missing", missing), ("changed", changed), ("not listed", extra))
    if missing or changed or extra:
        raise DataError(
            "the data set differs from its manifest",
            path=root,
            found="; ".join(f"{kind}: {listing(names)}" for kind, names in kinds if names),
            expected=f"the {len(files)} files of {MANIFEST}",
            remedy=f"delete {root}; it is made again from scratch",
        )


def _pixels_sha256(path: Path) -> str | None:
    try:
        if path.parent.name == LABELS:
            array = read_label(path).numpy().astype(np.uint8)
        else:
            array = read_image(path).permute(1, 2, 0).contiguous().numpy()
    except DataError:
        return None  # unreadable is changed
    return hashlib.sha256(array.tobytes()).hexdigest()

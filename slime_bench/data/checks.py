"""What a trial asks of its data beyond that they can be read: a support set that shows something, and a hash."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from slime_bench.data.counts import class_pixels
from slime_bench.data.folder import Sample
from slime_bench.data.layouts import listing
from slime_bench.errors import DataError

_log = logging.getLogger(__name__)


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

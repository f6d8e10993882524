"""One job from source to files, in whichever process it runs; only facts come back."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.build_files import plain, save_png
from data_prep.build_types import IGNORE, SPLITS, Dropped, Job, Made, Work
from data_prep.commands import storage_error
from slime_bench.data.manifest import pixels_sha256
from slime_bench.errors import DataError, LabelError, SlimeBenchError, StorageError

_MAX_ID_BYTES = 200  # a file name has 255 bytes at most, and ours gain a suffix


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a record, or the error of a faulty source."""

    key: str
    record: dict[str, Any] | None = None
    error: SlimeBenchError | None = None


def make(job: Job, work: Work, folder: Path, num_classes: int) -> Outcome:
    """Do the work of one job and write its samples below `folder`.

    Raises:
        StorageError: a sample cannot be written.
        TypeError, ValueError: the work returned something else than `Made` and `Dropped`: an error of the program.
    """
    try:
        results = [_checked(each, num_classes, job.key) for each in work(job)]
    except StorageError:  # no fault of the source
        raise
    except SlimeBenchError as error:
        return Outcome(job.key, error=error)
    except OSError as error:  # work only reads
        return Outcome(job.key, error=_unreadable(error))
    except MemoryError:
        return Outcome(job.key, error=_too_large(job.key))
    except Exception as error:
        error.add_note(f"while preparing {job.key}")
        raise
    samples, files = [], {}
    for made in (each for each in results if isinstance(each, Made)):
        for kind, pixels in (("images", made.image), ("labels", made.label)):
            name = f"{made.split}/{kind}/{made.id}.png"
            files[name] = (pixels_sha256(pixels), save_png(folder / name, pixels))
        counts = np.bincount(made.label.ravel(), minlength=num_classes)[:num_classes]
        facts = plain({**made.facts, "size": made.label.shape, "pixels": counts})
        samples.append({"split": made.split, "id": made.id, "facts": facts})
    dropped = [[each.split, each.what, each.reason] for each in results if isinstance(each, Dropped)]
    return Outcome(job.key, {"key": job.key, "samples": samples, "files": files, "dropped": dropped})


def spelling(key: str) -> str:
    """Ids of one spelling would be one file where the file system ignores case or composes accents (macOS)."""
    return unicodedata.normalize("NFC", key).casefold()


def is_file_stem(key: str) -> bool:
    """Whether `key` can be the stem of a file, and a line of a split list, everywhere."""
    try:
        size = len(key.encode("utf-8"))
    except UnicodeEncodeError:  # bytes of a file name that are no text
        return False
    plain_start = key == key.strip() and not key.startswith(".")
    return 0 < size <= _MAX_ID_BYTES and plain_start and not any(c in '/\\"#' or not c.isprintable() for c in key)


def _checked(result: Made | Dropped, num_classes: int, key: str) -> Made | Dropped:
    """The result with its id in composed form (NFC), which is how the bench reads file names."""
    if not isinstance(result, Made | Dropped):
        raise TypeError(f"work returns Made and Dropped, found {type(result).__name__}")
    if result.split not in SPLITS:
        raise ValueError(f"unknown split {result.split!r}, one of {', '.join(SPLITS)} was expected")
    if isinstance(result, Dropped):
        return result
    image, label = result.image, result.label
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise TypeError(f"an image is uint8 [H,W,3], found {image.dtype} {list(image.shape)}")
    if label.dtype != np.uint8 or label.ndim != 2:
        raise TypeError(f"a label map is uint8 [H,W], found {label.dtype} {list(label.shape)}")
    if not is_file_stem(result.id):
        raise DataError(
            "the name of a sample cannot be a file name",
            path=key,
            found=repr(result.id),
            expected=f'1 to {_MAX_ID_BYTES} bytes of printable characters without / \\ " #, and no . at the start',
            remedy="rename the source file",
        )
    if image.shape[:2] != label.shape or label.size == 0:
        raise LabelError(
            "image and label map differ in size",
            path=key,
            found=f"{label.shape[1]}x{label.shape[0]}",
            expected=f"{image.shape[1]}x{image.shape[0]} (width x height), not empty",
            remedy="restore the source files of this sample",
        )
    strangers = np.unique(label[(label >= num_classes) & (label != IGNORE)])
    if strangers.size:
        raise ValueError(f"labels {strangers.tolist()} of {result.id} lie outside 0..{num_classes - 1} and 255")
    return replace(result, id=unicodedata.normalize("NFC", result.id))


def _unreadable(error: OSError) -> DataError:
    known = storage_error(error)
    mended = DataError("cannot read a source file", path=known.path, found=known.found, remedy=known.remedy)
    mended.__cause__ = error
    return mended


def _too_large(key: str) -> DataError:
    return DataError(
        "a source does not fit into memory",
        path=key,
        found="no memory left while it was prepared",
        remedy="take fewer --workers, or check the size of this picture",
    )

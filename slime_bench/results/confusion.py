"""`confusion.json` in a trial's folder: the pixels of all test images by label and prediction.

`{"classes": [K names], "pixels": [[K x K counts]]}`, rows = label, columns = prediction, at the labels' size; ignored
pixels are left out. With I and U of `per_image.parquet` summed over the images: the diagonal is I, and row + column -
diagonal is U. No other file needs this one: trials of before it was kept lack it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from slime_bench.errors import ResultError
from slime_bench.storage import write_atomic

CONFUSION_FILE: Final = "confusion.json"


def write_confusion(path: str | Path, classes: Sequence[str], pixels: NDArray[Any]) -> None:
    """Write the counts [K,K] of K classes, one row on each line.

    Raises:
        ResultError: they do not fit together. StorageError: see `write_atomic`.
    """
    rows = pixels.tolist()
    _check({"classes": list(classes), "pixels": rows}, path)
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    content = f'{{\n "classes": {json.dumps(list(classes))},\n "pixels": [\n{lines}\n ]\n}}\n'
    write_atomic(path, content.encode())


def read_confusion(path: str | Path) -> tuple[list[str], NDArray[np.int64]]:
    """Class names (K) and counts int64 [K,K], rows = label, columns = prediction.

    Raises:
        ResultError: unreadable, or not as `write_confusion` writes it.
    """
    try:
        found = json.loads(Path(path).read_bytes().decode())
    except (OSError, ValueError, RecursionError) as error:
        raise _wrong(path, str(error)) from error
    _check(found, path)
    classes = found["classes"]
    return classes, np.array(found["pixels"], dtype=np.int64)


def _check(found: Any, path: str | Path) -> None:
    if not isinstance(found, dict) or set(found) != {"classes", "pixels"}:
        raise _wrong(path, "other fields" if isinstance(found, dict) else f"a {type(found).__name__}")
    classes, rows = found["classes"], found["pixels"]
    if not _texts(classes):
        raise _wrong(path, "classes that are not distinct names")
    sizes = [len(row) if isinstance(row, list) else None for row in rows] if isinstance(rows, list) else None
    if sizes != [len(classes)] * len(classes):
        raise _wrong(path, f"pixels that are not {len(classes)} rows of {len(classes)} counts")
    if not all(type(count) is int and 0 <= count < 2**63 for row in rows for count in row):
        raise _wrong(path, "pixels that are not whole numbers of 0 or more")


def _texts(names: Any) -> bool:
    return (
        isinstance(names, list)
        and len(names) > 0
        and all(isinstance(name, str) for name in names)
        and len(set(names)) == len(names)
    )


def _wrong(path: str | Path, found: str) -> ResultError:
    return ResultError(
        "The confusion matrix of the trial cannot be used.",
        path=path,
        found=found,
        expected="classes (K distinct names) and pixels (K rows of K counts)",
        remedy="Run the trial again with force=true, or remove the file: nothing else needs it.",
    )

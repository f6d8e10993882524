"""The manifest of a prepared data set, written last, so that its presence says that the data set is whole; and hashes.

Nothing here imports torch: the processes that prepare data start in a fraction of a second.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np

from slime_bench.errors import DataError

MANIFEST: Final = "manifest.json"

_KEYS = ("version", "subject", "classes", "files")


def pixels_sha256(pixels: np.ndarray) -> str:
    """The sha256 of decoded pixels, uint8 [H,W,3] or [H,W] in C order, in hex.

    PNG files of the same picture differ between versions of zlib, and a manifest must not.
    """
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a prepared data set: {"version", "subject", "classes", "files": {relative path: sha256}}.

    Raises:
        DataError: missing, not JSON, or without these keys.
    """
    path = root / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in _KEYS if key not in manifest]
    except (OSError, ValueError, RecursionError, TypeError) as error:
        manifest, missing = {}, [str(error)]
    if missing:
        raise DataError(
            "cannot read the data set's manifest", path=path, found=f"missing: {', '.join(missing)}",
            expected=f"JSON with {', '.join(_KEYS)}", remedy=f"delete {root} and prepare the data again",
        )  # fmt: skip
    return dict(manifest)


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex; DataError where they cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            "cannot read a file of the data set", path=path, found=str(error), remedy="prepare the data again"
        ) from error


def files_sha256(files: Collection[Path]) -> str:
    """A hash of names, sizes and contents of `files`, independent of their order and of where their folder lies."""
    above = os.path.commonpath([file.parent for file in files])
    names = {file: file.relative_to(above).as_posix() for file in files}
    return text_sha256(sorted(f"{name}\t{each.stat().st_size}\t{file_sha256(each)}" for each, name in names.items()))


Stamp = tuple[int, int] | None
"""Size and time of change (ns) of a file; None where there is none."""


def stamp(file: Path | os.DirEntry[str]) -> Stamp:
    """What tells whether a file has come, gone or changed since."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def text_sha256(lines: Iterable[str]) -> str:
    """The sha256 of lines of text, in hex."""
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()

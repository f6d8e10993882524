"""The manifest of a prepared data set: written last, so that its presence says that the data set is whole.

Nothing here imports torch: the processes that prepare data start in a fraction of a second.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
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
    remedy = f"delete {root} and prepare the data again"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError("cannot read the data set's manifest", path=path, found=str(error), remedy=remedy) from error
    missing = [key for key in _KEYS if key not in manifest] if isinstance(manifest, dict) else list(_KEYS)
    if missing:
        raise DataError(
            "the data set's manifest is not complete", path=path, found=f"no {', '.join(missing)}", remedy=remedy
        )
    files = manifest["files"]
    if not isinstance(files, dict) or not all(isinstance(each, str) for each in files.values()):
        raise DataError(
            "the data set's manifest is not complete",
            path=path,
            found="`files` is no map from relative paths to sha256",
            remedy=remedy,
        )
    return dict(manifest)


def check_subject(manifest: Mapping[str, Any], subject: str, root: Path, remedy: str) -> None:
    """Refuse the manifest of `root` where it is of another subject.

    Raises:
        DataError: with the `remedy` of whoever asks.
    """
    if manifest["subject"] != subject:
        raise DataError(
            "the folder holds another subject", path=root, found=manifest["subject"], expected=subject, remedy=remedy
        )

"""SHA-256 of files. That of a file of some gigabytes is remembered, because every trial asks for it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

from slime_bench.errors import StorageError
from slime_bench.storage import write_atomic

REMEMBERED: Final = 64 * 2**20
"""Files of at least so many bytes are remembered by place, size and time of change. A smaller one is read each time: it
takes a few milliseconds, and a change that keeps size and time is found as well."""


def digest(files: Mapping[str, Path]) -> str:
    """Hexadecimal SHA-256 over names and contents of files.

    Args:
        files: by the names that count, in whatever order.

    Raises:
        OSError: a file cannot be read.
    """
    found = hashlib.sha256()
    for name in sorted(files):
        found.update(name.encode())
        found.update(bytes.fromhex(sha256(files[name])))
    return found.hexdigest()


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content; a large file is read once (see `cache_file`), until it changes.

    Raises:
        OSError: the file cannot be read.
    """
    real = path.resolve()
    status = real.stat()
    if status.st_size < REMEMBERED:
        return _computed(real)
    return _remembered(real, status.st_size, status.st_mtime_ns)


def cache_file() -> Path:
    """Where hashes are kept between processes: `$XDG_CACHE_HOME/slime-bench/sha256.json`, or below `~/.cache`. One that
    cannot be read or written is as good as none."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slime-bench" / "sha256.json"


@cache
def _remembered(path: Path, size: int, changed: int) -> str:
    entries = {}  # path -> [size, time of change in nanoseconds, hash]
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # the last: a user without a home
        entries = json.loads(cache_file().read_text(encoding="utf-8"))
    known = entries.get(str(path), ())
    if known[:2] == [size, changed]:
        return str(known[2])
    found = _computed(path)
    with contextlib.suppress(StorageError, RuntimeError):
        write_atomic(cache_file(), json.dumps({**entries, str(path): [size, changed, found]}).encode())
    return found


def _computed(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

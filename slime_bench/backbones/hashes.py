"""SHA-256 of files. That of a file of some gigabytes is remembered, because every trial asks for it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

REMEMBERED: Final = 64 * 2**20
"""Files of at least so many bytes are remembered by place, size and time of change. A smaller one is read each time: it
takes a few milliseconds, and a change that keeps size and time is found as well."""

_KEPT: Final = 256  # entries on disk
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_known: dict[tuple[str, int, int], str] = {}


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content.

    A large file is read once: its hash is kept in this process and in `cache_file`, under its resolved path, its size
    and its time of change in nanoseconds. A cache that cannot be read or written is as good as none.

    Raises:
        OSError: the file cannot be read.
    """
    real = path.resolve()
    status = real.stat()
    if status.st_size < REMEMBERED:
        return _computed(real)
    key = (str(real), status.st_size, status.st_mtime_ns)
    if key not in _known:
        stored = _read().get(key)
        _known[key] = stored or _computed(real)
        if stored is None:
            _add(key, _known[key])
    return _known[key]


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


def cache_file() -> Path:
    """Where hashes are kept between processes: `$XDG_CACHE_HOME/slime-bench/sha256.json`, or below `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slime-bench" / "sha256.json"


def _computed(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read() -> dict[tuple[str, int, int], str]:
    """The entries of the cache file; whatever is not an entry is left out."""
    try:
        rows = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: a user without a home
        return {}
    entries = {}
    for row in rows if isinstance(rows, list) else ():
        match row:
            case [str(name), int(size), int(changed), str(digest)] if _SHA256.fullmatch(digest):
                entries[name, size, changed] = digest
    return entries


def _add(key: tuple[str, int, int], digest: str) -> None:
    entries = {other: value for other, value in _read().items() if other[0] != key[0]}  # one entry per place
    rows = [[*other, value] for other, value in [*entries.items(), (key, digest)]][-_KEPT:]
    temporary = None
    try:
        target = cache_file()
        target.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed: another process reads the old list or the new one, never half of one.
        with tempfile.NamedTemporaryFile("w", dir=target.parent, delete=False, encoding="utf-8") as file:
            temporary = Path(file.name)
            json.dump(rows, file)
        temporary.replace(target)
    except (OSError, RuntimeError):
        if temporary is not None:
            temporary.unlink(missing_ok=True)

"""Files that are whole or absent, and folders that one process at a time may build."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from slime_bench.errors import StorageError
from slime_bench.lock import Holder, held

_STORAGE_REMEDIES: Final = {
    errno.ENOSPC: "Free space on the disk, or choose another `output_root`; finished trials stay valid.",
    errno.EDQUOT: "Free space within your quota, or choose another `output_root`; finished trials stay valid.",
    errno.EACCES: "Make the folder writable, or choose another `output_root`.",
    errno.EPERM: "Make the folder writable, or choose another `output_root`.",
    errno.EROFS: "The file system is read-only: choose another `output_root`.",
    errno.ENOTDIR: "A file stands where a folder is needed: move it away, or choose another `output_root`.",
    errno.EEXIST: "A file stands where a folder is needed: move it away, or choose another `output_root`.",
}


def write_atomic(path: str | Path, content: bytes) -> None:
    """Write `content` to `path` so that readers see the old file or the whole new one, also after a power cut.

    Raises:
        StorageError: full disk, no permission and the like; the old file, if any, is untouched and no temporary file
            stays behind.
    """
    path = Path(path)
    # Same folder, because a rename is atomic only within one file system; hidden, so that no reader globs it.
    # Of the name no more than fits: systems take 255 bytes.
    named = os.fsencode(path.name)[:180].decode(errors="ignore")
    temporary = path.with_name(f".{named}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise StorageError(
                "The file could not be written.",
                path=path,
                found=error.strerror or str(error),
                remedy=_STORAGE_REMEDIES.get(error.errno or 0, "Check the folder, or choose another `output_root`."),
            ) from error
        raise
    _sync_folder(path.parent)


def remove_temporary(folder: Path) -> None:
    """Remove what killed processes have left of files that they were writing; nobody else may write there now."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold `folder` against other processes; one that has to wait says so on stderr. See `slime_bench.lock`."""

    def waits(holder: Holder | None) -> None:
        print(f"waiting for {holder or 'another process'}, which works on {folder} ...", file=sys.stderr, flush=True)

    with held(folder, waits):
        yield


def ordered(content: bytes) -> bytes:
    """The same safetensors file with its metadata in alphabetical order, which the library shuffles from call to call.

    The file: length of the header (8 bytes, little-endian), header (JSON, filled up with spaces), numbers.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable, where the system lets a folder be opened (not on Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""Files that are whole or absent, text files of others, and folders that one process at a time may build."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slime_bench.errors import SlimeBenchError, StorageError
from slime_bench.lock import Holder, held


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
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise StorageError.of(error, path) from error
        raise
    _sync_folder(path.parent)


def read_text(path: Path, error: type[SlimeBenchError]) -> str:
    """The text of a small file that somebody else wrote: UTF-8, with or without a byte order mark.

    Raises:
        SlimeBenchError: of the kind `error`: a file that cannot be read, or text in another encoding.
    """
    try:
        content = path.read_bytes()
    except OSError as reason:
        raise error(
            "the file cannot be read", path=path, found=reason.strerror, expected="a text file",
            remedy="correct the name, or mend the permissions",
        ) from reason  # fmt: skip
    try:
        if b"\0" in content:  # every second byte of English text in UTF-16; UTF-8 has none
            raise ValueError("UTF-16 or binary data")
        return content.decode("utf-8-sig")
    except ValueError as reason:
        found = "another encoding" if isinstance(reason, UnicodeDecodeError) else reason
        raise error(
            "the file is not UTF-8 text", path=path, found=found, expected="text in UTF-8",
            remedy="open it in an editor and save it as UTF-8 (in Windows' Notepad: Save as, Encoding: UTF-8)",
        ) from reason  # fmt: skip


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

"""The files of a data set that is being built: pictures, the journal of finished jobs, the manifest."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from data_prep.build_types import SPLITS
from data_prep.commands import storage_error

JOURNAL: Final = "journal.jsonl"
KINDS: Final = ("images", "labels")

# Measured on photographs of 512x512 (Pillow 13, zlib-ng): level 1 takes 17 ms and 380 kB, the usual 6 takes 75 ms and
# 350 kB.
_COMPRESSION: Final = 1


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever the system refuses while files are written becomes a StorageError with a remedy."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, error.filename or path) from error


def save_png(path: Path, pixels: np.ndarray) -> int:
    """Write uint8 [H,W,3] or [H,W] so that the file is whole or absent; returns its size in bytes.

    Raises:
        StorageError: full disk, no permission and the like.
    """
    # Hidden, in the same folder: what a killed process leaves behind is no picture, and is swept by `sweep`.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(temporary, "PNG", compress_level=_COMPRESSION)
            size = temporary.stat().st_size
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    return size


def sizes(root: Path) -> dict[str, int]:
    """Every file of the splits below `root`, as "support/images/<id>.png" -> bytes; hidden files too."""
    found: dict[str, int] = {}
    for split in SPLITS:
        for kind in KINDS:
            with suppress(FileNotFoundError), os.scandir(root / split / kind) as entries:
                found |= {f"{split}/{kind}/{each.name}": each.stat(follow_symlinks=False).st_size for each in entries}
    return found


def sweep(root: Path, wanted: Iterable[str]) -> None:
    """Remove the files of the splits that are not `wanted`: what killed processes and other runs left behind."""
    with writing(root):
        for name in sizes(root).keys() - set(wanted):
            remove(root / name)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; nothing when it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Journal:
    """The finished jobs of a building folder, one JSON line each, after a first line that names the recipe.

    A line is written when the files of its job are in place. A job counts as finished when its line is whole and all
    its files have the size that the line names: after a power cut a journalling file system may hold a file's name
    without its content, and then the size is wrong.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.path = folder / JOURNAL
        self._head = {"recipe": dict(identity)}
        self._file: Any = None

    def read(self, holds: Callable[[Mapping[str, Any]], bool]) -> dict[str, dict[str, Any]] | None:
        """Records by key, of those that still hold; None when there is no journal of this recipe."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(error, self.path) from error
        head, *rest = (_parsed(line) for line in lines)
        if head != self._head:
            return None
        records = {str(each["key"]): each for each in rest if isinstance(each, dict) and "key" in each}
        present = sizes(self.path.parent)
        return {
            key: each
            for key, each in records.items()
            if "undone" not in each and holds(each) and all(present.get(n) == s for n, (_, s) in each["files"].items())
        }

    def start(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Begin a journal with the records that hold; what else an earlier one said is gone."""
        with writing(self.path):
            temporary = self.path.with_suffix(".tmp")
            with temporary.open("wb") as file:
                file.writelines(_line(each) for each in (self._head, *records))
            temporary.replace(self.path)
            self._file = self.path.open("ab")

    def add(self, record: Mapping[str, Any]) -> None:
        with writing(self.path):
            self._file.write(_line(record))
            self._file.flush()

    def undo(self, key: str) -> None:
        """The job is not finished after all."""
        self.add({"key": key, "undone": True, "files": {}})

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # what could not be flushed was reported when it was written
                self._file.close()
            self._file = None


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """JSON with one line for each file and sample, in the order given: quick to write, read and compare by eye."""
    parts = []
    for key, value in manifest.items():
        if isinstance(value, dict) and key in ("files", "samples"):
            entries = ",\n".join(f"  {_json(name)}: {_json(each)}" for name, each in value.items())
            parts.append(f" {_json(key)}: {{\n{entries}\n }}")
        else:
            parts.append(f" {_json(key)}: {_json(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def plain(value: Any) -> Any:
    """`value` as JSON holds it: NumPy numbers and arrays, tuples and paths become what they stand for."""
    return json.loads(json.dumps(value, default=_default, allow_nan=False))


def _default(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"the facts of a sample are JSON, found {type(value).__name__}")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _line(value: Mapping[str, Any]) -> bytes:
    return f"{_json(value)}\n".encode()


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:  # cut off in the middle
        return None

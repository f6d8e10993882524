"""The splits of a data set whose files lie in common folders: lists of ids, samples, and the hash of it all."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from slime_bench.data.checks import file_sha256, folder_sha256
from slime_bench.data.folder import FolderDataset
from slime_bench.data.layouts import listing
from slime_bench.data.scene_config import SceneConfig
from slime_bench.data.splits import SplitFolders
from slime_bench.errors import DataError


class Scenes(Protocol):
    """What a data module knows of its files; see `SceneDataModule`."""

    def index_file(self, name: str) -> Path: ...
    def is_there(self, name: str) -> bool: ...
    def read_split(self, name: str) -> FolderDataset: ...
    def split_named(self, name: str) -> FolderDataset: ...


class SceneDataset(FolderDataset):
    """Samples that are some of their folders' files."""

    @property
    def meaning(self) -> list[Any]:
        """What decides the samples besides the files of their folders (JSON), for whoever remembers a verdict."""
        return [hashlib.sha256("\n".join(self.ids).encode()).hexdigest()]

    def select(self, ids: Sequence[str]) -> SceneDataset:
        return SceneDataset(self.folder, self.classes, pairs=super().select(ids).pairs)


class SceneSplits(SplitFolders):
    """The splits of a data set whose files lie in common folders. Splits of one name are one."""

    def __init__(self, config: SceneConfig, data: Scenes, shots: int) -> None:
        super().__init__(config, shots)
        self._data = data
        self._read: dict[str, FolderDataset] = {}

    def path(self, split: str) -> Path:
        """The file that says which images belong to a split, which may not be there."""
        return self._data.index_file(self.config.splits[split])

    def dataset(self, split: str, how_to_get: str) -> FolderDataset:
        name = self.config.splits[split]
        if name not in self._read:
            self._read[name] = self._data.read_split(name)
        return self._read[name]

    def fingerprint(self, lists: Sequence[Path]) -> str:
        """sha256 of the files that say what the splits are, of all their images and label maps, and of `lists`."""
        parts = [f"{split}={name}" for split, name in sorted(self.config.splits.items())]
        for name in sorted(set(self.config.splits.values())):
            if not self._data.is_there(name):
                continue
            found, index = self._data.split_named(name), self._data.index_file(name)
            files = {file for pair in found.pairs for file in (pair.image, pair.label)} - {index}
            said = file_sha256(index) if index.is_file() else ""
            parts.append(f"{name} {said} {folder_sha256(common_folder(files), files)}")
        parts += [f"{path.name} {file_sha256(path)}" for path in lists]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def common_folder(files: Iterable[Path]) -> Path:
    """The deepest folder that holds all `files`."""
    return Path(os.path.commonpath([file.parent for file in files]))


def read_ids(path: Path, remedy: str) -> list[str]:
    """The ids of a list of a data set, one per line; what follows the first word of a line does not count.

    Raises:
        DataError: missing, unreadable, empty, or an id twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        there = sorted(each.name for each in path.parent.glob("*.txt"))
        raise DataError(
            "a list of the data set is not there", path=path, found=listing(there) or "no list", expected=path.name,
            remedy=remedy,
        ) from error  # fmt: skip
    except (OSError, ValueError) as error:
        raise DataError("cannot read a list of ids", path=path, found=str(error), remedy=remedy) from error
    names = [unicodedata.normalize("NFC", line.split()[0]) for line in lines if line.strip()]
    seen: set[str] = set()
    repeated = [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
    if repeated or not names:
        raise DataError(
            "a list of ids is empty or names an id twice", path=path, found=listing(repeated) or "no id",
            expected="one id per line, each of them once", remedy=remedy,
        )  # fmt: skip
    return names

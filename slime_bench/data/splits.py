"""The folders of a data set's splits: where they lie, what is in them, and the hash of it all."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from slime_bench.data.checks import file_sha256, folder_sha256
from slime_bench.data.config import SHOTS, SPLITS, VAL, DataConfig
from slime_bench.data.folder import FolderDataset
from slime_bench.data.layouts import listing
from slime_bench.data.manifest import MANIFEST, read_manifest
from slime_bench.errors import DataError


class SplitFolders:
    """`support`, `val` and `test` as `config.root` and `config.splits` place them, for a number of shots."""

    def __init__(self, config: DataConfig, shots: int) -> None:
        self.config = config
        self.shots = shots
        self.root = Path(config.root)

    def name(self, split: str) -> str:
        """The folder's name or path as configured, relative to the root or absolute."""
        return self.config.splits[split].replace(SHOTS, str(self.shots))

    def path(self, split: str) -> Path:
        """The folder of a split, which may not be there."""
        return self.root / self.name(split)

    def dataset(self, split: str, how_to_get: str) -> FolderDataset:
        """The samples of a split.

        Args:
            how_to_get: what to do when it is missing, for the message.

        Raises:
            DataError: the folder is missing, or its files do not pair up.
        """
        folder = self.path(split)
        if not folder.exists():
            there = sorted(f"{each.name}/" for each in folder.parent.glob("*/") if not each.name.startswith("."))
            shots = f" for {self.shots} shot(s)" if SHOTS in self.config.splits[split] else ""
            instead = "or choose data.validation=support" if split == VAL else how_to_get
            raise DataError(
                f"the data set has no {split} split{shots}",
                path=folder,
                found=f"{listing(there)}" if there else "nothing",
                expected="a folder of images and label maps",
                remedy=f"say where it is: data.splits.{split}=<folder>; {instead}",
            )
        return self._dataset(folder)

    def fingerprint(self, lists: Sequence[Path]) -> str:
        """sha256 of the data set: of the manifest, which vouches for the splits of their usual names below the root; of
        names, sizes and contents of the files of every other split that is there; and of the `lists` of ids.

        The splits of all numbers of shots count, needed or not: trials of one table share the hash. Where the folders
        lie does not matter.
        """
        manifest = self.root / MANIFEST
        vouched = manifest.is_file()
        files = self._manifest_files() if vouched else {}
        parts = [file_sha256(manifest)] if vouched else []
        for split in SPLITS:
            for title, folder in self._there(split):
                if not (folder == self.root / split and self._listed(folder, files)):
                    parts += self._content(title, folder)
        parts += [f"{path.name} {file_sha256(path)}" for path in lists]
        return parts[0] if vouched and len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _there(self, split: str) -> list[tuple[str, Path]]:
        """The folders of a split that are there, for whatever number of shots, each with a title."""
        pattern = self.config.splits[split]
        if SHOTS not in pattern:
            return [(split, self.path(split))] if self.path(split).is_dir() else []
        leaf = "*".join(glob.escape(part) for part in Path(pattern).name.split(SHOTS))
        found = sorted((self.root / pattern).parent.glob(leaf))
        return [(f"{split} {folder.name}", folder) for folder in found if folder.is_dir()]

    def _manifest_files(self) -> dict[str, str]:
        try:
            return dict(read_manifest(self.root)["files"])
        except DataError:
            return {}  # it vouches for nothing; what is wrong with it the verification says

    def _listed(self, folder: Path, files: Mapping[str, str]) -> bool:
        """Whether a manifest that lists `files` names all that is used of a folder below the root."""
        try:
            pairs = self._dataset(folder).pairs
        except DataError:
            return False
        return all(file.relative_to(self.root).as_posix() in files for pair in pairs for file in (pair.image, pair.label))

    def _content(self, title: str, folder: Path) -> list[str]:
        try:
            pairs = self._dataset(folder).pairs
        except DataError:
            return []  # what is wrong with a split that is needed the verification says
        files = [file for pair in pairs for file in (pair.image, pair.label)]
        above = folder if all(file.is_relative_to(folder) for file in files) else folder.parent
        return [f"{title} {folder_sha256(above, files)}"]

    def _dataset(self, folder: Path) -> FolderDataset:
        return FolderDataset(folder, self.config.classes, self.config.colours)

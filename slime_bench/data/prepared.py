"""Data sets that a command of `data_prep` makes: which command that is, and that the folder holds the right one."""

from __future__ import annotations

from typing import ClassVar

from slime_bench.data.config import TEST
from slime_bench.data.datamodule import SegmentationDataModule
from slime_bench.data.labels import check_same_classes
from slime_bench.data.manifest import MANIFEST, check_subject, read_manifest


class PreparedDataModule(SegmentationDataModule):
    """A folder data set with a manifest; one that was laid out by hand, without a manifest, is taken as it is."""

    commands: ClassVar[dict[str, str]] = {}
    """subject -> the command that makes the data set."""
    choices: ClassVar[tuple[str, ...]] = ()
    """Settings of the manifest that change published numbers."""

    def how_to_get(self) -> str:
        """The command that makes the data set."""
        command = self.commands.get(self.config.subject)
        return f"{command} (README.md, `Real data`)" if command else super().how_to_get()

    def prepared(self) -> dict[str, str]:
        """The manifest's `choices`.

        Raises:
            DataError: the manifest cannot be read.
        """
        if not (self.root / MANIFEST).is_file():
            return {}
        settings = read_manifest(self.root).get("settings") or {}
        chosen = {name: str(settings[name]) for name in self.choices if settings.get(name) is not None}
        if self._folders.path(TEST) != self.root / TEST:  # what the manifest says of its own test split does not hold
            chosen["test"] = self._folders.path(TEST).name
        return chosen

    def prepare_data(self) -> None:
        """As the base class; the manifest has to be of this subject and these classes.

        Raises:
            DataError: the folder is missing, holds another subject, or files that cannot be used.
            ConfigError: `data.classes` is not the data set's class list.
        """
        self._check_root()
        self.check_manifest()
        super().prepare_data()

    def check_manifest(self) -> None:
        """The manifest, where there is one, has to be of this subject and these classes; raises as `prepare_data`."""
        if (self.root / MANIFEST).is_file():
            manifest = read_manifest(self.root)
            remedy = f"correct `data.root`, or {self.how_to_get()}"
            check_subject(manifest, self.config.subject, self.root, remedy)
            check_same_classes(self.classes, manifest["classes"])

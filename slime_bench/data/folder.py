"""Folder data sets: where the splits of a trial lie, what is in them, which images it learns from. No torch here.

Every choice is a function of (config, shots, seed); `FolderData.datamodule` makes batches of it.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from slime_bench.config.parts import Part
from slime_bench.data.config import DRAWN, IN_MEMORY, IN_ORDER, SHOTS, SPLITS, SUPPORT, TEST, VAL, DataConfig
from slime_bench.data.label_maps import class_index, listing
from slime_bench.data.manifest import (
    MANIFEST,
    file_sha256,
    files_sha256,
    read_manifest,
    text_sha256,
)
from slime_bench.data.reading import FolderDataset, Sample
from slime_bench.data.support import check_support, choose_support, choose_val, permuted, read_list
from slime_bench.data.verify import ensure_verified
from slime_bench.errors import ConfigError, DataError
from slime_bench.paths import advised

if TYPE_CHECKING:
    from slime_bench.data.datamodule import SegmentationDataModule

LISTS = "splits"
"""Folder of the lists that `data.support` may name: <name>-<shots>.txt and <name>-val.txt."""


class FolderData(Part):
    """A data set whose splits are folders.

    Args:
        config: see `DataConfig`.
        shots: number of support images, k; 0 for a method that needs none.
        seed: decides the support set, the order and the augmentation.

    Raises:
        ConfigError: `shots` is 0 where the pool goes by their number.
    """

    Config = DataConfig
    commands: ClassVar[dict[str, tuple[str, str]]] = {}
    """Of a data set that a command makes: subject -> the target of the Makefile, and the command without one. One that
    was laid out by hand, without a manifest, is taken as it is."""
    choices: ClassVar[tuple[str, ...]] = ()
    """Settings of the manifest that change published numbers."""
    built_in: ClassVar[tuple[str, ...]] = (DRAWN, IN_ORDER)
    """Values of `data.support` that are no names of lists."""

    def __init__(self, config: DataConfig, shots: int, seed: int) -> None:
        pool = config.splits[SUPPORT]
        if shots == 0 and SHOTS in pool:
            raise ConfigError(
                "the support folder of this data set goes by the number of shots", path="data.splits.support",
                found=f"{pool} with shots=0", expected="a folder whose images may be looked at",
                remedy=f"say which, e.g. data.splits.support={pool.replace(SHOTS, '10')}",
            )  # fmt: skip
        self.config = config
        self.shots = shots
        self.seed = seed
        self.root = Path(config.root)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return tuple(self.config.classes)

    @property
    def validation(self) -> str:
        """Where validation images come from, once the shots have their say: `support`, `val` or `none`."""
        if self.shots == 0:
            return "none"
        if self.config.validation not in ("auto", "paper"):
            return self.config.validation
        if self.shots > 1:
            return "val"
        return "support" if self.config.validation == "auto" else "none"

    @property
    def needed(self) -> tuple[str, ...]:
        """The splits that the trial reads: always `support` and `test`; `val` where it validates on it, or where a list
        may name images of it."""
        listed = self._list is not None and self.split_path(VAL).is_dir()
        return SPLITS if self.validation == "val" or listed else (SUPPORT, TEST)

    @cached_property
    def support_ids(self) -> list[str]:
        """The ids of the support set, in order of the draw: a 1-shot trial's image is the first of a 10-shot trial's.
        DataError as `choose_support`, or for a list that is not there."""
        if self.shots == 0:
            return []
        counted = self._manifest_counts()
        return choose_support(self._source, self.shots, self.seed, self.config, listed=self._list, counted=counted)

    @cached_property
    def missing_classes(self) -> list[str]:
        """Classes that the support set, where there is one, does not show; see `check_support`."""
        return check_support(self.support, self.classes) if self.support_ids else []

    @cached_property
    def pool(self) -> FolderDataset:
        """What support images are drawn from."""
        return self.split(SUPPORT)

    @cached_property
    def support(self) -> Sequence[Sample]:
        """The support set, in order of `support_ids`; more than `IN_MEMORY` images are decoded when they are needed."""
        chosen = self._source.select(self.support_ids)
        return chosen if len(chosen) > IN_MEMORY else list(chosen)

    @cached_property
    def val(self) -> FolderDataset:
        """The validation split, as far as it is used."""
        listed = self.root / LISTS / f"{self.config.support}-val.txt"
        if listed in self._lists:
            return self._train_side.select(read_list(listed, self._train_side.ids))
        split = self.split(VAL)
        taken = {pair.image for pair in self._source.select(self.support_ids).pairs}
        ids = [pair.id for pair in split.pairs if pair.image not in taken]
        return split.select(choose_val(ids, self.config.val_size, self.seed, self.split_path(VAL)))

    @cached_property
    def test(self) -> FolderDataset:
        """The test split in order of the id, as far as it is tested; see `within_limit`."""
        return self.within_limit(self.split(TEST))

    def within_limit(self, images: FolderDataset) -> FolderDataset:
        """The first `test_limit` of the test images; ConfigError: there are fewer, and tables would say otherwise."""
        limit = self.config.test_limit
        if limit is None:
            return images
        if limit > len(images):
            raise ConfigError(
                "there are fewer test images", path="data.test_limit", found=limit, expected=f"1 to {len(images)}",
                remedy=f"data.test_limit=null, which takes all {len(images)}",
            )  # fmt: skip
        return images.select(images.ids[:limit])

    def limited(self) -> dict[str, str]:
        """What tables have to say of `test_limit`, as `prepared` does."""
        limit = self.config.test_limit
        return {} if limit is None else {"test images": f"the first {limit}"}

    def unlabelled(self, limit: int | None) -> FolderDataset:
        """Images of the pool whose labels are not to be used: at most `limit`, drawn with the seed; None for all."""
        if limit is None or limit >= len(self.pool):
            return self.pool
        order = permuted(len(self.pool), self.seed, "unlabelled")[:limit]
        return self.pool.select([self.pool.ids[index] for index in sorted(order)])

    def datamodule(self) -> SegmentationDataModule:
        """Batches of it for Lightning; here torch is imported."""
        from slime_bench.data.datamodule import SegmentationDataModule

        return SegmentationDataModule(self)

    # --- the files

    def split_path(self, split: str) -> Path:
        """The folder of a split, which may not be there."""
        return self.root / self._split_name(split)

    def split(self, name: str) -> FolderDataset:
        """The samples of a split, whole; DataError: its folder is missing, or its files do not pair up."""
        folder = self.split_path(name)
        if not folder.exists():
            there = sorted(f"{each.name}/" for each in folder.parent.glob("*/") if not each.name.startswith("."))
            raise DataError(
                f"the data set has no {name} split", path=folder, found=listing(there) or "nothing",
                expected="a folder of images and label maps",
                remedy=f"say where it is: data.splits.{name}=<folder>; or {self.how_to_get()}; where there is no val "
                "split, data.validation=support",
            )  # fmt: skip
        return self._dataset(folder)

    def present_splits(self) -> list[str]:
        """Names of the splits whose folders are there, needed or not."""
        return [name for name in SPLITS if self.split_path(name).is_dir()]

    def how_to_get(self) -> str:
        """What to do where the data are missing, as an instruction."""
        if self.config.subject not in self.commands:
            return "prepare the data (docs/data.md)"
        target, otherwise = self.commands[self.config.subject]
        return f"{advised(target, otherwise.format(root=self.root))} (docs/data.md)"

    def prepared(self) -> dict[str, str]:
        """Named choices with which the data set was made, that tables have to state; none for one laid out by hand."""
        if not self.choices or not (self.root / MANIFEST).is_file():
            return self.limited()
        settings = read_manifest(self.root).get("settings") or {}
        chosen = {name: str(settings[name]) for name in self.choices if settings.get(name) is not None}
        if self.split_path(TEST) != self.root / TEST:  # what the manifest says of its own test split does not hold
            chosen["test"] = self.split_path(TEST).name
        return chosen | self.limited()

    def prepare_data(self) -> None:
        """Check that the data are there, and every file of the needed splits, unless that was done before; data sets
        that can be made do so here. DataError: a folder is missing, of another subject, or has files that cannot be
        used; ConfigError: `data.classes` is not the data set's class list."""
        if not self.root.is_dir():
            raise DataError(
                f"the data set `{self.config.name}` is not there", path=self.root,
                found="a file" if self.root.exists() else "nothing", expected=f"a folder with {self._layout()}",
                remedy=f"{self.how_to_get()}; or say where they are: data.root=<folder>, data_root=<folder of all data "
                "sets> or the variable SLIME_BENCH_DATA (python -m data_prep.archive unpacks archives)",
            )  # fmt: skip
        self.check_manifest()
        ensure_verified({name: self.split(name) for name in self.needed}, self.root)

    def check_manifest(self) -> None:
        """Refuse a manifest of another subject or of other classes, where the data set is one that a command makes."""
        if self.commands and (self.root / MANIFEST).is_file():
            manifest = read_manifest(self.root)
            if manifest["subject"] != self.config.subject:
                raise DataError(
                    "the folder holds another subject", path=self.root, found=manifest["subject"],
                    expected=self.config.subject, remedy=f"correct `data.root`, or {self.how_to_get()}",
                )  # fmt: skip
            for name in self.classes:
                class_index(name, manifest["classes"])
            if self.config.classes != manifest["classes"]:
                raise ConfigError(
                    "the class list differs from the data set's", path="data.classes", found=self.config.classes,
                    expected=manifest["classes"], remedy="list all classes of the label maps, in their order",
                )  # fmt: skip

    def fingerprint(self) -> str:
        """sha256 of the data set, the same for every number of shots and every seed, as one table's trials share it.

        Of the manifest, which vouches for the splits of their own names below the root; of names, sizes and contents
        of the files of every other split that is there; and of the lists that `data.support` chooses among. Where the
        folders lie does not matter.
        """
        manifest = self.root / MANIFEST
        vouched = manifest.is_file()
        files = set(self._manifest().get("files", ()))
        parts = [file_sha256(manifest)] if vouched else []
        for split in SPLITS:
            for title, folder in self._folders_of(split):
                try:
                    pairs = self._dataset(folder).pairs
                except DataError:
                    continue  # what is wrong with a split that is needed the verification says
                own = [file for pair in pairs for file in pair.files]
                if folder == self.root / split and {file.relative_to(self.root).as_posix() for file in own} <= files:
                    continue
                parts.append(f"{title} {files_sha256(own)}")
        parts += [f"{path.name} {file_sha256(path)}" for path in self._lists]
        return parts[0] if vouched and len(parts) == 1 else text_sha256(parts)

    def _folders_of(self, split: str) -> list[tuple[str, Path]]:
        """The folders of a split that are there, for whatever number of shots, each with a title."""
        pattern = self.config.splits[split]
        if SHOTS not in pattern:
            return [(split, self.split_path(split))] if self.split_path(split).is_dir() else []
        leaf = "*".join(glob.escape(part) for part in Path(pattern).name.split(SHOTS))
        found = sorted((self.root / pattern).parent.glob(leaf))
        return [(f"{split} {folder.name}", folder) for folder in found if folder.is_dir()]

    def _manifest(self) -> dict[str, Any]:
        """The manifest; {} where there is none, or a faulty one, which the verification says."""
        try:
            return read_manifest(self.root)
        except DataError:
            return {}

    def _split_name(self, split: str) -> str:
        """The folder's name or path as configured, relative to the root or absolute."""
        return self.config.splits[split].replace(SHOTS, str(self.shots))

    def _dataset(self, folder: Path) -> FolderDataset:
        return FolderDataset(folder, self.config.classes, self.config.colours)

    @property
    def _lists(self) -> list[Path]:
        """The lists, of all shots, that `data.support` names, and its validation list."""
        if self.config.support_ids is not None or self.config.support in self.built_in:
            return []
        return sorted((self.root / LISTS).glob(f"{self.config.support}-*.txt"))

    @cached_property
    def _list(self) -> Path | None:
        """The file of support ids that the trial follows; None where they are fixed or chosen in a built-in way."""
        name, folder = self.config.support, self.root / LISTS
        if self.config.support_ids is not None or name in self.built_in:
            return None
        path = folder / f"{name}-{self.shots}.txt"
        if not path.is_file():
            there = sorted(each.stem for each in folder.glob("*.txt") if not each.name.startswith("."))
            raise DataError(
                f"there is no list `{name}` of {self.shots} support image(s)", path=path,
                found=f"the lists {listing(there)}", expected=f"one id per line in {LISTS}/<name>-<shots>.txt",
                remedy=f"choose another `data.support` (data.support={DRAWN} draws with the seed) or other `shots`",
            )  # fmt: skip
        return path

    @property
    def _source(self) -> FolderDataset:
        """What support images come from."""
        return self.pool if self._list is None else self._train_side

    @cached_property
    def _train_side(self) -> FolderDataset:
        """What a list may name images of: the pool and, where it is there, the validation split."""
        if not self.split_path(VAL).is_dir():
            return self.pool
        val = self.split(VAL)
        both = sorted(set(self.pool.ids) & set(val.ids))
        if both:
            raise DataError(
                "an id stands for two images", path=self.root, found=listing(both),
                expected=f"ids that are in {SUPPORT}/ or in {VAL}/",
                remedy="rename one of the two, or choose data.support=drawn",
            )  # fmt: skip
        return FolderDataset(self.root, self.classes, self.config.colours, pairs=[*self.pool.pairs, *val.pairs])

    def _manifest_counts(self) -> dict[str, Sequence[int]]:
        """id -> pixels per class, where a manifest of these classes has them: the label maps need not be decoded."""
        if self.split_path(SUPPORT) != self.root / SUPPORT:
            return {}  # the manifest's ids and counts are those of its own pool
        manifest = self._manifest()
        samples = manifest.get("samples", {}) if manifest.get("classes") == list(self.classes) else {}
        prefix = f"{SUPPORT}/"
        return {name.removeprefix(prefix): each["pixels"] for name, each in samples.items() if name.startswith(prefix)}

    def _layout(self) -> str:
        """What the root holds, for messages."""
        return ", ".join(f"{self._split_name(name)}/" for name in SPLITS)

"""Support, validation and test batches of one trial; every choice in them is a function of (config, shots, seed)."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, Dataset

from slime_bench.data.checks import check_support
from slime_bench.data.config import SHOTS, SPLITS, SUPPORT, TEST, VAL, DataConfig
from slime_bench.data.folder import FolderDataset, ImageFolder, Sample
from slime_bench.data.layouts import listing
from slime_bench.data.loading import (
    CarryingDataset,
    CheckedLoader,
    ImageDataset,
    QueryDataset,
    SupportDataset,
    collate,
)
from slime_bench.data.manifest import MANIFEST, read_manifest
from slime_bench.data.sampler import ContinuedBatchSampler, SupportBatchSampler, SupportSampler
from slime_bench.data.splits import SplitFolders
from slime_bench.data.support import (
    choose_support,
    choose_val,
    list_file,
    list_files,
    permuted,
    read_list,
    val_list_file,
)
from slime_bench.errors import ConfigError, DataError
from slime_bench.seeding import generator

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


class SegmentationDataModule(lightning.LightningDataModule):
    """A folder data set as Lightning data module.

    Args:
        config: see `DataConfig`.
        shots: number of support images, k; 0 for a method that needs none.
        seed: decides the support set, the order and the augmentation.

    Attributes:
        support_group: None for augmented training batches in random order; otherwise so many support images a batch,
            as they are and in the order of the draw.
        first_batch: batches that the first epoch of training leaves out; above 0 where a trial is resumed within one.

    Raises:
        ConfigError: `shots` below 0.
    """

    Config = DataConfig
    support_group: int | None = None
    first_batch: int = 0

    def __init__(self, config: DataConfig, shots: int, seed: int) -> None:
        super().__init__()
        if shots < 0:
            raise ConfigError(
                "there is no such support set", path="shots", found=shots, expected="0 or more", remedy="e.g. shots=1"
            )
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
        self._folders = SplitFolders(config, shots)

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
        listed = self._list is not None and self._folders.path(VAL).is_dir()
        return SPLITS if self.validation == "val" or listed else (SUPPORT, TEST)

    @property
    def images_per_shot(self) -> int:
        """Support images that one shot stands for."""
        return 1

    @cached_property
    def support_ids(self) -> list[str]:
        """The ids of the support set, in order of the draw: a 1-shot trial's image is the first of a 10-shot trial's.

        Raises:
            DataError: `shots` is larger than the pool, an id that is not in it, or a list that is not there.
        """
        if self.shots == 0:
            return []
        pool = self._pool if self._list is None else self._train_side
        return choose_support(pool, self.shots, self.seed, self.config, listed=self._list, known=self._known_pixels())

    @cached_property
    def missing_classes(self) -> list[str]:
        """Classes that the support set does not show; a warning names them when the support set is first read.

        Raises:
            DataError: the support set has no foreground at all.
        """
        return check_support(self._support, self.classes)

    def split_datasets(self, names: Sequence[str] | None = None) -> dict[str, FolderDataset]:
        """The splits called `names`, whole; by default those that the trial needs.

        Raises:
            DataError: a split is missing, or its files do not pair up.
        """
        return {name: self._split(name) for name in (self.needed if names is None else names)}

    def present_splits(self) -> list[str]:
        """Names of the splits whose folders are there, needed or not."""
        return [name for name in SPLITS if self._folders.path(name).is_dir()]

    def fingerprint(self) -> str:
        """sha256 of the data set, the same for every number of shots and every seed, as one table's trials share it.

        Of the manifest, which vouches for the files of its own splits; of names, sizes and contents of the files of
        every other split that is there; and of the lists that `data.support` chooses among.
        """
        return self._folders.fingerprint(list_files(self.root, self.config))

    def prepared(self) -> dict[str, str]:
        """Named choices with which the data set was made, that tables have to state; none for one laid out by hand."""
        return {}

    def check_manifest(self) -> None:
        """Refuse a manifest of another subject or of other classes; a data set laid out by hand is taken as it is."""

    def prepare_data(self) -> None:
        """Check that the data are there, and every file of the needed splits, unless that was done before; data sets
        that can be made or fetched do so here.

        Raises:
            DataError: the root folder or a split is missing, or files that cannot be used.
        """
        self._check_root()
        self._verify()

    def setup(self, stage: str | None = None) -> None:
        """Choose and read what `stage` needs, so that errors come before any training."""
        if stage in (None, "fit", "validate") and self.shots > 0:
            _ = self.missing_classes
            if self.validation == "val":
                _ = self._val
        if stage in (None, "test"):
            _ = self._test

    def train_dataloader(self) -> DataLoader[Any]:
        """Support batches, see `support_group`; one epoch is `passes_per_epoch` passes over the support set."""
        if self.support_group is not None:
            order, group = list(range(len(self._support))), self.support_group
            groups = [order[start : start + group] for start in range(0, len(order), group)]
            plain = QueryDataset(self._support, self.config)
            return self._loader(
                plain, batch_sampler=ContinuedBatchSampler(groups * self.config.passes_per_epoch, self.first_batch)
            )
        sampler = SupportSampler(len(self._support), self.seed, self.config.passes_per_epoch)
        dataset = SupportDataset(self._support, self.config, self.seed)
        batches = SupportBatchSampler(sampler, self.config.train_batch_size)
        return self._loader(dataset, batch_sampler=ContinuedBatchSampler(batches, self.first_batch))

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Unaugmented batches of the support images or of the validation split; an empty list for `none`."""
        if self.validation == "none":
            return []
        samples: Sequence[Sample] | FolderDataset = self._support if self.validation == "support" else self._val
        return self._loader(QueryDataset(samples, self.config), batch_size=self.config.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Unaugmented batches of the test split, in order of the id."""
        return self._loader(QueryDataset(self._test, self.config), batch_size=self.config.batch_size)

    def unlabelled_dataloader(self, limit: int | None) -> DataLoader[Any]:
        """Batches of images of the pool that support images are drawn from, whose labels are not to be used.

        Args:
            limit: at most so many, drawn with the seed; None for all.
        """
        pool = self._pool
        if limit is not None and limit < len(pool):
            order = permuted(len(pool), self.seed, "unlabelled")[:limit]
            pool = pool.select([pool.ids[index] for index in sorted(order)])
        return self._loader(QueryDataset(pool, self.config), batch_size=self.config.batch_size)

    def image_dataloader(self, folder: str | Path) -> DataLoader[Any]:
        """Batches of any folder of images: `image` and `id` as in `Batch`, and `size` int64 [B,2], the files' (H, W).

        Score maps go back to that size by `slime_bench.data.fit.unfit(maps, size, config.fit)`.

        Raises:
            DataError: the folder is missing or holds no image.
        """
        return self._loader(ImageDataset(ImageFolder(folder), self.config), batch_size=self.config.batch_size)

    def how_to_get(self) -> str:
        """What to do where the data are missing, as an instruction."""
        return "prepare the data as README.md says under `Real data`"

    @cached_property
    def _pool(self) -> FolderDataset:
        return self._split(SUPPORT)

    @cached_property
    def _train_side(self) -> FolderDataset:
        """The pool and, where it is there, the validation split: what a list of support images may name."""
        if not self._folders.path(VAL).is_dir():
            return self._pool
        pairs = [*self._pool.pairs, *self._split(VAL).pairs]
        ids = [pair.id for pair in pairs]
        if len(set(ids)) < len(ids):
            raise DataError(
                "an id stands for two images",
                path=self.root,
                found=listing(sorted(set(self._pool.ids) & set(self._split(VAL).ids))),
                expected=f"ids that are in {SUPPORT}/ or in {VAL}/",
                remedy="rename one of the two, or choose data.support=drawn",
            )
        return FolderDataset(self.root, self.classes, self.config.colours, pairs=pairs)

    @cached_property
    def _val(self) -> FolderDataset:
        listed = val_list_file(self.root, self.config)
        if listed is not None:
            return self._train_side.select(read_list(listed, self._train_side.ids))
        split = self._split(VAL)
        support = set(self.support_ids) if self._list is not None else set()
        ids = [key for key in split.ids if key not in support]
        return split.select(choose_val(ids, self.config.val_size, self.seed, split.folder))

    @cached_property
    def _test(self) -> FolderDataset:
        return self._split(TEST)

    @cached_property
    def _support(self) -> list[Sample]:
        chosen = (self._pool if self._list is None else self._train_side).select(self.support_ids)
        return [chosen[index] for index in range(len(chosen))]

    @cached_property
    def _list(self) -> Path | None:
        return list_file(self.root, self.config, self.shots, self.seed)

    def _known_pixels(self) -> dict[str, Sequence[int]]:
        """id -> pixels per class, where a manifest of these classes has them: the label maps need not be decoded."""
        if self._folders.path(SUPPORT) != self.root / SUPPORT:
            return {}  # the manifest's ids and counts are those of its own pool
        try:
            manifest = json.loads((self.root / MANIFEST).read_text(encoding="utf-8"))
            samples = manifest["samples"] if manifest["classes"] == list(self.classes) else {}
            prefix = f"{SUPPORT}/"
            return {
                name.removeprefix(prefix): facts["pixels"] for name, facts in samples.items() if name.startswith(prefix)
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}  # whether the manifest is as it should be is the verification's business

    def _check_root(self) -> None:
        if self.root.is_file() and self.root.name.lower().endswith(ARCHIVES):
            folder = self.root.with_name(self.root.name.split(".", 1)[0])
            raise DataError(
                "the data set is still an archive",
                path=self.root,
                found="a file",
                expected="a folder",
                remedy=f"python -m data_prep.archive {shlex.quote(str(self.root))} --out {shlex.quote(str(folder))}, "
                f"then data.root={shlex.quote(str(folder))}",
            )
        if not self.root.is_dir():
            raise DataError(
                f"the data set `{self.config.name}` is not there",
                path=self.root,
                found="a file" if self.root.exists() else "nothing",
                expected=f"a folder with {self._layout()}",
                remedy=f"{self.how_to_get()}; or say where they are: "
                "data.root=<folder>, data_root=<folder of all data sets> or the variable SLIME_BENCH_DATA",
            )

    def _layout(self) -> str:
        """What the root holds, for messages."""
        return ", ".join(f"{self._folders.name(name)}/" for name in SPLITS)

    def _verify(self, names: Sequence[str] | None = None) -> None:
        from slime_bench.data.verify import VerifyReport, compare_manifest, ensure_verified, refuse

        try:
            splits = self.split_datasets(names)
        except DataError:
            if (self.root / MANIFEST).is_file():  # files that are gone are better named by it than by their partners
                differences = compare_manifest(self.root, read_manifest(self.root)["files"], {})
                refuse(VerifyReport({}, differences=differences), self.root)
            raise
        ensure_verified(splits, self.root)

    def _split(self, name: str) -> FolderDataset:
        return self._folders.dataset(name, self.how_to_get())

    def _loader(self, dataset: Dataset[Any], **arguments: Any) -> DataLoader[Any]:
        # On a GPU the next images are read, and put where it fetches them by itself, while it computes. On a CPU other
        # processes would only take its cores.
        on_gpu = torch.cuda.is_available()
        workers = self.config.num_workers if self.config.num_workers is not None else (2 if on_gpu else 0)
        return CheckedLoader(
            CarryingDataset(dataset),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=on_gpu,
            collate_fn=collate,
            # The loader draws a base seed per epoch; without its own generator that draw would come from, and shift,
            # the global stream.
            generator=generator(self.seed, "loader"),
            **arguments,
        )

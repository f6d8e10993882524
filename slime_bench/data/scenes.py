"""Data sets of whole scenes as they are downloaded, such as VOC and COCO: splits by list, support sets by class."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from slime_bench.data.config import DRAWN, IN_ORDER, SPLITS, SUPPORT, TEST, VAL
from slime_bench.data.counts import class_pixels
from slime_bench.data.datamodule import SegmentationDataModule
from slime_bench.data.folder import FolderDataset, Sample
from slime_bench.data.labels import IGNORE
from slime_bench.data.layouts import listing
from slime_bench.data.per_class import Counts, Example, authors_support, by_seed, draw_per_class
from slime_bench.data.scene_config import AUTHORS_EVAL, AUTHORS_TRAIN, NO_SUPPORT, SceneConfig
from slime_bench.data.scene_splits import SceneSplits
from slime_bench.data.support import choose_val, list_files, read_list
from slime_bench.errors import ConfigError, DataError

BUILT_IN = (DRAWN, IN_ORDER, AUTHORS_EVAL, AUTHORS_TRAIN, NO_SUPPORT)
"""Values of `data.support` that are no names of lists."""

MOST_RUNS = 1000
"""Largest seed for which the choice of the second paper\'s code is repeated."""


class SceneDataModule(SegmentationDataModule):
    """See `SceneConfig`. Subclasses say where files lie and read a split by its name."""

    Config = SceneConfig
    config: SceneConfig

    def __init__(self, config: SceneConfig, shots: int, seed: int) -> None:
        super().__init__(config, shots, seed)
        self._folders = SceneSplits(config, self, shots)

    @abstractmethod
    def index_file(self, name: str) -> Path:
        """The file that says which images the split called `name` has."""

    def is_there(self, name: str) -> bool:
        """Whether the split called `name` is there at all."""
        return self.index_file(name).is_file()

    @abstractmethod
    def read_split(self, name: str) -> FolderDataset:
        """All samples of the split called `name`, in its order; raises DataError where it cannot."""

    def candidates(self, dataset: FolderDataset) -> list[list[int]]:
        """For each foreground class the samples that may show it; here all, as only their label maps would tell."""
        return [list(range(len(dataset))) for _ in self.classes[1:]]

    @property
    def images_per_shot(self) -> int:
        """Support images that one shot stands for."""
        return len(self.classes) - 1

    @property
    def needed(self) -> tuple[str, ...]:
        """As the base class; the support split only where support images come from it."""
        support = () if self.config.support in (AUTHORS_EVAL, NO_SUPPORT) else (SUPPORT,)
        val = (VAL,) if self.validation == "val" and self._own_name(VAL) else ()
        return (*support, *val, TEST)

    def present_splits(self) -> list[str]:
        """Splits whose lists are there, each once."""
        return [name for name in SPLITS if self._own_name(name) and self.is_there(self.config.splits[name])]

    def prepared(self) -> dict[str, str]:
        """The choices that tables have to state."""
        chosen = {"support": self.config.support} if self.config.support in (AUTHORS_EVAL, AUTHORS_TRAIN) else {}
        limit = self.config.max_test_images
        return chosen | ({"test images": f"the first {limit}"} if limit is not None else {})

    @cached_property
    def support_ids(self) -> list[str]:
        """The ids of the support set, class by class; by `authors_eval` and `authors_train` one may come twice.

        Raises:
            DataError: fewer images of a class than `shots`, or an unknown id.
        """
        source = self._source
        return [source.pairs[each.index].id for each in self._examples]

    @cached_property
    def missing_classes(self) -> list[str]:
        """As the base class; nothing is missing where no support set is wanted."""
        return super().missing_classes if self.support_ids else []

    def train_dataloader(self) -> DataLoader[Any]:
        """As the base class.

        Raises:
            ConfigError: there are no support images.
        """
        if not self.support_ids:
            raise ConfigError(
                "there is nothing to learn from", path="data.support",
                found=f"{self.config.support}, shots={self.shots}",
                expected=f"{DRAWN}, {AUTHORS_EVAL} or another choice, and shots",
                remedy=f"e.g. data.support={DRAWN} shots=1",
            )  # fmt: skip
        return super().train_dataloader()

    def split_named(self, name: str) -> FolderDataset:
        """The samples of a list by its own name, within its limit."""
        split = next(each for each in SPLITS if self.config.splits[each] == name)
        return self._split(split)

    def _own_name(self, split: str) -> bool:
        """Whether no split before this one has the same list."""
        return self.config.splits[split] not in [self.config.splits[each] for each in SPLITS[: SPLITS.index(split)]]

    def _split(self, name: str) -> FolderDataset:
        whole = super()._split(name)
        limits = {TEST: self.config.max_test_images, SUPPORT: self.config.max_pool_images}
        limit = limits.get(name, self.config.max_pool_images if not self._own_name(name) else None)
        if name == TEST and self.config.support == AUTHORS_EVAL:
            limit = None  # the code cuts what is left
        return whole if limit is None or limit >= len(whole) else whole.select(whole.ids[:limit])

    @property
    def _source(self) -> FolderDataset:
        """What support images come from."""
        return self._whole_test if self.config.support == AUTHORS_EVAL else self._pool

    @cached_property
    def _whole_test(self) -> FolderDataset:
        return self._split(TEST)

    @cached_property
    def _test_counts(self) -> Counts:
        """Pixels of each class in every image of the test split, [N,K]."""
        return self._count_all(self._whole_test)

    @cached_property
    def _examples(self) -> list[Example]:
        config = self.config
        if self.shots == 0 or (config.support == NO_SUPPORT and config.support_ids is None):
            return []
        names = config.support_ids
        if names is None and self._list is not None:
            names = read_list(self._list, self._source.ids)
        if names is not None:
            places = {key: index for index, key in enumerate(self._source.ids)}
            self._check_ids(names, places)
            return [Example(places[name]) for name in names]
        if config.support in (AUTHORS_EVAL, AUTHORS_TRAIN):
            counts = self._test_counts if config.support == AUTHORS_EVAL else self._count_all(self._pool)
            return self._authors(counts)
        return self._drawn()

    def _authors(self, counts: Counts) -> list[Example]:
        if self.seed > MOST_RUNS:  # every run before it has to be drawn first
            raise ConfigError(
                "the seed is the number of the authors' run here", path="seed", found=self.seed,
                expected=f"0 to {MOST_RUNS}", remedy="e.g. seed=0,1,2,3,4, or data.support=drawn",
            )  # fmt: skip
        path = self._folders.path(TEST if self.config.support == AUTHORS_EVAL else SUPPORT)
        return authors_support(counts, self.shots, self.seed, self.config.min_pixels, self.classes, str(path))

    def _drawn(self) -> list[Example]:
        known: dict[int, np.ndarray] = {}

        def counts(index: int) -> np.ndarray:
            if index not in known:
                known[index] = self._count(self._pool, index)
            return known[index]

        order = range if self.config.support == IN_ORDER else by_seed(self.seed)
        chosen = draw_per_class(self.candidates(self._pool), counts, self.shots, self.config.min_pixels, order)
        found = zip(self.classes[1:], chosen, strict=True)
        few = [f"{name} ({len(own)})" for name, own in found if len(own) < self.shots]
        if few:
            raise DataError(
                "more shots than images of a class",
                path=self._folders.path(SUPPORT),
                found=f"shots={self.shots}; too few of {listing(few)}",
                expected=f"at least {self.shots} image(s) of each class among {len(self._pool)}",
                remedy="lower `shots`, raise `data.max_pool_images`, or add images to the support list",
            )
        return [Example(index) for index in dict.fromkeys(index for own in chosen for index in own)]

    @cached_property
    def _support(self) -> list[Sample]:
        source = self._source
        return [_only(source[each.index], each.only) for each in self._examples]

    @cached_property
    def _test(self) -> FolderDataset:
        if self.config.support != AUTHORS_EVAL:
            return self._whole_test
        left = self._whole_test.ids
        if self.shots > 0:  # without supports the code tests all images
            taken = {each.index for each in self._examples if each.only is None}
            shown = (self._test_counts[:, 1:] > 0).sum(1) > 0
            left = [key for index, key in enumerate(left) if shown[index] and index not in taken]
        return self._whole_test.select(left[: self.config.max_test_images])

    @cached_property
    def _val(self) -> FolderDataset:
        split = self._split(VAL)
        if self._folders.path(VAL) == self._folders.path(TEST):
            raise ConfigError(
                "validation on the test images", path="data.splits.val", found=self.config.splits[VAL],
                expected="another list than that of the test split",
                remedy=f"data.splits.val={self.config.splits[SUPPORT]}, or data.validation=none",
            )  # fmt: skip
        support = set(self.support_ids)
        ids = [key for key in split.ids if key not in support]
        return split.select(choose_val(ids, self.config.val_size, self.seed, self._folders.path(VAL)))

    @cached_property
    def _list(self) -> Path | None:
        return None if self.config.support in BUILT_IN else super()._list

    @property
    def _lists(self) -> list[Path]:
        return [] if self.config.support in BUILT_IN else list_files(self.root, self.config)

    def fingerprint(self) -> str:
        """sha256 of the lists or annotations, of all images and label maps of the splits that are there, and of the
        lists that `data.support` names."""
        return self._folders.fingerprint(self._lists)

    def _count(self, dataset: FolderDataset, index: int) -> np.ndarray:
        return class_pixels(dataset.label(index), len(self.classes)).numpy()

    def _count_all(self, dataset: FolderDataset) -> Counts:
        from slime_bench.data.look import threads

        with threads() as pool:
            found = list(pool.map(lambda index: self._count(dataset, index), range(len(dataset))))
        return np.stack(found) if found else np.zeros((0, len(self.classes)), np.int64)

    def _check_ids(self, names: Sequence[str], places: dict[str, int]) -> None:
        unknown = [name for name in names if name not in places]
        if unknown:
            raise DataError(
                "unknown support id",
                path="data.support_ids",
                found=listing(unknown),
                expected=f"ids of {self._folders.path(SUPPORT)}",
                remedy="correct `data.support_ids`; an id is a file name without its suffix",
            )


def _only(sample: Sample, label: int | None) -> Sample:
    """The sample with every foreground class but `label` made background, where there is one."""
    if label is None:
        return sample
    others = (sample.label != label) & (sample.label != IGNORE)
    return Sample(sample.id, sample.image, torch.where(others, 0, sample.label))

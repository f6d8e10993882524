"""Data sets of whole scenes as they are downloaded, such as VOC and COCO: splits by list, support sets by class."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np

from slime_bench.data.config import (
    AUTHORS_EVAL,
    AUTHORS_TRAIN,
    DRAWN,
    IN_ORDER,
    NO_SUPPORT,
    SPLITS,
    SUPPORT,
    TEST,
    VAL,
    SceneConfig,
)
from slime_bench.data.folder import FolderData
from slime_bench.data.label_maps import IGNORE, class_pixels, listing
from slime_bench.data.layouts import Pair
from slime_bench.data.manifest import file_sha256, files_sha256, text_sha256
from slime_bench.data.reading import FolderDataset, Sample
from slime_bench.data.support import (
    Counts,
    Example,
    authors_support,
    check_ids,
    draw_per_class,
    permuted,
    read_list,
)
from slime_bench.data.verify import processors
from slime_bench.errors import ConfigError, DataError

MOST_RUNS = 1000
"""Largest seed for which the choice of the second paper's code is repeated."""


class SceneData(FolderData):
    """A data set whose files lie in common folders; splits of one name are one. See `SceneConfig`.

    Subclasses say where files lie and read a split by its name.
    """

    Config = SceneConfig
    config: SceneConfig
    built_in = (DRAWN, IN_ORDER, AUTHORS_EVAL, AUTHORS_TRAIN, NO_SUPPORT)

    @abstractmethod
    def index_file(self, name: str) -> Path:
        """The file that says which images the split called `name` has."""

    def is_there(self, name: str) -> bool:
        """Whether the split called `name` is there at all."""
        return self.index_file(name).is_file()

    @abstractmethod
    def read_split(self, name: str) -> FolderDataset:
        """All samples of the split called `name`, in its order; raises DataError where it cannot."""

    def paired(self, ids: Sequence[str], source: Path, files: Mapping[Path, Mapping[str, Path]]) -> list[Pair]:
        """The samples `ids` that `source` names; DataError for a file that is not there, or no ids. `files`: of the
        folder of the images and of that of the labels, its files by id."""
        for folder, found in files.items():
            missing = [each for each in ids if each not in found]
            if missing or not ids:
                raise DataError(
                    f"{len(missing)} annotated image(s) have no file in {folder.name}"
                    if missing else "no image is annotated",
                    path=folder if missing else source, found=f"no image {listing(missing)}", remedy=self.how_to_get(),
                    expected=f"a file for each of the {len(ids)} ids of {source}",
                )  # fmt: skip
        images, labels = files.values()
        return [Pair(each, images[each], labels[each]) for each in ids]

    def candidates(self, dataset: FolderDataset) -> list[list[int]]:
        """For each foreground class the samples that may show it; here all, as only their label maps would tell."""
        return [list(range(len(dataset))) for _ in self.classes[1:]]

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
        chosen = {"support": self.config.support} if self.config.support in (AUTHORS_EVAL, AUTHORS_TRAIN) else {}
        return chosen | self.limited()

    @cached_property
    def support_ids(self) -> list[str]:
        """The ids of the support set, class by class; by `authors_eval` and `authors_train` one may come twice.
        DataError: fewer images of a class than `shots`, or an unknown id."""
        ids = self._source.ids
        return [ids[each.index] for each in self._examples]

    @cached_property
    def support(self) -> list[Sample]:
        source = self._source
        return [_only(source[each.index], each.only) for each in self._examples]

    @cached_property
    def test(self) -> FolderDataset:
        """The images that are tested, in order of their list; see `within_limit`."""
        whole = self.split(TEST)
        if self.config.support != AUTHORS_EVAL:
            return self.within_limit(whole)
        left = whole.ids
        if self.shots > 0:  # without supports the code tests all images
            taken = {each.index for each in self._examples if each.only is None}
            shown = (self._source_counts[:, 1:] > 0).sum(1) > 0
            left = [key for index, key in enumerate(left) if shown[index] and index not in taken]
        return self.within_limit(whole.select(left))

    @cached_property
    def val(self) -> FolderDataset:
        if self.split_path(VAL) == self.split_path(TEST):
            raise ConfigError(
                "validation on the test images", path="data.splits.val", found=self.config.splits[VAL],
                expected="another list than that of the test split",
                remedy=f"data.splits.val={self.config.splits[SUPPORT]}, or data.validation=none",
            )  # fmt: skip
        return super().val

    # --- the files

    def split_path(self, split: str) -> Path:
        """The file that says which images belong to a split, which may not be there."""
        return self.index_file(self.config.splits[split])

    def split(self, name: str) -> FolderDataset:
        """The samples of a split within its limit."""
        listed = self.config.splits[name]
        if listed not in self._read:
            self._read[listed] = self.read_split(listed)
        whole, limit = self._read[listed], None
        if name == TEST and self.config.support != AUTHORS_EVAL:  # whose code cuts what is left
            limit = self.config.test_limit
        elif name == SUPPORT or (name == VAL and not self._own_name(VAL)):
            limit = self.config.max_pool_images
        return whole if limit is None or limit >= len(whole) else whole.select(whole.ids[:limit])

    def fingerprint(self) -> str:
        """sha256 of the lists or annotations, of all images and label maps of the splits that are there, and of the
        lists that `data.support` names."""
        parts = [f"{split}={name}" for split, name in sorted(self.config.splits.items())]
        for name in sorted(set(self.config.splits.values())):
            if not self.is_there(name):
                continue
            found = self.split(next(each for each in SPLITS if self.config.splits[each] == name))
            index = self.index_file(name)
            files = {file for pair in found.pairs for file in (pair.image, pair.label)} - {index}
            said = file_sha256(index) if index.is_file() else ""
            parts.append(f"{name} {said} {files_sha256(files)}")
        return text_sha256([*parts, *(f"{path.name} {file_sha256(path)}" for path in self._lists)])

    @cached_property
    def _read(self) -> dict[str, FolderDataset]:
        """The splits that were read, by the names of their lists."""
        return {}

    def _own_name(self, split: str) -> bool:
        """Whether no split before this one has the same list."""
        return self.config.splits[split] not in [self.config.splits[each] for each in SPLITS[: SPLITS.index(split)]]

    @property
    def _source(self) -> FolderDataset:
        """What support images come from."""
        return self.split(TEST) if self.config.support == AUTHORS_EVAL else self.pool

    @cached_property
    def _source_counts(self) -> Counts:
        """Pixels of each class in every image of `_source`, [N,K]."""
        source = self._source
        with ThreadPoolExecutor(processors()) as pool:
            found = list(pool.map(partial(self._count, source), range(len(source))))
        return np.stack(found) if found else np.zeros((0, len(self.classes)), np.int64)

    def _count(self, dataset: FolderDataset, index: int) -> Counts:
        return class_pixels(dataset.label(index), len(self.classes))

    # --- the choice of the support set

    @cached_property
    def _examples(self) -> list[Example]:
        config = self.config
        if self.shots == 0 or (config.support == NO_SUPPORT and config.support_ids is None):
            return []
        ids, names = self._source.ids, config.support_ids
        if names is not None:
            check_ids(names, ids, self.split_path(SUPPORT), "correct `data.support_ids`")
        elif self._list is not None:
            names = read_list(self._list, ids)
        if names is not None:
            places = {key: index for index, key in enumerate(ids)}
            return [Example(places[name]) for name in names]
        if config.support not in (AUTHORS_EVAL, AUTHORS_TRAIN):
            return self._drawn()
        if self.seed > MOST_RUNS:  # every run before it has to be drawn first
            raise ConfigError(
                "the seed is the number of the authors' run here", path="seed", found=self.seed,
                expected=f"0 to {MOST_RUNS}", remedy="e.g. seed=0,1,2,3,4, or data.support=drawn",
            )  # fmt: skip
        path = self.split_path(TEST if config.support == AUTHORS_EVAL else SUPPORT)
        return authors_support(self._source_counts, self.shots, self.seed, config.min_pixels, self.classes, str(path))

    def _drawn(self) -> list[Example]:
        counts = cache(partial(self._count, self.pool))

        def order(count: int) -> Sequence[int]:
            return range(count) if self.config.support == IN_ORDER else permuted(count, self.seed)

        chosen = draw_per_class(self.candidates(self.pool), counts, self.shots, self.config.min_pixels, order)
        found = zip(self.classes[1:], chosen, strict=True)
        few = [f"{name} ({len(own)})" for name, own in found if len(own) < self.shots]
        if few:
            raise DataError(
                "more shots than images of a class", path=self.split_path(SUPPORT),
                found=f"shots={self.shots}; too few of {listing(few)}",
                expected=f"at least {self.shots} image(s) of each class among {len(self.pool)}",
                remedy="lower `shots`, raise `data.max_pool_images`, or add images to the support list",
            )  # fmt: skip
        return [Example(index) for index in dict.fromkeys(index for own in chosen for index in own)]


def _only(sample: Sample, label: int | None) -> Sample:
    """The sample with every foreground class but `label` made background, where there is one."""
    if label is None:
        return sample
    others = (sample.label != label) & (sample.label != IGNORE)
    return Sample(sample.id, sample.image, np.where(others, 0, sample.label))

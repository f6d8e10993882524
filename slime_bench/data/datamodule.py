"""Support, validation and test batches of one trial; every choice in them is a function of (config, shots, seed)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from slime_bench.data.augment import Augmentation, augment
from slime_bench.data.checks import (
    MANIFEST,
    check_support,
    class_pixels,
    file_sha256,
    folder_sha256,
    verify_dataset,
)
from slime_bench.data.fit import FITS, RESIZES, fit_image, fit_sample
from slime_bench.data.folder import FolderDataset, ImageFolder, Sample, listing
from slime_bench.data.labels import nearest, validate_classes
from slime_bench.data.sampler import Key, SupportBatchSampler, SupportSampler
from slime_bench.errors import ConfigError, DataError, SlimeBenchError
from slime_bench.seeding import generator

SUPPORT, VAL, TEST = "support", "val", "test"
SPLITS = (SUPPORT, VAL, TEST)
VALIDATIONS = ("auto", "paper", "support", "val", "none")

Batch = dict[str, Any]
"""image float32 [B,3,S,S] RGB in [0,1]; label int64 [B,S,S] (255 = ignore, also padding); id list of B str; epoch int64
[B] (0 outside training)."""

_log = logging.getLogger(__name__)


@dataclass
class DataConfig:
    """Settings of a folder data set.

    Args:
        name: the data set's name in tables and folder names.
        root: folder that holds `support/`, `val/` and `test/`, each with `images/` and `labels/`.
        classes: class names in label order, `background` first.
        subject: what the pictures show; chooses the table's columns.
        image_size: side S; images of another size are brought to S x S.
        fit: how: `squash` (stretched, as in the papers) or `pad` (the longer side becomes S, the rest is black and
            ignored); see `slime_bench.data.fit`.
        resize: `antialias` (PIL's bilinear, which averages when it shrinks) or `opencv` (the reference's INTER_LINEAR
            for images and INTER_NEAREST for label maps).
        batch_size: images per validation and test batch.
        train_batch_size: images per training step; the paper's is 1.
        num_workers: loader processes; does not change any number.
        passes_per_epoch: passes over the support set per Lightning epoch; does not change any training item.
        augment: how training images are varied.
        support_ids: fixes the support set: its first `shots` ids are taken. null = drawn from the pool with the seed.
        require_all_classes: the first support image (the whole support set of a 1-shot trial) shows as many classes as
            any image of the pool does, as a class that is never seen cannot be learnt.
        min_pixels: pixels a class needs to count as shown.
        validation: `support` (the unaugmented support images), `val` (the validation split), `none`,
            or one that depends on the shots: `auto`: `support` for one shot as in the reference, `val` otherwise;
            `paper`: `none` for one shot, whose last embeddings are used, `val` otherwise.

    Raises:
        ConfigError: a value outside its range, or a bad class list.
    """

    name: str
    root: str
    classes: list[str]
    subject: str = "any"
    image_size: int = 512
    fit: str = "squash"
    resize: str = "antialias"
    batch_size: int = 10
    train_batch_size: int = 1
    num_workers: int = 0
    passes_per_epoch: int = 1
    augment: Augmentation = field(default_factory=Augmentation)
    support_ids: list[str] | None = None
    require_all_classes: bool = True
    min_pixels: int = 12
    validation: str = "auto"

    def __post_init__(self) -> None:
        validate_classes(self.classes)
        for name, least in (
            ("image_size", 8),
            ("batch_size", 1),
            ("train_batch_size", 1),
            ("num_workers", 0),
            ("passes_per_epoch", 1),
            ("min_pixels", 1),
        ):
            if getattr(self, name) < least:
                raise _config_error(name, getattr(self, name), f"a whole number of at least {least}")
        for name, options in (("fit", FITS), ("resize", RESIZES), ("validation", VALIDATIONS)):
            if getattr(self, name) not in options:
                raise _config_error(name, getattr(self, name), " or ".join(options))
        repeated = sorted({key for key in self.support_ids or [] if (self.support_ids or []).count(key) > 1})
        if repeated:
            raise _config_error("support_ids", f"twice: {listing(repeated)}", "every id once")


class SegmentationDataModule(lightning.LightningDataModule):
    """A folder data set as Lightning data module.

    Args:
        config: see `DataConfig`.
        shots: number of support images, k.
        seed: decides the support set, the order and the augmentation.

    Raises:
        ConfigError: `shots` below 1.
    """

    Config = DataConfig

    def __init__(self, config: DataConfig, shots: int, seed: int) -> None:
        super().__init__()
        if shots < 1:
            raise ConfigError(
                "a support set needs an image", path="shots", found=shots, expected="1 or more", remedy="e.g. shots=1"
            )
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
        if self.config.validation not in ("auto", "paper"):
            return self.config.validation
        if self.shots > 1:
            return "val"
        return "support" if self.config.validation == "auto" else "none"

    @cached_property
    def support_ids(self) -> list[str]:
        """The ids of the support set, in order of the draw: a 1-shot trial's image is the first of a 10-shot trial's.

        Raises:
            DataError: `shots` is larger than the pool, or an id of `config.support_ids` is not in it.
        """
        return choose_support(self._pool, self.shots, self.seed, self.config)

    @cached_property
    def missing_classes(self) -> list[str]:
        """Classes that the support set does not show; a warning names them when the support set is first read.

        Raises:
            DataError: the support set has no foreground at all.
        """
        return check_support(self._support, self.classes)

    def fingerprint(self) -> str:
        """sha256 of the data: of the manifest where there is one, else of names, sizes and contents of all files."""
        manifest = self.root / MANIFEST
        if manifest.is_file():
            return file_sha256(manifest)
        present = [name for name in SPLITS if (self.root / name).is_dir()]
        pairs = [pair for name in present for pair in self._split(name).pairs]
        return folder_sha256(self.root, [file for pair in pairs for file in (pair.image, pair.label)])

    def prepare_data(self) -> None:
        """Check that the data are there; data sets that can be made or fetched do so here.

        Raises:
            DataError: the root folder is missing.
        """
        if not self.root.is_dir():
            raise DataError(
                f"the data set `{self.config.name}` is not there",
                path=self.root,
                found="nothing",
                expected=f"a folder with {', '.join(f'{name}/' for name in SPLITS)}",
                remedy="prepare the data as README.md says under `Real data`, or say where they are: "
                "data_root=<folder> or the variable SLIME_BENCH_DATA",
            )

    def setup(self, stage: str | None = None) -> None:
        """Check the files that `stage` needs and the support set, so that errors come before any training."""
        if stage in (None, "fit", "validate"):
            _ = self.missing_classes
            if self.validation == "val":
                _ = self._val
        if stage in (None, "test"):
            _ = self._test

    def train_dataloader(self) -> DataLoader[Any]:
        """Augmented support batches; one epoch is `passes_per_epoch` passes over the support set."""
        sampler = SupportSampler(len(self._support), self.seed, self.config.passes_per_epoch)
        dataset = SupportDataset(self._support, self.config, self.seed)
        return self._loader(dataset, batch_sampler=SupportBatchSampler(sampler, self.config.train_batch_size))

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Unaugmented batches of the support images or of the validation split; an empty list for `none`."""
        if self.validation == "none":
            return []
        samples: Sequence[Sample] | FolderDataset = self._support if self.validation == "support" else self._val
        return self._loader(QueryDataset(samples, self.config), batch_size=self.config.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Unaugmented batches of the test split, in order of the id."""
        return self._loader(QueryDataset(self._test, self.config), batch_size=self.config.batch_size)

    def image_dataloader(self, folder: str | Path) -> DataLoader[Any]:
        """Batches of any folder of images: `image` and `id` as in `Batch`, and `size` int64 [B,2], the files' (H, W).

        Score maps go back to that size by `slime_bench.data.fit.unfit(maps, size, config.fit)`.

        Raises:
            DataError: the folder is missing or holds no image.
        """
        return self._loader(ImageDataset(ImageFolder(folder), self.config), batch_size=self.config.batch_size)

    @cached_property
    def _pool(self) -> FolderDataset:
        return self._split(SUPPORT)

    @cached_property
    def _val(self) -> FolderDataset:
        return self._verified(VAL)

    @cached_property
    def _test(self) -> FolderDataset:
        return self._verified(TEST)

    @cached_property
    def _support(self) -> list[Sample]:
        index = {key: position for position, key in enumerate(self._pool.ids)}
        return [self._pool[index[key]] for key in self.support_ids]

    def _verified(self, name: str) -> FolderDataset:
        """A split whose files are known to be good: a bad test mask must come to light before an hour of training.

        A manifest vouches for its files; without one every file is decoded.
        """
        split = self._split(name)
        if not (self.root / MANIFEST).is_file():
            verify_dataset(split)
        return split

    def _split(self, name: str) -> FolderDataset:
        return FolderDataset(self.root / name, self.classes)

    def _loader(self, dataset: Dataset[Any], **arguments: Any) -> DataLoader[Any]:
        workers = self.config.num_workers
        return CheckedLoader(
            CarryingDataset(dataset),
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=collate,
            # The loader draws a base seed per epoch; without its own generator that draw would come from, and shift,
            # the global stream.
            generator=generator(self.seed, "loader"),
            **arguments,
        )


def choose_support(pool: FolderDataset, shots: int, seed: int, config: DataConfig) -> list[str]:
    """The support ids of a trial.

    One permutation of the pool is drawn from (seed, "support"), whatever `shots` is, so that support sets are nested.
    With `require_all_classes` the first image in this order that shows the most classes moves to the front.

    Raises:
        DataError: `shots` is larger than the pool or than `support_ids`, or an id is unknown.
    """
    ids = pool.ids
    if config.support_ids is not None:
        unknown = [key for key in config.support_ids if key not in set(ids)]
        if unknown:
            raise DataError(
                "unknown support id",
                path=pool.folder,
                found=listing(unknown),
                expected=f"ids of the pool, the nearest being {listing(nearest(unknown[0], ids) or ids)}",
                remedy="correct `data.support_ids`; an id is a file name without its suffix",
            )
    available = ids if config.support_ids is None else config.support_ids
    if shots > len(available):
        raise DataError(
            "more shots than support images",
            path=pool.folder if config.support_ids is None else "data.support_ids",
            found=f"shots={shots}",
            expected=f"at most {len(available)}",
            remedy="lower `shots`, or add images to the support pool",
        )
    if config.support_ids is not None:
        return list(config.support_ids[:shots])
    order = torch.randperm(len(ids), generator=generator(seed, "support")).tolist()
    if config.require_all_classes:
        first = _most_classes(pool, order, config.min_pixels)
        order = [first, *(index for index in order if index != first)]
    return [ids[index] for index in order[:shots]]


def _most_classes(pool: FolderDataset, order: Sequence[int], min_pixels: int) -> int:
    best, most = order[0], -1
    for index in order:
        shown = int((class_pixels(pool.label(index), len(pool.classes)) >= min_pixels).sum())
        if shown > most:
            best, most = index, shown
        if most == len(pool.classes):
            break
    return best


class SupportDataset(Dataset[Batch]):
    """Augmented support items, keyed by (index, logical epoch); the few images stay decoded in memory."""

    def __init__(self, samples: Sequence[Sample], config: DataConfig, seed: int) -> None:
        self.samples = [fit_sample(sample, config.image_size, config.resize, config.fit) for sample in samples]
        self.augmentation = config.augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> Batch:
        index, epoch = key
        sample = self.samples[index]
        keyed = generator(self.seed, "augment", sample.id, epoch)
        image, label = augment(sample.image.float() / 255, sample.label, self.augmentation, keyed)
        return {"image": image, "label": label, "id": sample.id, "epoch": epoch}


class QueryDataset(Dataset[Batch]):
    """Unaugmented items, decoded on demand; `epoch` is 0."""

    def __init__(self, samples: Sequence[Sample] | FolderDataset, config: DataConfig) -> None:
        self.samples = samples
        self.size = config.image_size
        self.mode = config.resize
        self.fit = config.fit

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Batch:
        sample = fit_sample(self.samples[index], self.size, self.mode, self.fit)
        return {"image": sample.image.float() / 255, "label": sample.label, "id": sample.id, "epoch": 0}


class ImageDataset(Dataset[Batch]):
    """Images without labels, with the size of their file so that predictions can be brought back to it."""

    def __init__(self, pictures: ImageFolder, config: DataConfig) -> None:
        self.pictures = pictures
        self.size = config.image_size
        self.mode = config.resize
        self.fit = config.fit

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Batch:
        picture = self.pictures[index]
        image = fit_image(picture.image, self.size, self.mode, self.fit).float() / 255
        return {"image": image, "id": picture.id, "size": torch.tensor(picture.image.shape[-2:])}


class CarryingDataset(Dataset[Any]):
    """Returns typed errors instead of raising them, for `CheckedLoader`."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except SlimeBenchError as error:
            return error


def collate(items: list[Any]) -> Any:
    """A batch of the items, or the first error among them."""
    for item in items:
        if isinstance(item, SlimeBenchError):
            return item
    return default_collate(items)


class CheckedLoader(DataLoader[Any]):
    """Raises a worker's typed error as it was.

    torch re-raises a worker's exception as `type(error)(traceback)`: the type survives, but path and remedy are
    attributes no more and the message is a traceback. Carried through the queue as a value, it stays whole.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        for batch in batches:
            if isinstance(batch, SlimeBenchError):
                # The traceback keeps the iterator alive until the garbage collector finds it, and closes its queues
                # first: each worker would then be waited for in vain, 5 s long.
                if hasattr(batches, "_shutdown_workers"):
                    batches._shutdown_workers()
                    self._iterator = None
                raise batch
            yield batch


def _config_error(name: str, found: object, expected: str) -> ConfigError:
    return ConfigError(
        f"bad data setting `{name}`",
        path=f"data.{name}",
        found=found,
        expected=expected,
        remedy="correct it in the data set's YAML or on the command line",
    )

"""Batches: items of the support set, of queries and of plain images, and a loader that keeps typed errors whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from slime_bench.data.augment import augment
from slime_bench.data.config import DataConfig
from slime_bench.data.fit import fit_image, fit_sample
from slime_bench.data.folder import FolderDataset, ImageFolder, Sample
from slime_bench.data.sampler import Key
from slime_bench.errors import SlimeBenchError
from slime_bench.seeding import generator

Batch = dict[str, Any]
"""image float32 [B,3,S,S] RGB in [0,1]; label int64 [B,S,S] (255 = ignore, also padding); id list of B str; epoch int64
[B] (0 outside training)."""


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

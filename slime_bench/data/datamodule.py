"""Batches of a data set for Lightning: items of the support set and of queries, and their order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import lightning
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, default_convert

from slime_bench.data.augment import augment
from slime_bench.data.config import DRAWN, IN_MEMORY, DataConfig
from slime_bench.data.reading import Sample
from slime_bench.data.transforms import Fitted, fit_sample
from slime_bench.errors import ConfigError, SlimeBenchError
from slime_bench.seeding import generator

if TYPE_CHECKING:
    from slime_bench.data.folder import FolderData

Batch = dict[str, Any]
"""image float32 [B,3,S,S] RGB in [0,1]; label int64 [B,S,S] (255 = ignore, also padding); id list of B str; epoch int64
[B] (0 outside training)."""


class SegmentationDataModule(lightning.LightningDataModule):
    """The batches of one trial.

    Args:
        data: the data set, with the trial's shots and seed.

    Attributes:
        support_group: None for augmented training batches in random order; otherwise so many support images a batch,
            as they are and in the order of the draw.
        train_batch: images of an augmented training batch; a method's `prepare` may ask for its own number.
        first_batch: batches that the first epoch of training leaves out; above 0 where a trial is resumed within one.
    """

    support_group: int | None = None
    first_batch: int = 0

    def __init__(self, data: FolderData) -> None:
        super().__init__()
        self.data = data
        self.config = data.config
        self.train_batch: int = data.config.train_batch_size

    @property
    def shots(self) -> int:
        """Support images, or support images of each class."""
        return self.data.shots

    @property
    def support_ids(self) -> list[str]:
        """See `FolderData.support_ids`."""
        return self.data.support_ids

    def setup(self, stage: str | None = None) -> None:
        """Choose and read what `stage` needs, so that errors come before any training."""
        if stage in (None, "fit", "validate") and self.data.shots > 0:
            _ = self.data.missing_classes
            if self.data.validation == "val":
                _ = self.data.val
        if stage in (None, "test"):
            _ = self.data.test

    def train_dataloader(self) -> DataLoader[Any]:
        """Support batches, see `support_group`; one epoch is `passes_per_epoch` passes over the support set.
        ConfigError: there are no support images."""
        support, seed, passes = self.data.support, self.data.seed, self.config.passes_per_epoch
        if not support:
            raise ConfigError(
                "there is nothing to learn from", path="data.support",
                found=f"{self.config.support}, shots={self.data.shots}",
                expected=f"{DRAWN}, or another choice that takes images, and shots",
                remedy=f"e.g. data.support={DRAWN} shots=1",
            )  # fmt: skip
        if self.support_group is not None:
            plain = SupportBatches(len(support), self.support_group, passes, None, self.first_batch)
            return self._loader(Batches(support, self.config), batch_sampler=plain)
        batches = SupportBatches(len(support), self.train_batch, passes, seed, self.first_batch)
        return self._loader(Batches(support, self.config, seed), batch_sampler=batches)

    def support_dataloader(self) -> DataLoader[Any]:
        """The support images as they are, in the order of the draw."""
        return self._queries(self.data.support)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Unaugmented batches of the support images or of the validation split; an empty list for `none`."""
        if self.data.validation == "none":
            return []
        return self._queries(self.data.support if self.data.validation == "support" else self.data.val)

    def test_dataloader(self) -> DataLoader[Any]:
        """Unaugmented batches of the test split, in order of the id."""
        return self._queries(self.data.test)

    def unlabelled_dataloader(self, limit: int | None) -> DataLoader[Any]:
        """Batches of images whose labels are not to be used; see `FolderData.unlabelled`."""
        return self._queries(self.data.unlabelled(limit))

    def _queries(self, samples: Sequence[Sample]) -> DataLoader[Any]:
        return self._loader(Batches(samples, self.config), batch_size=self.config.batch_size)

    def _loader(self, batches: Batches, **arguments: Any) -> DataLoader[Any]:
        # On a GPU the next images are read, and put where it fetches them by itself, while it computes. On a CPU other
        # processes would only take its cores.
        on_gpu = torch.cuda.is_available()
        workers = self.config.num_workers if self.config.num_workers is not None else (2 if on_gpu else 0)
        return CheckedLoader(
            batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=on_gpu,
            collate_fn=default_convert,  # which leaves batches and errors as they are
            # The loader draws a base seed per epoch; without its own generator that draw would come from, and shift,
            # the global stream.
            generator=generator(self.data.seed, "loader"),
            **arguments,
        )


# --- items


class Batches(Dataset[Batch]):
    """Batches of samples by their keys: an index for a sample as it is, or (index, logical epoch) for a variation that
    depends on these and the seed alone.

    Typed errors come as batches: torch raises a worker's exception again as `type(error)(traceback)`, without path and
    remedy. `CheckedLoader` raises them in the process that the user sees.

    Args:
        seed: of the variations; up to `IN_MEMORY` samples then stay decoded. None: samples as they are.
    """

    def __init__(self, samples: Sequence[Sample], config: DataConfig, seed: int | None = None) -> None:
        self.samples, self.config, self.seed = samples, config, seed
        keeps = seed is not None and len(samples) <= IN_MEMORY
        self._fitted = [self._fit(sample) for sample in samples] if keeps else []

    def _fit(self, sample: Sample) -> Fitted:
        return fit_sample(sample, self.config.image_size, self.config.resize, self.config.fit)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, keys: Sequence[Any]) -> Batch | SlimeBenchError:
        try:
            return dict(default_collate([self[key] for key in keys]))
        except SlimeBenchError as error:
            return error

    def __getitem__(self, key: Any) -> Batch:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        sample = self._fitted[index] if self._fitted else self._fit(self.samples[index])
        image, label = sample.image.float() / 255, sample.label
        if self.seed is not None:
            image, label = augment(image, label, self.config.augment, generator(self.seed, "augment", sample.id, epoch))
        return {"image": image, "label": label, "id": sample.id, "epoch": epoch}


class CheckedLoader(DataLoader[Any]):
    """Raises the typed errors that `Batches` gives."""

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


# --- order


class SupportBatches(Sampler[list[Any]]):
    """Batches of passes over the support set, which never reach over the end of a pass; its last may be short.

    One Lightning epoch covers `passes` passes, because an epoch of one item costs more in the loop around it than in
    the step itself; logical epoch = Lightning epoch x passes + pass, so that the sequence does not depend on `passes`.
    Lightning calls `set_epoch` of the attribute `sampler` before every epoch, also after a resume.

    Args:
        count: size of the support set, at least 1. size: of a batch. passes: passes per Lightning epoch, at least 1.
        seed: pass p is shuffled by (seed, "order", p), and an item is (index, logical epoch); None: the items are the
            indices, in their order.
        first: so many batches, seen before a resume, are left out of the first iteration. The length stays that of a
            whole one, as Lightning counts the batches of an epoch that is resumed from where it stopped.
    """

    def __init__(self, count: int, size: int, passes: int, seed: int | None, first: int = 0) -> None:
        self.count, self.size, self.passes, self.seed = count, size, passes, seed
        self.sampler = self
        self.epoch = 0
        self._first = first

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at Lightning epoch `epoch`, counted from 0."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Any]]:
        # Settled when the first batch is asked for: a loader with workers opens two iterators and uses the second.
        first, self._first = self._first, 0
        yield from itertools.islice(self._batches(), first, None)

    def _batches(self) -> Iterator[list[Any]]:
        for number in range(self.epoch * self.passes, (self.epoch + 1) * self.passes):
            items: list[Any] = list(range(self.count))
            if self.seed is not None:
                order = torch.randperm(self.count, generator=generator(self.seed, "order", number))
                items = [(index, number) for index in order.tolist()]
            for start in range(0, self.count, self.size):
                yield items[start : start + self.size]

    def __len__(self) -> int:
        return self.passes * -(-self.count // self.size)

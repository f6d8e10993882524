"""Order of the support samples: a function of seed and epoch only."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler

from slime_bench.seeding import generator

Key = tuple[int, int]
"""(index into the support set, logical epoch): all that a training item depends on."""


class SupportSampler(Sampler[Key]):
    """Shuffled passes over the support set, as (index, logical epoch) pairs.

    One Lightning epoch covers `passes` passes, because an epoch of one item costs more in the loop around it than in
    the step itself; logical epoch = Lightning epoch x passes + pass, so that the sequence does not depend on `passes`.
    Lightning calls `set_epoch` before every epoch, also after a resume. Pass p is shuffled by (seed, "order", p).

    Args:
        num_samples: size of the support set, at least 1.
        seed: the trial's seed.
        passes: passes per Lightning epoch, at least 1.
    """

    def __init__(self, num_samples: int, seed: int, passes: int = 1) -> None:
        if num_samples < 1 or passes < 1:
            raise ValueError(f"num_samples and passes are at least 1, found {num_samples} and {passes}")
        self.num_samples = num_samples
        self.seed = seed
        self.passes = passes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at Lightning epoch `epoch`, counted from 0."""
        self.epoch = epoch

    def order(self, logical_epoch: int) -> list[int]:
        """The permutation of 0..num_samples-1 for one pass."""
        keyed = generator(self.seed, "order", logical_epoch)
        return torch.randperm(self.num_samples, generator=keyed).tolist()

    def __iter__(self) -> Iterator[Key]:
        first = self.epoch * self.passes
        for logical_epoch in range(first, first + self.passes):
            for index in self.order(logical_epoch):
                yield index, logical_epoch

    def __len__(self) -> int:
        return self.num_samples * self.passes


class SupportBatchSampler(Sampler[list[Key]]):
    """Batches of a `SupportSampler` that never reach over the end of a pass; the last of a pass may be short.

    Lightning finds `set_epoch` on the attribute `sampler`.
    """

    def __init__(self, sampler: SupportSampler, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, found {batch_size}")
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = False

    def __iter__(self) -> Iterator[list[Key]]:
        batch: list[Key] = []
        for key in self.sampler:
            if batch and (len(batch) == self.batch_size or batch[-1][1] != key[1]):
                yield batch
                batch = []
            batch.append(key)
        if batch:
            yield batch

    def __len__(self) -> int:
        return self.sampler.passes * -(-self.sampler.num_samples // self.batch_size)


class ContinuedBatchSampler(Sampler[list[Any]]):
    """Another batch sampler, of which the first iteration leaves out batches that were seen before a resume.

    Its length stays that of a whole iteration, as Lightning counts the batches of an epoch that is resumed from where
    it stopped.

    Args:
        batches: the other, with a length; or a list of batches. first: how many of them are left out, at least 0.
    """

    def __init__(self, batches: Any, first: int) -> None:
        if not 0 <= first <= len(batches):
            raise ValueError(f"first is 0 to {len(batches)}, found {first}")
        self.batches = batches
        self.sampler = getattr(batches, "sampler", None)
        self._first = first

    def __iter__(self) -> Iterator[list[Any]]:
        # Settled when the first batch is asked for: a loader with workers opens two iterators and uses the second.
        first, self._first = self._first, 0
        yield from itertools.islice(self.batches, first, None)

    def __len__(self) -> int:
        return len(self.batches)

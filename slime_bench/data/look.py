"""What one sample of a data set holds, and what many of them hold together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from slime_bench.data.counts import DatasetReport, class_pixels
from slime_bench.data.folder import FolderDataset
from slime_bench.data.labels import IGNORE
from slime_bench.data.manifest import pixels_sha256
from slime_bench.data.phash import Fingerprint, fingerprint
from slime_bench.errors import SlimeBenchError

_BATCH = 64  # samples that wait for a thread at a time


@dataclass(frozen=True)
class Look:
    """What one sample holds: `counts` int64 [K], `hashes` of those of its files that the manifest lists."""

    id: str
    error: SlimeBenchError | None = None
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    ignored: int = 0
    size: str = ""
    print: Fingerprint | None = None
    hashes: dict[str, str] = field(default_factory=dict)


def looks(pool: ThreadPoolExecutor, dataset: FolderDataset, root: Path, files: Mapping[str, str]) -> Iterator[Look]:
    """`look` at every sample, in their order, by the threads of `pool`."""
    indices = iter(range(len(dataset)))
    while batch := list(islice(indices, _BATCH)):
        yield from pool.map(lambda index: look(dataset, index, root, files), batch)


def look(dataset: FolderDataset, index: int, root: Path, files: Mapping[str, str]) -> Look:
    """Decode one sample; an error is kept, not raised.

    Args:
        root: folder of the data set. files: what its manifest lists.
    """
    pair = dataset.pairs[index]
    try:
        sample = dataset[index]
    except SlimeBenchError as error:
        return Look(pair.id, error)
    image = sample.image.permute(1, 2, 0).contiguous().numpy()
    hashes = {}
    for path, pixels in ((pair.image, image), (pair.label, sample.label)):
        name = relative(path, root)
        if name in files:
            hashes[name] = pixels_sha256(np.asarray(pixels, dtype=np.uint8))
    return Look(
        pair.id,
        counts=class_pixels(sample.label, len(dataset.classes)).numpy(),
        ignored=int((sample.label == IGNORE).sum()),
        size=f"{image.shape[1]}x{image.shape[0]}",
        print=fingerprint(image),
        hashes=hashes,
    )


class Tally:
    """Sums over the samples of one split that could be read; holds nothing of the single sample."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self._pixels = np.zeros(len(classes), np.int64)
        self._present = np.zeros(len(classes), np.int64)
        self._ignored = 0
        self._sizes: dict[str, int] = {}

    def add(self, found: Look) -> None:
        """Count one sample in, unless it could not be read."""
        if found.error is None:
            self._pixels += found.counts
            self._present += found.counts > 0
            self._ignored += found.ignored
            self._sizes[found.size] = self._sizes.get(found.size, 0) + 1

    def report(self) -> DatasetReport:
        return DatasetReport(
            images=sum(self._sizes.values()),
            images_with_class=dict(zip(self._classes, self._present.tolist(), strict=True)),
            pixels_of_class=dict(zip(self._classes, self._pixels.tolist(), strict=True)),
            ignored_pixels=self._ignored,
            sizes=dict(sorted(self._sizes.items())),
        )


def relative(path: Path, root: Path) -> str:
    """`path` below `root`, with forward slashes, as a manifest names it; whole where it lies elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


@contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """A pool of one thread for each processor, in which torch does not start threads of its own.

    Decoding and hashing let go of Python's lock, so that threads use all processors, and need not load torch again.
    torch is told before they start: its first call from two threads at once fails now and then in a forked process
    ("Invalid thread pool").
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(processors()) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

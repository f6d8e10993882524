"""The test of one trial on several devices of a machine: each segments a part of the images, in a process of its own.

The parts are runs of whole batches, so that every image stands in the batch that it would stand in on one device, and
the counts of all parts in a row are those of one device. What is merged are counts of every image, never averages.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from slime_bench.console import quieten
from slime_bench.errors import SlimeBenchError
from slime_bench.trial import checkpoint

_WRITTEN_BY = {"part": "of a test"}


def part_of(count: int, rank: int, world: int) -> range:
    """The batches, of `count`, that process `rank` of `world` takes: parts stand in order and differ by one at most."""
    return range(count * rank // world, count * (rank + 1) // world)


class Part(lightning.LightningDataModule):
    """The test batches of this process, whichever it is.

    Args:
        data: the trial's data module, set up.
    """

    def __init__(self, data: Any) -> None:
        super().__init__()
        self.data = data

    def test_dataloader(self) -> DataLoader[Any]:
        whole = self.data.test_dataloader()
        spread = torch.distributed.is_initialized()
        rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if spread else (0, 1)
        batches = list(whole.batch_sampler)
        own = [batches[index] for index in part_of(len(batches), rank, world)]
        return type(whole)(
            whole.dataset, batch_sampler=own, collate_fn=whole.collate_fn, num_workers=whole.num_workers,
            pin_memory=whole.pin_memory,
        )  # fmt: skip


class _HandOver(Callback):
    """Makes a process compute as the one that started it does, and leaves what it found in a file."""

    def __init__(self, folder: Path, threads: int, deterministic: bool) -> None:
        self.folder, self.threads, self.deterministic = folder, threads, deterministic

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The first of ours that runs in a new process, where the libraries have not been told to be quiet yet."""
        self.__dict__.update(state)
        quieten()

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        torch.set_num_threads(self.threads)
        torch.use_deterministic_algorithms(self.deterministic, warn_only=True)

    def on_test_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        counts, metric = pl_module.test_metric.counts(), pl_module.test_metric
        found = {
            "ids": list(pl_module.test_ids),
            "counts": [counts.intersection, counts.union, counts.present],
            "confusion": metric.confusion,
            "kept": pl_module.examples,
        }
        checkpoint.write(self.folder / f"{trainer.global_rank}.safetensors", found, _WRITTEN_BY)


def test_on(devices: int, method: Any, data: Any, settings: dict[str, Any]) -> None:
    """Test `method` on several devices; its `test_metric`, `test_ids` and `examples` are then those of one device.

    Args:
        devices: of them, at least 2; on a CPU so many processes. method: with nothing tested yet. data: its data
            module, set up. settings: of Lightning's trainer, see `fitting.trainer_settings`.

    Raises:
        SlimeBenchError: a process ended without its part.
    """
    with tempfile.TemporaryDirectory(prefix="slime-bench-test-") as name:
        folder = Path(name)
        deterministic = torch.are_deterministic_algorithms_enabled()
        threads = max(1, torch.get_num_threads() // devices) if settings["accelerator"] == "cpu" else 1
        hand_over = _HandOver(folder, threads, deterministic)
        trainer = lightning.Trainer(
            **{**settings, "devices": devices, "callbacks": [hand_over], "logger": False},
            strategy="ddp_spawn",
            use_distributed_sampler=False,  # it would repeat images until every process has as many
        )
        with _by_name():
            trainer.test(method, Part(data), verbose=False)
        take(method, [_read(folder / f"{rank}.safetensors") for rank in range(devices)])


@contextmanager
def _by_name() -> Iterator[None]:
    """Hand tensors to other processes as named shared memory: one descriptor for each is more than Python takes."""
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        yield
    finally:
        torch.multiprocessing.set_sharing_strategy(before)


def take(method: Any, parts: Sequence[dict[str, Any]]) -> None:
    """Put the parts' counts, in order, into the method's own."""
    metric = method.test_metric
    metric.reset()
    for each in parts:
        for name, counts in zip(("intersection", "union", "present"), each["counts"], strict=True):
            if len(counts):
                getattr(metric, name).append(counts)
        metric.confusion = metric.confusion + each["confusion"].to(metric.confusion.device)
    metric._update_count = len(parts)  # else torchmetrics warns that nothing was counted
    method.test_ids = [name for each in parts for name in each["ids"]]
    method.examples = [one for each in parts for one in each["kept"]][: method.keep_maps]


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] | None = checkpoint.read(path, _WRITTEN_BY)
    if found is None:
        raise SlimeBenchError(
            "a part of the test is missing", path=path, found="no result of this process", expected="one of each",
            remedy="use trainer.devices=1",
        )  # fmt: skip
    return found

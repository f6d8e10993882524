"""One trial's test images on several devices: the counts of every image are those of one device."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slime_bench.errors import DeviceError, SlimeBenchError
from slime_bench.metrics.iou import IouMetric
from slime_bench.results.result import read_result
from slime_bench.trial import sharding
from slime_bench.trial.device import check_devices
from tests.e2e.conftest import Bench

SAME = ("per_image.parquet", "confusion.json", "qualitative.npz", "state.safetensors", "curves.csv")


@given(st.integers(0, 50), st.integers(1, 9))
def test_the_parts_are_all_batches_in_order(count: int, world: int) -> None:
    parts = [sharding.part_of(count, rank, world) for rank in range(world)]
    assert [index for part in parts for index in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def drawn(pictures: int, seed: int) -> Any:
    draw = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, 3, (2, pictures, 4, 4), generator=draw)
    metric = IouMetric(3)
    if pictures:
        metric.update(*maps)
    kept = [{"image": maps[0, row].float()} for row in range(min(pictures, 2))]
    return SimpleNamespace(
        test_metric=metric, test_ids=[f"{seed}-{row}" for row in range(pictures)], examples=kept, keep_maps=2, maps=maps
    )


def part(method: Any) -> dict[str, Any]:
    counts = method.test_metric.counts()
    return {
        "ids": method.test_ids, "counts": [counts.intersection, counts.union, counts.present],
        "confusion": method.test_metric.confusion, "kept": method.examples,
    }  # fmt: skip


@pytest.mark.parametrize("sizes", [(3, 2), (1, 0), (1, 4, 2)])
def test_merged_counts_are_those_of_all_pictures(sizes: tuple[int, ...]) -> None:
    methods = [drawn(size, seed) for seed, size in enumerate(sizes)]
    merged = drawn(0, 9)
    sharding.take(merged, [part(each) for each in methods])
    expected = IouMetric(3)
    expected.update(*torch.cat([each.maps for each in methods], dim=1))
    for name in ("intersection", "union", "present"):
        assert torch.equal(getattr(merged.test_metric.counts(), name), getattr(expected.counts(), name))
    assert torch.equal(merged.test_metric.confusion, expected.confusion)
    assert merged.test_ids == [name for each in methods for name in each.test_ids]
    kept = [one["image"] for each in methods for one in each.examples][:2]
    assert all(torch.equal(ours["image"], theirs) for ours, theirs in zip(merged.examples, kept, strict=True))


def test_a_part_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SlimeBenchError, match="a part of the test is missing"):
        sharding._read(tmp_path / "1.safetensors")


@pytest.mark.slow
def test_two_processes_give_the_files_of_one(tiny_sd: Path, car_pictures: Path, tmp_path: Path) -> None:
    folders = []
    for count in (1, 2):
        bench = Bench(tiny_sd, car_pictures, tmp_path / str(count))
        outcome = bench(f"trainer.devices={count}", "trainer.threads=1")
        assert outcome.code == 0, outcome.err
        folders.append(bench.folder())
    one, two = (read_result(folder / "result.json") for folder in folders)
    assert (one.signature, one.per_class, one.conventions) == (two.signature, two.per_class, two.conventions)
    for name in SAME:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_more_gpus_than_there_are() -> None:
    with pytest.raises(DeviceError, match=r"trainer\.devices"):
        check_devices(torch.cuda.device_count() + 1, "cuda")
    check_devices(64, "cpu")

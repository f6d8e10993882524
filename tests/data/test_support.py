"""Which images a trial learns from and validates on: drawn, in order, by lists; nested; by a manifest's counts."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from slime_bench.data.config import DataConfig
from slime_bench.data.datamodule import SegmentationDataModule
from slime_bench.data.folder import FolderData
from slime_bench.data.reading import FolderDataset, Sample
from slime_bench.data.support import check_support, choose_support, choose_val, first_choices, permuted, read_list
from slime_bench.errors import ConfigError, DataError
from tests.data.conftest import Make
from tests.fixtures.twins.toy_folder import CLASSES, COMPLETE, POOL


def write_list(root: Path, name: str, *lines: str) -> Path:
    path = root / "splits" / f"{name}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def val_ids(module: SegmentationDataModule) -> list[str]:
    return [key for batch in module.val_dataloader() for key in batch["id"]]


# --- the draw


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 10**6), st.integers(0, 5))
def test_each_is_the_draw_whatever_the_number_of_shots(counts: list[int], seed: int, complete: int) -> None:
    counts = [min(count, complete) for count in counts]
    order = permuted(len(counts), seed)
    whole = sorted(order, key=lambda index: -counts[index])
    for shots in range(1, len(counts) + 1):
        assert first_choices(order, shots, "each", counts.__getitem__, complete) == whole[:shots]


@pytest.mark.parametrize("rule", ["each", "first", "none"])
def test_support_sets_are_nested_and_differ_between_seeds(make: Make, rule: str) -> None:
    for seed in range(4):
        largest = make(shots=POOL, seed=seed, require_all_classes=rule).support_ids
        assert len(set(largest)) == POOL
        for shots in (1, 3, 10):
            assert make(shots=shots, seed=seed, require_all_classes=rule).support_ids == largest[:shots]
    assert len({tuple(make(shots=5, seed=seed, require_all_classes=rule).support_ids) for seed in range(4)}) == 4


def test_each_first_and_none(make: Make) -> None:
    def ids(shots: int, seed: int, rule: str) -> list[str]:
        return make(shots=shots, seed=seed, require_all_classes=rule).support_ids

    for seed in range(6):
        assert set(ids(3, seed, "each")) == COMPLETE and set(ids(2, seed, "each")) < COMPLETE
        drawn, first, each = (ids(POOL, seed, rule) for rule in ("none", "first", "each"))
        # Apart from those in front, the order is the permutation's.
        assert first[1:] == [key for key in drawn if key != first[0]]
        assert each == [key for key in drawn if key in COMPLETE] + [key for key in drawn if key not in COMPLETE]
    assert {ids(1, seed, "first")[0] for seed in range(12)} == COMPLETE  # all of them are reachable, and no other
    assert not {ids(1, seed, "none")[0] for seed in range(12)} <= COMPLETE


def test_shots_beyond_the_pool(make: Make) -> None:
    for support in ("drawn", "in_order"):
        with pytest.raises(DataError, match="more shots than support images") as caught:
            make(shots=POOL + 1, support=support)
        assert caught.value.expected == f"at most {POOL}" and caught.value.found == f"shots={POOL + 1}"


def test_no_shots(make: Make) -> None:
    """For a method that learns nothing: no support set, no validation, all test images."""
    data = make(shots=0, validation="val")
    data.setup()
    assert data.support_ids == [] and data.data.validation == "none" and data.val_dataloader() == []
    assert len(list(data.test_dataloader())) > 0
    every = [name for batch in data.unlabelled_dataloader(None) for name in batch["id"]]
    some = [name for batch in data.unlabelled_dataloader(3) for name in batch["id"]]
    assert len(every) == POOL and len(some) == 3 and set(some) < set(every)
    other = [name for batch in make(shots=0, seed=1).unlabelled_dataloader(3) for name in batch["id"]]
    assert some == [name for batch in data.unlabelled_dataloader(3) for name in batch["id"]] != other


def test_plain_groups(make: Make) -> None:
    """Support images as they are, in the order of the draw; a group never reaches over the end of a pass."""
    data = make(shots=5, passes_per_epoch=2)
    data.support_group = 2
    groups = [batch["id"] for batch in data.train_dataloader()]
    a, b, c, d, e = data.support_ids
    assert groups == [[a, b], [c, d], [e]] * 2
    first = next(iter(data.train_dataloader()))
    again = next(iter(data.train_dataloader()))
    assert (first["image"] == again["image"]).all() and (first["label"] == again["label"]).all()


def test_fixed_support_ids(make: Make, root: Path) -> None:
    assert make(shots=2, support_ids=["s07", "s02", "s01"]).support_ids == ["s07", "s02"]
    assert make(shots=2, support_ids=["s07", "s02"], support="nothing").support_ids == ["s07", "s02"]
    with pytest.raises(DataError, match="more shots") as caught:
        make(shots=2, support_ids=["s07"])
    assert caught.value.path == "data.support_ids"
    with pytest.raises(DataError, match="unknown support id") as caught:
        make(shots=1, support_ids=["s011"])
    assert "s01" in str(caught.value.expected)
    with pytest.raises(ConfigError, match="support_ids"):
        DataConfig(name="toy", root="data", classes=CLASSES, support_ids=["a", "a"])
    pool = FolderDataset(root / "support", CLASSES)
    assert choose_support(pool, 1, 0, DataConfig(name="", root="", classes=CLASSES, support_ids=["s11"])) == ["s11"]


def test_support_with_a_missing_class(caplog: pytest.LogCaptureFixture) -> None:
    def sample(key: str, value: int) -> Sample:
        return Sample(key, np.zeros((2, 3, 3), np.uint8), np.full((2, 3), value))

    with caplog.at_level(logging.WARNING):
        assert check_support([sample("x", 1), sample("y", 0)], CLASSES) == [CLASSES[2]]
        assert CLASSES[2] in caplog.text and "x, y" in caplog.text
        caplog.clear()
        assert check_support([sample("x", 1), sample("y", 2), sample("z", 0)], CLASSES) == []
        assert not caplog.records
    with pytest.raises(DataError, match="no foreground") as caught:
        check_support([sample("x", 255), sample("y", 0)], CLASSES)
    assert "x, y" in str(caught.value.found) and caught.value.remedy


# --- counts of the manifest


def test_a_manifest_spares_the_decoding(root: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [make(shots=5, seed=seed, require_all_classes="each").support_ids for seed in range(3)]
    counts = {
        f"support/{key}": {"pixels": np.bincount(np.array(Image.open(file)).ravel(), minlength=3).tolist()}
        for key, file in ((file.stem, file) for file in sorted((root / "support" / "labels").iterdir()))
    }
    pool = FolderDataset(root / "support", CLASSES)
    monkeypatch.setattr(FolderDataset, "label", lambda *_: pytest.fail("decoded"))

    def ids(classes: list[str], seed: int) -> list[str]:
        manifest = {"version": 1, "subject": "any", "classes": classes, "files": {}, "samples": counts}
        (root / "manifest.json").write_text(json.dumps(manifest))
        config = DataConfig("toy", str(root), CLASSES, require_all_classes="each")
        return FolderData(config, shots=5, seed=seed).support_ids

    assert [ids(CLASSES, seed) for seed in range(3)] == expected
    # Counts of other classes are not trusted, nor are those of an id that is not listed.
    with pytest.raises(pytest.fail.Exception, match="decoded"):
        ids([*CLASSES, "roof"], 0)
    known = {key: [0, 20, 20] for key in pool.ids[1:]}
    config = DataConfig("toy", str(root), CLASSES, require_all_classes="each")
    with pytest.raises(pytest.fail.Exception, match="decoded"):
        choose_support(pool, POOL, 0, config, counted=known)


# --- lists


def test_a_named_list_may_name_the_whole_train_side(root: Path, make: Make) -> None:
    write_list(root, "lab-2", "# two ids", "v02  # the first", "", "s01")
    data = make(shots=2, support="lab")
    assert data.support_ids == ["v02", "s01"]
    assert {key for batch in data.train_dataloader() for key in batch["id"]} == {"v02", "s01"}
    assert val_ids(data) == ["v00", "v01", "v03"]  # what is left: no image is learnt from and validated on
    assert val_ids(make(shots=2, support="lab", val_size=3)) == ["v00", "v01", "v03"]
    # A list of validation images is taken whole and in its order, from the whole train side too.
    write_list(root, "lab-val", "s05", "v01")
    data = make(shots=2, support="lab", val_size=1)
    assert val_ids(data) == ["s05", "v01"]
    write_list(root, "lab-1", "v00")
    one = make(shots=1, support="lab")
    assert one.data.validation == "support" and val_ids(one) == ["v00"]
    # Without a validation split the lists name the pool alone.
    shutil.rmtree(root / "val")
    write_list(root, "lab-1", "s08")
    assert make(shots=1, support="lab").support_ids == ["s08"]


@pytest.mark.parametrize(
    ("lines", "words", "found"),
    [
        (["s01"], "another length", "1 ids"),
        (["s01", "s01"], "names an id twice", "s01"),
        (["s01", "t00"], "unknown support id", "t00"),  # no support image from the test split
    ],
)
def test_bad_lists(root: Path, make: Make, lines: list[str], words: str, found: str) -> None:
    path = write_list(root, "lab-2", *lines)
    with pytest.raises(DataError, match=words) as caught:
        make(shots=2, support="lab")
    assert caught.value.path == path and caught.value.found == found and caught.value.remedy


def test_lists_that_are_not_there_or_not_text(root: Path, make: Make) -> None:
    write_list(root, "lab-10", "s01")
    with pytest.raises(DataError, match="no list `lab` of 2") as caught:
        make(shots=2, support="lab")
    assert caught.value.path == root / "splits" / "lab-2.txt" and caught.value.found == "the lists lab-10"
    path = root / "splits" / "lab-2.txt"
    path.write_bytes(b"s01\n\xff\xfe\n")
    with pytest.raises(DataError, match="cannot read a list"):
        make(shots=2, support="lab")


def test_lists_with_spaces_signs_and_other_alphabets(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\ufeffthe car #2\n a#1 \ncafe\u0301 # decomposed\r\n馬\n", encoding="utf-8")
    assert read_list(path, ["the car", "a#1", "caf\u00e9", "馬"]) == ["the car", "a#1", "caf\u00e9", "馬"]


def test_an_id_of_both_train_folders(root: Path, make: Make) -> None:
    write_list(root, "lab-1", "s01")
    for kind in ("images", "labels"):
        shutil.copy(root / "support" / kind / "s04.png", root / "val" / kind / "s04.png")
    with pytest.raises(DataError, match="stands for two images") as caught:
        make(shots=1, support="lab")
    assert caught.value.found == "s04"


# --- validation images


def test_too_few_validation_images(make: Make) -> None:
    two = val_ids(make(shots=2, val_size=2))
    assert two == val_ids(make(shots=10, val_size=2)) and len(two) == 2
    with pytest.raises(DataError, match="too few validation images") as caught:
        make(shots=2, val_size=5)
    assert caught.value.found == "4 that are not support images" and caught.value.expected == "at least 5"


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(0, 10**6), st.data())
def test_validation_sets_are_nested(count: int, seed: int, data: st.DataObject) -> None:
    ids = [f"v{index:02d}" for index in range(count)]
    size = data.draw(st.integers(1, count))
    chosen = choose_val(ids, size, seed, Path("val"))
    assert len(chosen) == size and chosen == sorted(chosen)
    assert set(chosen) <= set(choose_val(ids, min(count, size + 1), seed, Path("val")))
    assert choose_val(ids, None, seed, Path("val")) == ids


# --- fingerprint


def test_the_lists_are_part_of_the_data(root: Path) -> None:
    def fingerprint(shots: int = 1, seed: int = 0, **chosen: Any) -> str:
        return FolderData(DataConfig("toy", str(root), CLASSES, **chosen), shots, seed).fingerprint()

    plain = fingerprint()
    path = write_list(root, "lab-1", "s01")
    first = fingerprint(support="lab")
    assert plain == fingerprint() == fingerprint(support="in_order") == fingerprint(support_ids=["s01"]) != first
    # The trials of one table share it.
    assert {fingerprint(shots, seed, support="lab") for shots in (1, 10) for seed in (0, 1)} == {first}
    path.write_text("s02\n")
    lab = fingerprint(support="lab")
    assert lab not in (plain, first)
    write_list(root, "lab-val", "v01")
    assert fingerprint(support="lab") != lab
    (root / "manifest.json").write_text("{}")
    assert fingerprint(support="in_order") != plain
    assert fingerprint(support="lab") != fingerprint()

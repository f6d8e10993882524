"""PASCAL VOC 2012 on a twin of its raw layout: what is read, k images of each class, the authors' choice, bad files."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from slime_bench.config.compose import plan
from slime_bench.config.schema import build_part, read_part
from slime_bench.data.support import draw_per_class
from slime_bench.errors import ConfigError, DataError
from tests.fixtures.twins.voc2012 import CLASSES, SIZE, Scene, alone, label_map, write_voc_twin

BASE = "VOCdevkit/VOC2012"
LISTS = f"{BASE}/ImageSets/Segmentation"
LABELS = range(1, CLASSES)


@cache
def composed() -> DictConfig:
    """The file conf/data/voc2012.yaml in a whole configuration; composing it takes longer than most tests here."""
    return OmegaConf.create(plan(["data=voc2012"]).trials[0].plain["data"])


def voc(root: Path, *overrides: str, shots: int = 1, seed: int = 0) -> Any:
    changes = [f"root={root}", "min_pixels=400", *(each.removeprefix("data.") for each in overrides)]
    node = OmegaConf.to_container(OmegaConf.merge(composed(), OmegaConf.from_dotlist(changes)))
    return build_part(*read_part(node, "data"), shots=shots, seed=seed)


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of each class to train on, three images of 1 to 3 classes to test on."""
    root = tmp_path_factory.mktemp("voc")
    write_voc_twin(root)
    return root


def classes_of(sample: Any) -> set[int]:
    return set(np.unique(sample.label).tolist()) - {0, 255}


# --- what is read


def test_the_test_split_is_the_list_val_with_its_palette_indices(twin: Path) -> None:
    data = voc(twin)
    data.prepare_data()
    split = data.split("test")
    assert split.ids == (twin / LISTS / "val.txt").read_text().split()
    for index, scene in enumerate([{1: 20, 15: 12}, {7: 30}, {20: 16, 12: 16, 3: 16}]):
        sample = split[index]
        assert np.array_equal(sample.label, label_map(scene)) and (sample.label == 255).any()
        assert sample.image.dtype == np.uint8 and sample.image.shape[:2] == SIZE
    assert len(data.classes) == CLASSES and data.classes[20] == "tvmonitor"


def test_batches_are_in_the_second_paper_s_frame(twin: Path) -> None:
    data = voc(twin, "data.batch_size=3", "data.image_size=64")
    data.prepare_data()
    (batch,) = list(data.datamodule().test_dataloader())
    assert batch["image"].shape == (3, 3, 64, 64) and batch["image"].dtype == torch.float32
    assert batch["image"].min() >= 0 and batch["image"].max() <= 1
    rows = 48  # 72 x 96 -> 48 x 64
    assert (batch["label"][:, rows:] == 255).all() and (batch["image"][:, :, rows:] == 0).all()
    assert (batch["image"][:, :, :rows].amax(1) > 0).all()
    grey = batch["image"] * 255
    assert (grey - grey.round()).abs().max() > 0.01, "float32 images are not rounded to grey levels"


@pytest.mark.parametrize("place", [".", "VOCdevkit", BASE])
def test_the_root_may_be_any_of_the_folders(twin: Path, place: str) -> None:
    data = voc(twin / place)
    assert data.split("test").pairs[0].label.is_file()


def test_the_fingerprint_is_of_lists_images_and_labels(tmp_path: Path) -> None:
    write_voc_twin(tmp_path, train=alone(LABELS))
    first = voc(tmp_path).fingerprint()
    assert first == voc(tmp_path, "data.support=none", shots=3, seed=4).fingerprint() and len(first) == 64
    found = {first}
    for file in (LISTS + "/val.txt", LISTS + "/train.txt"):
        path = tmp_path / file
        path.write_text("\n".join(reversed(path.read_text().split())) + "\n")
        found.add(voc(tmp_path).fingerprint())
    label = tmp_path / BASE / "SegmentationClass" / "2008_000001.png"
    picture = Image.open(label)
    picture.putpixel((0, 50), 3)
    picture.save(label)
    found.add(voc(tmp_path).fingerprint())
    swapped = "data.splits={support: val, val: val, test: train}"
    found.add(voc(tmp_path, swapped).fingerprint())  # the same lists in other roles are another data set
    assert len(found) == 5


def test_a_verdict_holds_for_its_list_only(tmp_path: Path) -> None:
    """An image that was not in the list when the data were checked is checked when it comes in."""
    ids = write_voc_twin(tmp_path, train=alone(LABELS))
    path = tmp_path / LISTS / "val.txt"
    broken = tmp_path / BASE / "SegmentationClass" / f"{ids['val'][2]}.png"
    broken.write_bytes(b"no picture")
    path.write_text("\n".join(ids["val"][:2]) + "\n")
    voc(tmp_path).prepare_data()
    path.write_text("\n".join(ids["val"]) + "\n")
    with pytest.raises(DataError, match="cannot read the label map"):
        voc(tmp_path).prepare_data()


# --- k images of each class


def test_one_shot_is_one_image_of_each_class_from_the_train_list(twin: Path) -> None:
    data = voc(twin)
    data.prepare_data()
    data.datamodule().setup()
    assert data.missing_classes == [] and len(data.support_ids) == 20
    assert [classes_of(sample) for sample in data.support] == [{label} for label in LABELS]
    assert set(data.support_ids) <= set((twin / LISTS / "train.txt").read_text().split())
    train = list(data.datamodule().train_dataloader())
    assert {each for batch in train for each in batch["id"]} == set(data.support_ids) and len(train) == 20
    assert data.prepared() == {}


def test_more_shots_are_more_images_of_each_class_and_sets_are_nested(twin: Path) -> None:
    one, two = voc(twin, shots=1).support_ids, voc(twin, shots=2).support_ids
    assert len(two) == 40 and set(one) < set(two) and two[::2] == one
    assert voc(twin, shots=1, seed=1).support_ids != one and voc(twin, shots=1).support_ids == one
    first = voc(twin, "data.support=in_order").support_ids
    assert first == (twin / LISTS / "train.txt").read_text().split()[:20]


def test_images_of_one_class_and_enough_of_it_are_preferred(tmp_path: Path) -> None:
    labels = [label for label in LABELS if label != 5]
    scenes: list[Scene] = [{5: 12}, {5: 25, 6: 10}, {5: 21}, *alone(labels)]
    ids = write_voc_twin(tmp_path, train=scenes)["train"]
    for shots, expected in ((1, [2]), (2, [2, 1]), (3, [2, 1, 0])):
        chosen = draw_per_class(
            [[0, 1, 2]], lambda index: np.array([0, [144, 625, 441][index], 0, [0, 1, 0][index]]), shots, 400, range
        )
        assert chosen == [expected]
    assert ids[2] in voc(tmp_path).support_ids and ids[0] not in voc(tmp_path).support_ids
    with pytest.raises(DataError, match="more shots than images of a class") as caught:
        _ = voc(tmp_path, shots=2).support_ids
    assert "aeroplane (1)" in str(caught.value.found) and "train.txt" in str(caught.value.path)


def test_validation_images_are_of_the_train_list_and_no_support(twin: Path) -> None:
    data = voc(twin, "data.validation=val", "data.val_size=5", shots=2)
    data.prepare_data()
    (ids,) = ([each for batch in data.datamodule().val_dataloader() for each in batch["id"]],)
    assert len(ids) == 5 and not set(ids) & set(data.support_ids)
    assert set(ids) <= set((twin / LISTS / "train.txt").read_text().split())
    leaky = voc(twin, "data.validation=val", "data.splits.val=val")
    with pytest.raises(ConfigError, match="validation on the test images"):
        leaky.datamodule().setup()


def test_no_support_at_all(twin: Path, tmp_path: Path) -> None:
    data = voc(twin, "data.support=none")
    assert data.needed == ("test",)
    data.prepare_data()
    data.datamodule().setup()
    assert data.support_ids == [] and data.missing_classes == [] and len(data.datamodule().test_dataloader()) == 3
    with pytest.raises(ConfigError, match="nothing to learn from"):
        data.datamodule().train_dataloader()
    none = voc(twin, "data.support=authors_eval", "data.test_limit=2", shots=0)
    none.prepare_data()
    none.datamodule().setup()
    assert none.support_ids == [] and [len(batch["id"]) for batch in none.datamodule().test_dataloader()] == [1, 1]
    assert none.fingerprint() == voc(twin, "data.support=authors_eval", "data.test_limit=2", shots=1).fingerprint()


def test_fixed_ids_and_lists_are_taken_whole(tmp_path: Path) -> None:
    ids = write_voc_twin(tmp_path)["train"]
    chosen = f'data.support_ids=["{ids[5]}","{ids[1]}"]'
    assert voc(tmp_path, chosen).support_ids == [ids[5], ids[1]]
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "mine-1.txt").write_text(f"{ids[7]}\n{ids[3]}\n")
    assert voc(tmp_path, "data.support=mine").support_ids == [ids[7], ids[3]]
    with pytest.raises(DataError, match="unknown support id"):
        _ = voc(tmp_path, 'data.support_ids=["2007_999999"]').support_ids


# --- the authors' choice


def by_the_book(scenes: Sequence[Scene], shots: int, run: int, least: int) -> list[tuple[int, int | None]]:
    """The protocol told again, with the module `random` itself: what each run takes, as (index, only)."""
    state = random.getstate()
    try:
        random.seed(1)
        for _ in range(run + 1):
            taken: list[tuple[int, int | None]] = []
            for label in LABELS:
                pool = [index for index, scene in enumerate(scenes) if scene.get(label, 0) ** 2 >= least]
                order = list(range(len(pool)))
                random.shuffle(order)
                own: list[tuple[int, int | None]] = []
                for place in order:
                    if len(own) < shots and len(scenes[pool[place]]) == 1:
                        own.append((pool[place], None))
                while len(own) < shots:
                    own.append((pool[int(np.floor(random.random() * len(pool)))], label))
                taken += own
        return taken
    finally:
        random.setstate(state)


AUTHORS_SCENES: list[Scene] = [
    *(scene for _ in range(2) for scene in alone([label for label in LABELS if label not in (4, 9)])),
    {4: 20, 9: 22},
    {9: 20, 2: 20},
    {4: 30, 7: 5},
    {1: 10},
    {},
]


@pytest.mark.parametrize(("shots", "run"), [(1, 0), (1, 1), (1, 4), (2, 0), (3, 2)])
def test_supports_of_the_authors_come_from_the_evaluation_list_and_leave_it(
    shots: int, run: int, tmp_path: Path
) -> None:
    ids = write_voc_twin(tmp_path, train=alone(LABELS), val=AUTHORS_SCENES)["val"]
    expected = by_the_book(AUTHORS_SCENES, shots, run, 400)
    data = voc(tmp_path, "data.support=authors_eval", shots=shots, seed=run)
    assert data.needed == ("test",)
    data.prepare_data()
    data.datamodule().setup()
    assert data.support_ids == [ids[index] for index, _ in expected] and len(data.support_ids) == 20 * shots
    for sample, (index, only) in zip(data.support, expected, strict=True):
        kept = {only} if only is not None else set(AUTHORS_SCENES[index])
        assert classes_of(sample) == kept
        assert (sample.label == 255).sum() == (label_map(AUTHORS_SCENES[index]) == 255).sum()
    gone = {index for index, only in expected if only is None}
    left = [key for index, key in enumerate(ids) if index not in gone and AUTHORS_SCENES[index]]
    assert [each for batch in data.datamodule().test_dataloader() for each in batch["id"]] == left
    assert any(only is not None for _, only in expected), "classes 4 and 9 are never alone"
    assert data.prepared() == {"support": "authors_eval"}
    cut = voc(tmp_path, "data.support=authors_eval", "data.test_limit=3", shots=shots, seed=run)
    assert [each for batch in cut.datamodule().test_dataloader() for each in batch["id"]] == left[:3]


def test_the_same_choice_from_the_train_list_takes_nothing_from_the_queries(tmp_path: Path) -> None:
    ids = write_voc_twin(tmp_path, train=AUTHORS_SCENES)
    data = voc(tmp_path, "data.support=authors_train", seed=2)
    data.prepare_data()
    assert data.support_ids == [ids["train"][index] for index, _ in by_the_book(AUTHORS_SCENES, 1, 2, 400)]
    assert [each for batch in data.datamodule().test_dataloader() for each in batch["id"]] == ids["val"]


def test_a_seed_that_is_no_run_of_the_authors(twin: Path) -> None:
    with pytest.raises(ConfigError, match="authors' run") as caught:
        _ = voc(twin, "data.support=authors_eval", seed=20261121).support_ids
    assert "data.support=drawn" in str(caught.value.remedy)


def test_a_class_that_nothing_shows_stops_the_authors_choice(twin: Path) -> None:
    with pytest.raises(DataError, match="no image can be a support of the class `bicycle`") as caught:
        _ = voc(twin, "data.support=authors_eval", "data.min_pixels=100").support_ids
    assert "val.txt" in str(caught.value.path) and "min_pixels" in str(caught.value.remedy)


# --- limits


def test_limits_cut_lists(twin: Path) -> None:
    data = voc(twin, "data.test_limit=2", "data.max_pool_images=20")
    assert data.split("test").ids == ["2008_000000", "2008_000001"]
    assert set(data.support_ids) == {f"2007_{index:06d}" for index in range(20)}
    assert data.prepared() == {"test images": "the first 2"}
    with pytest.raises(ConfigError, match="test_limit"):
        voc(twin, "data.test_limit=0")


# --- bad files


def small(root: Path) -> dict[str, list[str]]:
    return write_voc_twin(root, train=alone(LABELS))


def fails(root: Path, *overrides: str) -> DataError:
    with pytest.raises(DataError) as caught:
        voc(root, *overrides).prepare_data()
    assert caught.value.found and caught.value.expected and caught.value.remedy
    return caught.value


def test_a_missing_list_an_empty_one_and_an_id_twice(tmp_path: Path) -> None:
    small(tmp_path)
    path = tmp_path / LISTS / "val.txt"
    text = path.read_text()
    path.write_text(text + text)
    assert "twice" in fails(tmp_path).summary
    path.write_text("\n")
    assert "empty" in fails(tmp_path).summary
    path.unlink()
    error = fails(tmp_path)
    assert "No such file" in str(error.found) and error.path == path and "VOCtrainval" in str(error.remedy)


@pytest.mark.parametrize(("folder", "suffix"), [("JPEGImages", "jpg"), ("SegmentationClass", "png")])
def test_a_listed_file_that_is_missing(tmp_path: Path, folder: str, suffix: str) -> None:
    ids = small(tmp_path)
    (tmp_path / BASE / folder / f"{ids['val'][1]}.{suffix}").unlink()
    error = fails(tmp_path)
    assert ids["val"][1] in str(error.found) and folder in error.summary and error.path == tmp_path / BASE / folder

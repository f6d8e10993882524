"""COCO-Object on a twin of its raw layout: masks against other constructions, rules of overlap, supports, bad files."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from slime_bench.config.compose import plan
from slime_bench.config.schema import build_part, read_part
from slime_bench.data.coco_json import Runs
from slime_bench.data.datasets.coco_object import (
    Crowd,
    InstanceDataset,
    Overlap,
    fill_truncated,
    mask_of,
)
from slime_bench.errors import DataError, LabelError
from tests.fixtures.twins.coco import (
    CATEGORY_IDS,
    FORMS,
    RUNS,
    SIZE,
    TEXT,
    Thing,
    alone,
    expected_label,
    runs_of,
    text_of,
    write_coco_split,
    write_coco_twin,
)

CLASSES = ["background", "person", "bicycle", "car", "motorcycle"]
FEW = f"data.classes=[{','.join(CLASSES)}]"
SEVERAL = [
    [Thing(1, (5, 5, 40, 50)), Thing(2, (20, 30, 50, 70), TEXT), Thing(3, (0, 0, 60, 80), RUNS, crowd=True)],
    [Thing(2, (10, 10, 30, 30), RUNS), Thing(1, (0, 0, 50, 60)), Thing(4, (12, 12, 20, 20), TEXT)],
    [],
    [Thing(4, (0, 0, 60, 80), TEXT)],
]


@cache
def composed() -> DictConfig:
    """The file conf/data/coco_object.yaml in a whole configuration; composing it takes longer than most tests here."""
    return OmegaConf.create(plan(["data=coco_object"]).trials[0].plain["data"])


def coco(root: Path, *overrides: str, shots: int = 1, seed: int = 0) -> Any:
    changes = [f"root={root}", "min_pixels=900", *(each.removeprefix("data.") for each in overrides)]
    node = OmegaConf.to_container(OmegaConf.merge(composed(), OmegaConf.from_dotlist(changes)))
    return build_part(*read_part(node, "data"), shots=shots, seed=seed)


@pytest.fixture
def twin(tmp_path: Path) -> Path:
    """Four classes: three images of each to train on, the four of `SEVERAL` to test on."""
    train = [alone(label, form=FORMS[label % 3]) for _ in range(3) for label in range(1, len(CLASSES))]
    write_coco_split(tmp_path, "train2017", train, CLASSES, first=100)
    write_coco_split(tmp_path, "val2017", SEVERAL, CLASSES)
    return tmp_path


# --- masks


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_run_lengths_of_any_mask(height: int, width: int, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    runs = runs_of(mask)
    for counts in (runs, text_of(runs)):
        assert np.array_equal(mask_of(Runs((height, width), counts), height, width), mask)


def test_masks_go_down_the_columns() -> None:
    mask = mask_of(Runs((2, 3), [2, 3, 1]), 2, 3)  # 2 zeros, 3 ones, 1 zero
    assert mask.tolist() == [[False, True, True], [False, True, False]]
    for counts in ([2, 3], [8, -2], [7]):
        with pytest.raises(ValueError, match="image of 3x2"):
            mask_of(Runs((2, 3), counts), 2, 3)
    for text in ("P", "6\x10", "6é", "5", "62", "7"):  # cut off, no such character, too short, too long
        with pytest.raises(ValueError, match=r"RLE|run lengths"):
            mask_of(Runs((2, 3), text), 2, 3)


@settings(max_examples=80, deadline=None)
@given(st.integers(3, 12), st.integers(0, 2**32 - 1), st.booleans())
def test_polygons_are_the_pixels_whose_centres_lie_inside(corners: int, seed: int, star: bool) -> None:
    """Against matplotlib's test of single points, but for pixels that an edge crosses; corners may lie outside."""
    draw = np.random.default_rng(seed)
    angle = np.sort(draw.uniform(0, 2 * np.pi, corners))
    radius = draw.uniform(3, 45, corners) if star else 30.0
    polygon = np.stack([33 + radius * np.cos(angle), 25 + radius * np.sin(angle)], 1).astype(np.float32)
    found = mask_of([polygon], 50, 60)
    rows, columns = np.mgrid[:50, :60] + 0.5
    points = np.stack([columns.ravel(), rows.ravel()], 1)
    outline = Outline(np.vstack([polygon, polygon[:1]]))
    inside = outline.contains_points(points).reshape(50, 60)
    corner = [outline.contains_points(points + np.array([x, y])).reshape(50, 60) for x in (-1, 1) for y in (-1, 1)]
    clear = np.all([each == inside for each in corner], 0)  # the same a pixel further on all sides
    assert (found == inside)[clear].mean() > 0.99 and abs(
        int(found.sum()) - int(inside.sum())
    ) <= 0.1 * inside.sum() + 25


def test_truncated_polygons_are_opencvs() -> None:
    """The masks of the second paper's lists came from cv2.fillPoly with corners cut to whole pixels."""
    cv2 = pytest.importorskip("cv2")
    draw = np.random.default_rng(0)
    wrong = total = 0
    for _ in range(100):
        angle = np.sort(draw.uniform(0, 2 * np.pi, 9))
        radius = draw.uniform(15, 40, 9)
        polygon = np.stack([50 + radius * np.cos(angle), 50 + radius * np.sin(angle)], 1).astype(np.float32)
        label, expected = fill_truncated(np.zeros((100, 100), np.uint8), polygon, 5), np.zeros((100, 100), np.uint8)
        cv2.fillPoly(expected, [polygon.astype(np.int32)], 5)
        wrong, total = wrong + int((label != expected).sum()), total + int((expected > 0).sum())
    assert wrong / total < 0.005


# --- label maps


@pytest.mark.parametrize("overlap", get_args(Overlap))
@pytest.mark.parametrize("crowd", get_args(Crowd))
def test_label_maps_of_every_rule(twin: Path, overlap: str, crowd: str) -> None:
    data = coco(twin, FEW, f"data.overlap={overlap}", f"data.crowd={crowd}")
    data.prepare_data()
    split = data.split("test")
    assert split.ids == sorted(split.ids) and len(split) == 4, "in order of the files' names, whatever the file's order"
    for index, scene in enumerate(SEVERAL):
        sample = split[index]
        assert np.array_equal(sample.label, expected_label(scene, SIZE, overlap, crowd)), index
        assert sample.label.dtype == np.int64 and sample.image.dtype == np.uint8
    assert data.prepared() == {"overlap": overlap, "crowd": crowd, "polygons": "all"}


def test_the_first_polygon_only(twin: Path) -> None:
    split = coco(twin, FEW, "data.polygons=first").split("test")
    label = split[0].label
    assert label[10, 10] == 1, "the left half, whose edge is filled too"
    assert label[10, 40] == 3, "the second polygon of the object is not painted: the crowd shows"


def test_the_whole_class_list_and_ids_with_gaps(tmp_path: Path) -> None:
    """80 categories with ids up to 90 become labels 1..80."""
    classes = coco(tmp_path).config.classes
    assert len(classes) == 81 and CATEGORY_IDS[-1] == 90 and classes[12] == "stop sign" and CATEGORY_IDS[11] == 13
    ids = write_coco_twin(tmp_path, classes)
    data = coco(tmp_path, "data.batch_size=2")
    data.prepare_data()
    data.datamodule().setup()
    assert data.missing_classes == [] and len(data.support_ids) == 80
    assert [int(sample.label.max()) for sample in data.support] == list(range(1, 81))
    batches = list(data.datamodule().test_dataloader())
    assert [each for batch in batches for each in batch["id"]] == ids["val2017"]
    assert int(batches[0]["label"][batches[0]["label"] != 255].max()) == 80 and len(data.fingerprint()) == 64


# --- supports and limits


def test_supports_of_the_authors_and_images_without_objects(tmp_path: Path) -> None:
    scenes = [alone(1), alone(2), [], alone(3), alone(4), alone(1), [Thing(2, (0, 0, 5, 5))]]
    write_coco_split(tmp_path, "val2017", scenes, CLASSES)
    data = coco(tmp_path, FEW, "data.support=authors_eval", "data.test_limit=1")
    data.prepare_data()
    split = data.split("test")
    assert data.needed == ("test",) and data.present_splits() == ["test"]
    chosen = [split.ids.index(each) for each in data.support_ids]
    assert chosen[0] in (0, 5) and chosen[1:] == [1, 3, 4]
    left = [{0: 5, 5: 0}[chosen[0]], 6]
    assert [each for batch in data.datamodule().test_dataloader() for each in batch["id"]] == [split.ids[min(left)]]
    assert data.prepared()["test images"] == "the first 1" and data.prepared()["support"] == "authors_eval"
    whole = coco(tmp_path, FEW, "data.support=none")
    assert len(whole.datamodule().test_dataloader()) == 7, "images without objects are queries of every other choice"


def test_drawn_supports_need_only_the_masks_that_they_look_at(twin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    usual = InstanceDataset.label

    def counted(self: InstanceDataset, index: int) -> np.ndarray:
        seen.append(index)
        return usual(self, index)

    monkeypatch.setattr(InstanceDataset, "label", counted)
    data = coco(twin, FEW)
    assert len(data.support_ids) == 4 and len(set(seen)) == len(seen) == 4


# --- prepared label maps


@pytest.mark.parametrize("suffix", ["", "_instanceTrainIds"])
def test_prepared_label_maps(twin: Path, suffix: str) -> None:
    for name, scenes, first in (("train2017", [alone(label) for label in range(1, 5)], 100), ("val2017", SEVERAL, 9)):
        folder = twin / "maps" / name
        folder.mkdir(parents=True)
        for index, scene in enumerate(scenes):
            if scene:  # as in the lists of the second paper, images without objects have none
                label = expected_label(scene, SIZE, crowd="ignore")
                Image.fromarray(label).save(folder / f"{first + 3 * index:012d}{suffix}.png")
    (twin / "annotations" / "instances_val2017.json").unlink()
    data = coco(twin, FEW, "data.label_maps='maps/{split}'")
    data.prepare_data()
    data.datamodule().setup()
    split = data.split("test")
    assert split.ids == [f"{number:012d}" for number in (9, 12, 18)] and len(data.fingerprint()) == 64
    assert np.array_equal(split[0].label, expected_label(SEVERAL[0], SIZE, crowd="ignore"))
    assert len(data.support_ids) == 4 and data.prepared() == {"label maps": "prepared"}
    with pytest.raises(DataError, match="no image is annotated"):
        coco(twin, FEW, "data.label_maps=annotations").prepare_data()
    Image.new("L", (5, 5)).save(twin / "maps" / "val2017" / f"000000000999{suffix}.png")
    with pytest.raises(DataError, match="1 annotated image"):
        coco(twin, FEW, "data.label_maps='maps/{split}'").prepare_data()


# --- memory


# --- bad files


def fails(root: Path, *overrides: str) -> DataError:
    with pytest.raises(DataError) as caught:
        coco(root, FEW, *overrides).prepare_data()
    assert caught.value.path and caught.value.found and caught.value.expected and caught.value.remedy
    return caught.value


NAN = float("nan")


def shape(content: dict[str, Any], segmentation: object) -> None:
    content["annotations"][0]["segmentation"] = segmentation


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "summary", "found"),
    [
        (lambda each: each["annotations"][0].update(category_id=12), "without a name", "category_id 12"),
        (lambda each: each["categories"].append({"id": 5, "name": "motorcycles"}), "no class: motorcycles", "5 cat"),
        (lambda each: each["categories"].append({"id": 5}), "not COCO JSON", "categories.4.name"),
        (lambda each: shape(each, [[1, 2, 3, 4, 5]]), "not fit", "5 numbers"),
        (lambda each: shape(each, []), "not fit", "no outline"),
        (lambda each: shape(each, [[1, 2, NAN, 4, 5, 6]]), "not COCO JSON", "number"),
        (lambda each: shape(each, {"size": [60, 80], "counts": [5, 7]}), "not fit", "12 p"),
        (lambda each: shape(each, {"size": [60, 80], "counts": "6P"}), "not fit", "RLE"),
        (lambda each: shape(each, {"size": [80, 60], "counts": [4800]}), "not fit", "60x80"),
        (lambda each: each["images"].clear() or each["annotations"].clear(), "no image is annotated", "no image"),
        (lambda each: each["images"].append(each["images"][0] | {"id": 1, "file_name": "0.jpg"}), "no file in", "no"),
    ],
)  # fmt: skip
def test_bad_annotations(twin: Path, change: Change, summary: str, found: str) -> None:
    path = twin / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    error = fails(twin)
    assert summary in error.summary and found in str(error.found)
    assert "val2017" in str(error.path)


@pytest.mark.parametrize("text", ["", "[1, 2]", "[" * 100_000])
def test_annotations_that_are_no_json_of_instances(twin: Path, text: str) -> None:
    path = twin / "annotations" / "instances_val2017.json"
    path.write_text(text, encoding="utf-8")
    assert fails(twin).path == path


def test_missing_annotations_and_images(twin: Path) -> None:
    (twin / "val2017" / "000000000012.jpg").unlink()
    assert "000000000012" in str(fails(twin).found)
    (twin / "annotations" / "instances_val2017.json").unlink()
    assert "No such file" in str(fails(twin).found)


def test_a_resized_and_a_broken_image(twin: Path) -> None:
    path = twin / "val2017" / "000000000012.jpg"
    Image.new("RGB", (40, 30)).save(path)
    error = fails(twin)
    assert isinstance(error, LabelError) and "80x60" in str(error.found) and "40x30" in str(error.expected)
    path.write_bytes(b"<html>")
    assert "cannot read the image" in fails(twin).summary

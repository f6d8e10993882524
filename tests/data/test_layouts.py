"""Which files of a folder pair up: every layout, names of every kind, and folders that are no data set."""

from __future__ import annotations

import json
import logging
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slime_bench.data.layouts import Pair, find_pairs, parts_of
from slime_bench.data.reading import FolderDataset
from slime_bench.errors import DataError

CLASSES = ("background", "body", "wheel")
YELLOW, BLUE = (255, 255, 0), (0, 0, 255)


def image(path: Path, colour: tuple[int, int, int] = (9, 9, 9)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), colour).save(path)
    return path


def label(path: Path, value: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((6, 8), np.uint8)
    array[2:4] = value
    if path.suffix == ".npy":
        np.save(path, array.astype(np.float64))  # as some releases hold them
    else:
        Image.fromarray(array).save(path)
    return path


def test_two_folders(tmp_path: Path) -> None:
    expected = [
        Pair("a", image(tmp_path / "images" / "a.jpg"), label(tmp_path / "labels" / "a.npy")),
        Pair("b", image(tmp_path / "images" / "b.PNG"), label(tmp_path / "labels" / "b.png")),
    ]
    (tmp_path / "labels" / "notes.txt").write_text("no data")
    image(tmp_path / "elsewhere.png")  # beside the two folders: no part of the layout
    assert find_pairs(tmp_path) == expected


@pytest.mark.parametrize(("images", "labels"), [(("a.png", "b.jpeg"), ".npy"), (("a.jpg", "b.JPG"), ".png")])
def test_flat(tmp_path: Path, images: tuple[str, str], labels: str) -> None:
    pairs = [Pair(name[0], image(tmp_path / name), label(tmp_path / f"{name[0]}{labels}", 2)) for name in images]
    assert find_pairs(tmp_path) == pairs
    assert FolderDataset(tmp_path, CLASSES)[1].label.max() == 2


@pytest.mark.parametrize("named", [".", "image_bg", "image_no_bg"])
def test_regan(tmp_path: Path, named: str) -> None:
    for kind, colour in (("image_bg", (1, 2, 3)), ("image_no_bg", (0, 0, 0))):
        image(tmp_path / kind / "0.png", colour)
    (tmp_path / "gt_mask").mkdir()
    mask = np.zeros((6, 8, 3), np.uint8)
    mask[0], mask[1] = YELLOW, BLUE
    Image.fromarray(mask).save(tmp_path / "gt_mask" / "0.png")
    dataset = FolderDataset(tmp_path / named, CLASSES, {"wheel": YELLOW, "body": (255, 52, 255)})
    (sample,) = (dataset[index] for index in range(len(dataset)))
    assert sample.image[0, 0].tolist() == ([0, 0, 0] if named == "image_no_bg" else [1, 2, 3])
    assert sample.label[:, 0].tolist() == [2, 0, 0, 0, 0, 0]  # blue is no class of this table


def test_regan_with_other_stems_is_paired_by_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for index in (1, 2):
        image(tmp_path / "image_bg" / f"car{index}.png")
        label(tmp_path / "gt_mask" / f"mask{index}.png")
    with caplog.at_level(logging.WARNING):
        pairs = find_pairs(tmp_path)
    assert [(pair.id, pair.label.name) for pair in pairs] == [("car1", "mask1.png"), ("car2", "mask2.png")]
    assert "paired by order, car1.png with mask1.png" in caplog.text
    # One file more, or one stem in common, and the order means nothing.
    image(tmp_path / "image_bg" / "car3.png")
    with pytest.raises(DataError, match=r"3 image\(s\) without a label map"):
        find_pairs(tmp_path)


@pytest.mark.parametrize("flat", [False, True])
def test_names_with_spaces_and_other_alphabets(tmp_path: Path, flat: bool) -> None:
    stems = ["ein Auto", "l\u2019\u00e9t\u00e9", "車 #1", "a.b.c"]
    for index, stem in enumerate(stems):
        image(tmp_path / ("" if flat else "images") / f"{stem}.jpg")
        # macOS stores names decomposed; the label map of such a picture may come from another system.
        stem = unicodedata.normalize("NFD" if index % 2 else "NFC", stem)
        label(tmp_path / ("" if flat else "labels") / f"{stem}.png")
    dataset = FolderDataset(tmp_path, CLASSES)
    assert dataset.ids == sorted(stems)
    assert all(np.array_equal(dataset[index].label, dataset.label(index)) for index in range(4))


def test_hidden_files_and_folders_are_no_data(tmp_path: Path) -> None:
    pair = Pair("a", image(tmp_path / "a.jpg"), label(tmp_path / "a.png"))
    for name in (".DS_Store", "._a.jpg", ".verified.json"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b.jpg").mkdir()
    assert find_pairs(tmp_path) == [pair]


def test_two_files_of_one_stem(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.png")
    image(tmp_path / "images" / "a.JPG")
    label(tmp_path / "labels" / "a.png")
    with pytest.raises(DataError, match="two files share one stem") as caught:
        find_pairs(tmp_path)
    assert set(str(caught.value.found).split(", ")) == {"a.png", "a.JPG"}


@pytest.mark.parametrize(
    ("files", "words", "found"),
    [
        ([], "no images with label maps", "an empty folder"),
        (["b.png", "a.png", "car/support/a.png"], "no images with label maps", "a.png, b.png, car/"),
        (["a.jpg", "a.png", "c.png"], r"1 label map\(s\) without an image", "c.png"),
        (["images/a.png"], "cannot list the folder", "No such file or directory"),
        (
            [f"images/{name}.png" for name in "abcdefg"] + ["labels/notes.txt"],
            r"7 image\(s\) without a label map",
            "a.png, b.png, c.png, d.png, e.png and 2 more",
        ),
        (["images/notes.txt", "labels/notes.txt"], "no images", "no file with a known suffix"),
        (["gt_mask/a.png"], "cannot list the folder", "No such file or directory"),
        (["gt_mask/a.png", "image_bg/b.png", "image_bg/c.png"], r"2 image\(s\) without a label map", "b.png, c.png"),
    ],
)
def test_folders_that_are_no_data_set(tmp_path: Path, files: list[str], words: str, found: str) -> None:
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no data")
        else:
            image(path)
    with pytest.raises(DataError, match=words) as caught:
        find_pairs(tmp_path)
    assert caught.value.found == found and caught.value.remedy
    assert str(tmp_path) in str(caught.value.path)


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Not a directory"):
        find_pairs(image(tmp_path / "data.png"))


def coco_json(path: Path, *names: str, unannotated: tuple[str, ...] = ()) -> Path:
    """A COCO file with an object on each of the pictures `names`."""
    every = (*names, *unannotated)
    content = {
        "images": [{"id": i, "file_name": name, "height": 6, "width": 8} for i, name in enumerate(every)],
        "annotations": [
            {"image_id": i, "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 4]]} for i in range(len(names))
        ],
        "categories": [{"id": 1, "name": "body"}],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def labelme_json(path: Path) -> Path:
    path.write_text(json.dumps({"shapes": [], "imageHeight": 6, "imageWidth": 8}))
    return path


@pytest.mark.parametrize(
    ("images", "labels"),
    [("images", "masks"), ("images", "annotations"), ("JPEGImages", "SegmentationClass")],
)
def test_folders_of_labelling_tools(tmp_path: Path, images: str, labels: str) -> None:
    pairs = [
        Pair(stem, image(tmp_path / images / f"{stem}.jpg"), label(tmp_path / labels / f"{stem}.png")) for stem in "ab"
    ]
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n")
    assert find_pairs(tmp_path) == pairs


def test_pictures_that_nobody_has_annotated_yet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    voc, labelme, coco = tmp_path / "voc", tmp_path / "labelme", tmp_path / "coco"
    for name in "abc":
        image(voc / "JPEGImages" / f"{name}.jpg")
        image(labelme / f"{name}.png")
        image(coco / "images" / f"{name}.jpg")
    label(voc / "SegmentationClass" / "b.png")
    labelme_json(labelme / "b.json")
    coco_json(coco / "result.json", "images/b.jpg", unannotated=("images/a.jpg", "images/c.jpg"))
    with caplog.at_level(logging.WARNING):
        assert [[pair.id for pair in find_pairs(folder)] for folder in (voc, labelme, coco)] == [["b"]] * 3
    assert caplog.text.count("2 image(s) without annotation are left out") == 3


def test_cvat_without_images(tmp_path: Path) -> None:
    label(tmp_path / "SegmentationClass" / "a.png")
    with pytest.raises(DataError, match="Save images"):
        find_pairs(tmp_path)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_roboflow(tmp_path: Path, suffix: str) -> None:
    names = [f"car{index}_jpg.rf.abc{index}" for index in range(12)]
    pairs = [Pair(name, image(tmp_path / f"{name}{suffix}"), label(tmp_path / f"{name}_mask.png")) for name in names]
    (tmp_path / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, body\n")
    assert find_pairs(tmp_path) == sorted(pairs, key=lambda pair: pair.id)
    image(tmp_path / f"bus{suffix}")
    with pytest.raises(DataError, match=r"1 image\(s\) without a label map"):
        find_pairs(tmp_path)


def test_labelme(tmp_path: Path) -> None:
    pairs = [
        Pair(name[0], image(tmp_path / name), labelme_json(tmp_path / f"{name[0]}.json")) for name in ("a.jpg", "b.png")
    ]
    (tmp_path / "settings.json").write_text("{}")
    assert find_pairs(tmp_path) == pairs
    # Longer names are no parts where they have annotations of their own.
    pairs.append(Pair("b_red", image(tmp_path / "b_red.png"), labelme_json(tmp_path / "b_red.json")))
    assert find_pairs(tmp_path) == pairs
    labelme_json(tmp_path / "c.json")
    with pytest.raises(DataError, match=r"(?s)1 label map\(s\) without an image.*c\.json"):
        find_pairs(tmp_path)


@pytest.mark.parametrize(
    ("json_file", "pictures", "named"),
    [
        ("_annotations.coco.json", "{}.jpg", "{}.jpg"),  # Roboflow
        ("annotations/instances_default.json", "images/default/{}.jpg", "{}.jpg"),  # CVAT
        ("annotations/instances_val2017.json", "val2017/{}.jpg", "{}.jpg"),
        ("result.json", "images/{}.jpg", "images\\{}.jpg"),  # Label Studio on Windows
    ],
)
def test_coco(tmp_path: Path, json_file: str, pictures: str, named: str) -> None:
    path = coco_json(tmp_path / json_file, *(named.format(name) for name in "ab"))
    (tmp_path / "annotations").mkdir(exist_ok=True)
    (tmp_path / "annotations" / "captions_val2017.json").write_text('{"images": [], "annotations": []}')
    pairs = [Pair(name, image(tmp_path / pictures.format(name)), path) for name in "ab"]
    if path.parent == tmp_path:
        (tmp_path / "annotations" / "captions_val2017.json").unlink()
    assert find_pairs(tmp_path) == pairs
    pairs[0].image.unlink()
    with pytest.raises(DataError, match=r"(?s)1 annotated image\(s\) are not there.*a\.jpg"):
        find_pairs(tmp_path)


@pytest.mark.parametrize("kind", [".jpg", ".png"])
@pytest.mark.parametrize("between", [".", "_"])
def test_a_file_for_each_part(tmp_path: Path, kind: str, between: str) -> None:
    expected = []
    for stem in ("car", "car_2", "a.b"):
        parts = tuple((name, label(tmp_path / f"{stem}{between}{name}.png")) for name in ("body", "front_wheel"))
        expected.append(Pair(stem, image(tmp_path / f"{stem}{kind}"), parts[0][1], parts))
    assert find_pairs(tmp_path) == sorted(expected, key=lambda pair: pair.id)
    assert expected[0].files == (expected[0].image, *(path for _, path in expected[0].parts))
    image(tmp_path / f"bus{kind}")
    with pytest.raises(DataError, match=r"(?s)1 image\(s\) without a label map.*bus.*<id>.<part>.png"):
        find_pairs(tmp_path)


def test_a_folder_for_each_part(tmp_path: Path) -> None:
    picture, other = image(tmp_path / "images" / "car.jpg"), image(tmp_path / "images" / "bus.jpg")
    body, wheel = label(tmp_path / "body" / "car.png"), label(tmp_path / "wheel" / "car.png")
    bus = label(tmp_path / "wheel" / "bus.png")
    (tmp_path / "notes").mkdir()
    assert find_pairs(tmp_path) == [
        Pair("bus", other, bus, (("wheel", bus),)),
        Pair("car", picture, body, (("body", body), ("wheel", wheel))),
    ]


@pytest.mark.parametrize("who", ["1", "jo-ann@my-place.org"])
@pytest.mark.parametrize("inside", ["", "images"])
def test_label_studio(tmp_path: Path, who: str, inside: str) -> None:
    names = [f"task-3-annotation-5-by-{who}-tag-{name}" for name in ("body-0", "front-wheel-0", "front-wheel-1")]
    files = [label(tmp_path / f"{name}.png") for name in names]
    label(tmp_path / f"{names[0]}.npy")
    picture = image(tmp_path / inside / "car.jpg")
    (pair,) = find_pairs(tmp_path)
    parts = tuple(zip(("body", "front-wheel", "front-wheel"), files, strict=True))
    assert pair == Pair("car", picture, files[0], parts)
    assert parts_of(files, picture) == parts
    label(tmp_path / f"task-4-annotation-6-by-{who}-tag-body-0.png")
    with pytest.raises(DataError, match=r"(?s)which image.*task-3-annotation-5, task-4-annotation-6.*rename"):
        find_pairs(tmp_path)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["a.jpg", "a.png", "a.wheel.png"], "<id>.png beside <id>.jpg and <id>.<part>.png"),
        (["a.jpg", "a_mask.png", "a_wheel.png"], "<id>_mask.png and <id>.<part>.png"),
        (["a.jpg", "a.png", "a.json"], "<id>.json and <id>.png beside <id>.jpg"),
        (["a.jpg", "a.png", "coco.json"], "coco.json and <id>.png beside <id>.jpg"),
        (["a.jpg", "train.json", "val.json"], "train.json and val.json"),
        (["images/a.jpg", "masks/a.png", "labels/a.png"], "labels/ and masks/"),
        (["images/a.jpg", "masks/a.png", "annotations/instances_a.json"], "masks/ and annotations/instances_a.json"),
    ],
)
def test_folders_that_can_be_read_in_two_ways(tmp_path: Path, files: list[str], found: str) -> None:
    for name in files:
        if name.endswith(".json"):
            coco_json(tmp_path / name, "a.jpg")
        else:
            image(tmp_path / name)
    with pytest.raises(DataError, match="read in 2 ways") as caught:
        find_pairs(tmp_path)
    assert caught.value.found == found and caught.value.remedy


def test_a_broken_json_file_alone(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    (tmp_path / "a.json").write_text('{"shapes": [')
    with pytest.raises(DataError, match="no valid JSON"):
        find_pairs(tmp_path)


def test_parts_by_the_names_of_files() -> None:
    picture = Path("photos/my_car.jpg")
    files = [Path("masks/my_car.front_wheel.png"), Path("my_car_body.npy"), Path("window/my_car.png")]
    assert [name for name, _ in parts_of(files, picture)] == ["front_wheel", "body", "window"]
    for strange in ("wheel.png", "photos/my_car.png", "my_car_2.png"):
        with pytest.raises(DataError, match=r"my_car\.wheel\.png"):
            parts_of([Path(strange)], picture)

"""Which files of a folder pair up: every layout, names of every kind, and folders that are no data set."""

from __future__ import annotations

import logging
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slime_bench.data.layouts import Pair, find_pairs
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

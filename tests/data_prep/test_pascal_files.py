"""Folders, lists, pictures and ReGAN's test set: what is found and what is refused."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.pascal_part.__main__ import main
from data_prep.pascal_part.files import Entry, find_parts, find_voc, read_list, read_lists, read_picture
from data_prep.pascal_part.regan import COLOURS, read_pair
from slime_bench.data.mini_world.render import render
from slime_bench.errors import DataError, LabelError
from tests.fixtures.twins.pascal import write_car_test_twin, write_pascal_twin


def lines(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_lists_keep_their_order_and_drop_absent_pictures(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.txt", "2008_000009 -1\r\n2008_000008  1\n\n2007_größe  0\n")
    assert read_list(path) == [Entry("2008_000009", -1), Entry("2008_000008", 1), Entry("2007_größe", 0)]
    folder = tmp_path / "VOC2010" / "ImageSets" / "Main"
    lines(folder / "car_train.txt", "b 1\na 0\nc -1\n")
    lines(folder / "car_val.txt", "c 1\n")
    assert read_lists(folder.parents[1], "car") == {
        "support": [Entry("b", 1), Entry("a", 0)],
        "test": [Entry("c", 1)],
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no line with the flag 1 or 0"),
        ("a -1\n", "no line with the flag 1 or 0"),
        ("a 1\nb\n", "line 2: 'b'"),
        ("a 1\nb 2\n", "line 2: 'b 2'"),
        ("../a 1\n", "line 1"),
        ("a 1\nb 1\na 0\n", "line 3: 'a 0'"),
        ("c 1\n", "in the train list and in the val list: c"),
    ],
)
def test_unusable_lists(tmp_path: Path, text: str, words: str) -> None:
    folder = tmp_path / "ImageSets" / "Main"
    with pytest.raises(DataError, match="cannot use the image list"):
        read_lists(tmp_path, "car")
    lines(folder / "car_train.txt", text)
    lines(folder / "car_val.txt", "c 1\n")
    with pytest.raises(DataError, match="cannot use the image list") as caught:
        read_lists(tmp_path, "car")
    assert words in str(caught.value.found)


def test_a_cameras_orientation_is_not_followed(tmp_path: Path) -> None:
    """Masks are drawn on the stored pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "a.png", (6, 8)), pixels)


def test_folders_are_found_at_any_depth(tmp_path: Path) -> None:
    twin = write_pascal_twin(tmp_path / "raw", "horse", train=1, val=1, with_cases=False)
    for source in (twin.voc, twin.voc.parent, twin.root):
        assert find_voc(source, tmp_path / "work") == twin.voc
    for source in (twin.parts, twin.root):
        assert find_parts(source, tmp_path / "work") == twin.parts
    assert not (tmp_path / "work").exists()
    with pytest.raises(DataError, match="no VOC2010 found"):
        find_voc(twin.parts, tmp_path / "work")
    with pytest.raises(DataError, match="no Annotations_Part found"):
        find_parts(twin.voc, tmp_path / "work")
    with pytest.raises(DataError, match="not there"):
        find_voc(tmp_path / "nowhere", tmp_path / "work")
    # Of VOC2012 and VOC2010 side by side the latter is meant; of two others neither.
    other = twin.voc.parent / "VOC2012" / "ImageSets" / "Main"
    other.mkdir(parents=True)
    assert find_voc(twin.root, tmp_path / "work") == twin.voc
    twin.voc.rename(twin.voc.parent / "VOC2007")
    with pytest.raises(DataError, match="more than one VOC2010 found"):
        find_voc(twin.root, tmp_path / "work")


def test_another_years_voc_is_refused(tmp_path: Path) -> None:
    twin = write_pascal_twin(tmp_path / "raw", "horse", train=1, val=1, with_cases=False)
    archive = tmp_path / "VOCtrainval_11-May-2012.tar"
    archive.write_bytes(b"")  # its name is enough: nothing is unpacked
    renamed = twin.voc.rename(twin.voc.parent / "VOC2012")
    for source in (archive, renamed, twin.voc.parent, twin.root):
        with pytest.raises(DataError, match="another year's VOC") as caught:
            find_voc(source, tmp_path / "work")
        assert "2012" in str(caught.value.found) and "VOCtrainval_03-May-2010.tar" in str(caught.value.remedy)
    assert not (tmp_path / "work").exists()
    # Under another name its lists give it away.
    renamed.rename(twin.voc)
    lines(twin.voc / "ImageSets" / "Main" / "horse_val.txt", "2009_000000 1\n2011_000003 -1\n")
    with pytest.raises(DataError, match="another year's VOC") as caught:
        read_lists(find_voc(twin.root, tmp_path / "work"), "horse")
    assert "2011_000003" in str(caught.value.found)


def test_all_missing_downloads_are_named_at_once(tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("voc", "parts", "car-test")}
    arguments = [text for name, place in places.items() for text in (f"--{name}", str(place))]
    with pytest.raises(DataError, match="the data are not there") as caught:
        main([*arguments, "--subject", "car", "--out", str(tmp_path / "out")])
    for words in (
        *map(str, places.values()), "--voc <", "--parts <", "--car-test <", "VOCtrainval_03-May-2010.tar",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/", "trainval.tar.gz", "https://roozbehm.info/pascal-parts",
    ):  # fmt: skip
        assert words in str(caught.value)
    places["voc"].mkdir()
    with pytest.raises(DataError, match="the data are not there") as caught:
        main([*arguments, "--subject", "car", "--out", str(tmp_path / "out")])
    assert "--parts <" in str(caught.value) and "--voc <" not in str(caught.value)


def test_archives_are_unpacked_as_far_as_needed(tmp_path: Path) -> None:
    twin = write_pascal_twin(tmp_path / "raw", "horse", train=2, val=1, with_cases=False)
    lines(twin.voc / "ImageSets" / "Main" / "cow_train.txt", "a 1\n")
    lines(twin.voc / "SegmentationClass" / "a.png", "x")
    archives = {"VOCtrainval_03-May-2010.tar": (twin.voc.parent, "w"), "trainval.tar.gz": (twin.parts, "w:gz")}
    for name, (folder, mode) in archives.items():
        with tarfile.open(tmp_path / name, mode) as file:  # type: ignore[call-overload]
            file.add(folder, folder.name)
    voc = find_voc(tmp_path / "VOCtrainval_03-May-2010.tar", tmp_path / "work")
    parts = find_parts(tmp_path / "trainval.tar.gz", tmp_path / "work")
    assert voc == tmp_path / "work" / "VOCtrainval_03-May-2010" / "VOCdevkit" / "VOC2010"
    assert sorted(path.name for path in parts.iterdir()) == sorted(path.name for path in twin.parts.iterdir())
    assert read_lists(voc, "horse") == read_lists(twin.voc, "horse")
    assert len(list((voc / "JPEGImages").iterdir())) == len(list((voc / "Annotations").iterdir())) == 3
    assert not (voc / "SegmentationClass").exists() and not (voc / "ImageSets" / "Main" / "cow_train.txt").exists()


def test_car_test_set(tmp_path: Path) -> None:
    folder = write_car_test_twin(tmp_path, count=2)
    for index in range(2):
        picture = render("car", "test", index)
        times = 1 + index % 2
        pixels, label, strangers = read_pair(*(folder / kind / f"00{index}.png" for kind in ("image_bg", "gt_mask")))
        assert np.array_equal(label, picture.label.repeat(times, axis=0)) and strangers == 0
        assert np.array_equal(pixels, picture.image.repeat(times, axis=0))


def test_colours_of_the_ground_truth(tmp_path: Path) -> None:
    names = ["body", "light", "plate", "wheel", "window"]
    row = [(0, 0, 0), (255, 255, 255), *(COLOURS[name] for name in names), (254, 52, 255), (1, 2, 3)]
    path = tmp_path / "a.png"
    Image.fromarray(np.array([row, row], dtype=np.uint8)).save(path)
    _, label, strangers = read_pair(path, path)
    assert label.tolist() == [[0, 0, 1, 2, 3, 4, 5, 0, 0]] * 2 and strangers == 4
    with Image.open(path) as file:
        file.resize((100, 100), Image.Resampling.BILINEAR).save(tmp_path / "b.png")
    with pytest.raises(LabelError, match="colours of no class") as caught:
        read_pair(path, tmp_path / "b.png")
    assert "JPEG copies" in str(caught.value.remedy) and "window (28, 230, 255)" in str(caught.value.expected)

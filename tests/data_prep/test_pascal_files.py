"""Folders, lists, pictures and ReGAN's test set: what is found and what is refused."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.pascal_part.files import Entry, find_parts, find_voc, read_list, read_lists, read_picture
from data_prep.pascal_part.regan import COLOURS, find_pairs, labels_of, read_pair
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
        ("", "an empty file"),
        ("a 1\nb\n", "line 2: 'b'"),
        ("a 1\nb 2\n", "line 2: 'b 2'"),
        ("a 1 1\n", "line 1"),
        ("../a 1\n", "line 1"),
        ("..\\a 1\n", "line 1"),
        (".a 1\n", "line 1"),
        ("a 1\nb 1\na 0\n", "line 3: a for the second time"),
    ],
)
def test_lists_of_another_layout(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match="another layout than VOC's") as caught:
        read_list(lines(tmp_path / "car_train.txt", text))
    assert words in str(caught.value.found) and caught.value.path == tmp_path / "car_train.txt"


def test_unusable_lists(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the image list") as caught:
        read_lists(tmp_path, "horse")
    assert str(caught.value.path).endswith("ImageSets/Main/horse_train.txt") and caught.value.found == "nothing"
    folder = tmp_path / "ImageSets" / "Main"
    lines(folder / "car_train.txt", "a -1\n")
    with pytest.raises(DataError, match="no line with the flag 1 or 0"):
        read_lists(tmp_path, "car")
    lines(folder / "car_train.txt", "a 1\n")
    lines(folder / "car_val.txt", "a 1\n")
    with pytest.raises(DataError, match="train list and in the val list"):
        read_lists(tmp_path, "car")
    (folder / "car_train.txt").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(DataError, match="cannot read the image list"):
        read_lists(tmp_path, "car")


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


def test_pictures(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)
    # Masks are drawn on the stored pixels: the camera's mark is not followed.
    assert np.array_equal(read_picture(path, (6, 8)), pixels)
    for mode, shown in (("L", 3), ("CMYK", 3), ("RGBA", 3), ("P", 3)):
        suffix = "jpg" if mode == "CMYK" else "png"
        Image.fromarray(pixels).convert(mode).save(tmp_path / f"{mode}.{suffix}")
        assert read_picture(tmp_path / f"{mode}.{suffix}").shape == (6, 8, shown)
    Image.fromarray(pixels).save(tmp_path / "png really.jpg", format="PNG")
    assert np.array_equal(read_picture(tmp_path / "png really.jpg"), pixels)


def test_unusable_pictures(tmp_path: Path) -> None:
    path = tmp_path / "2008_000008.jpg"
    with pytest.raises(DataError, match="the image is missing"):
        read_picture(path)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for keep in (0, 3, 30, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:keep])
        with pytest.raises(DataError, match="cannot read the image") as caught:
            read_picture(path)
        assert f"{keep} bytes" in str(caught.value.found)
    path.write_bytes(whole)
    with pytest.raises(DataError, match="image and masks differ in size") as caught:
        read_picture(path, (64, 60))
    assert caught.value.found == "64x64" and "60x64" in str(caught.value.expected)
    Image.fromarray(noise[..., 0].astype(np.uint16) * 256).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="more than 8 bits"):
        read_picture(tmp_path / "deep.png")


def test_car_test_set(tmp_path: Path) -> None:
    folder = write_car_test_twin(tmp_path, count=3)
    (folder / "image_bg" / ".DS_Store").write_bytes(b"x")
    pairs = find_pairs(folder)
    assert [stem for stem, _, _ in pairs] == ["000", "001", "002"]
    for index, (_, image, truth) in enumerate(pairs):
        picture = render("car", "test", index)
        times = 1 + index % 2
        pixels, label, strangers = read_pair(image, truth)
        assert np.array_equal(label, picture.label.repeat(times, axis=0)) and strangers == 0
        assert np.array_equal(pixels, picture.image.repeat(times, axis=0))
    assert find_pairs(folder, background=False)[0][1] == folder / "image_no_bg" / "000.png"


def test_colours_of_the_ground_truth() -> None:
    names = ["body", "light", "plate", "wheel", "window"]
    row = [(0, 0, 0), (255, 255, 255), *(COLOURS[name] for name in names), (254, 52, 255), (1, 2, 3)]
    label, strangers = labels_of(np.array([row, row], dtype=np.uint8), Path("a.png"))
    assert label.tolist() == [[0, 0, 1, 2, 3, 4, 5, 0, 0]] * 2 and strangers == 4


def test_ground_truth_that_lost_its_colours(tmp_path: Path) -> None:
    folder = write_car_test_twin(tmp_path, count=1)
    truth = folder / "gt_mask" / "000.png"
    for name, change in (
        ("a.jpg", lambda file: file.save(folder / "a.jpg", quality=90)),
        ("b.png", lambda file: file.resize((100, 100), Image.Resampling.BILINEAR).save(folder / "b.png")),
    ):
        with Image.open(truth) as file:
            change(file)
        with pytest.raises(LabelError, match="colours of no class") as caught:
            read_pair(folder / "image_bg" / "000.png", folder / name)
        assert "JPEG copies" in str(caught.value.remedy) and "window 28,230,255" in str(caught.value.expected)


def test_car_test_sets_that_do_not_pair_up(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder not found"):
        find_pairs(tmp_path)
    folder = write_car_test_twin(tmp_path, count=2)
    (folder / "gt_mask" / "001.png").rename(folder / "gt_mask" / "007.png")
    with pytest.raises(DataError, match="do not pair up") as caught:
        find_pairs(folder)
    assert caught.value.found == "gt_mask/007.png, image_bg/001.png without a partner"
    (folder / "gt_mask" / "007.png").rename(folder / "gt_mask" / "000.bmp")
    with pytest.raises(DataError, match="two files share one stem"):
        find_pairs(folder)
    for path in (*(folder / "gt_mask").iterdir(), *(folder / "image_bg").iterdir()):
        path.unlink()
    with pytest.raises(DataError, match="no picture"):
        find_pairs(folder)

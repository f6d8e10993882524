"""Folders of images and label maps: what is read, and every way a folder can be wrong."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slime_bench.data.label_maps import class_pixels
from slime_bench.data.manifest import folder_sha256, read_manifest
from slime_bench.data.reading import FolderDataset, Sample, read_label
from slime_bench.data.support import check_support
from slime_bench.data.verify import compare_manifest, refuse, verify_splits
from slime_bench.errors import ConfigError, DataError, LabelError

CLASSES = ("background", "body", "wheel")


def save(folder: Path, stem: str, label: np.ndarray, suffix: str = ".png", size: tuple[int, int] | None = None) -> None:
    """One sample: an image whose red channel is 80 times the label, and its label map."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    red = np.where(label == 255, 0, label * 80).astype(np.uint8)
    picture = Image.fromarray(np.stack([red, np.full_like(red, 7), np.full_like(red, 9)], axis=-1))
    if size is not None:
        picture = picture.resize(size)
    picture.save(folder / "images" / f"{stem}.png")
    if suffix == ".npy":
        np.save(folder / "labels" / f"{stem}.npy", label)
    else:
        Image.fromarray(label.astype(np.uint8)).save(folder / "labels" / f"{stem}.png")


def label_map(*values: int) -> np.ndarray:
    label = np.zeros((6, 8), dtype=np.uint8)
    for row, value in enumerate(values):
        label[row, 2:5] = value
    return label


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path, "b", label_map(1, 2, 255))
    save(tmp_path, "a", label_map(1), ".npy")
    return tmp_path


def test_samples_come_in_order_of_the_id(folder: Path) -> None:
    (folder / "images" / ".DS_Store").write_bytes(b"x")
    (folder / "images" / "._a.png").write_bytes(b"x")
    (folder / "labels" / "notes.txt").write_text("no data")
    dataset = FolderDataset(folder, CLASSES)
    assert dataset.ids == ["a", "b"] and len(dataset) == 2
    sample = dataset[1]
    assert sample.id == "b"
    assert sample.image.dtype == np.uint8 and sample.image.shape == (6, 8, 3)
    assert sample.label.dtype == np.int64 and sample.label.shape == (6, 8)
    assert np.unique(sample.label).tolist() == [0, 1, 2, 255]
    assert np.array_equal(sample.label, dataset.label(1))
    # Red is the first channel, green the second, blue the third.
    assert sample.image[1, 2].tolist() == [160, 7, 9]


def test_label_formats(tmp_path: Path) -> None:
    label = label_map(1, 2)
    palette = Image.fromarray(label, mode=None).convert("L")
    palette = Image.frombytes("P", palette.size, palette.tobytes())
    palette.putpalette([200, 0, 0] * 256)
    palette.save(tmp_path / "palette.png")
    np.save(tmp_path / "wide.npy", label.astype(np.int32))
    np.save(tmp_path / "bool.npy", label == 1)
    assert np.array_equal(read_label(tmp_path / "palette.png"), label)
    assert np.array_equal(read_label(tmp_path / "wide.npy"), label)
    assert np.array_equal(read_label(tmp_path / "bool.npy"), label == 1)


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3), np.uint8), np.zeros(4, np.uint8), np.zeros((2, 2), complex)])
def test_arrays_that_are_no_label_map(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(LabelError, match="not a label map") as caught:
        read_label(tmp_path / "a.npy")
    assert caught.value.path == tmp_path / "a.npy" and str(array.dtype) in str(caught.value)


def test_missing_folders_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder not found") as caught:
        FolderDataset(tmp_path / "no", CLASSES)
    assert caught.value.path == tmp_path / "no" and "SLIME_BENCH_DATA" in str(caught.value.remedy)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    with pytest.raises(DataError, match="no images"):
        FolderDataset(tmp_path, CLASSES)


def test_orphans_are_named(folder: Path) -> None:
    for index in range(7):
        Image.new("RGB", (8, 6)).save(folder / "images" / f"lonely{index}.jpg")
    with pytest.raises(DataError, match=r"7 image\(s\) without a label map") as caught:
        FolderDataset(folder, CLASSES)
    assert "lonely0.jpg" in str(caught.value.found) and "and 2 more" in str(caught.value.found)
    for index in range(7):
        (folder / "images" / f"lonely{index}.jpg").unlink()
    np.save(folder / "labels" / "ghost.npy", label_map(1))
    with pytest.raises(DataError, match=r"ghost\.npy") as caught:
        FolderDataset(folder, CLASSES)
    assert caught.value.path == folder / "labels"


def test_two_files_of_one_stem(folder: Path) -> None:
    Image.new("RGB", (8, 6)).save(folder / "images" / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg, a\.png"):
        FolderDataset(folder, CLASSES)


def test_bad_class_list(folder: Path) -> None:
    with pytest.raises(ConfigError):
        FolderDataset(folder, ["body", "wheel"])


def test_no_cut_goes_unseen(tmp_path: Path) -> None:
    label = np.random.default_rng(0).integers(0, 6, (20, 20), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(label).save(path)
    whole = path.read_bytes()
    refused = 0
    for keep in range(len(whole)):
        path.write_bytes(whole[:keep])
        try:
            found = read_label(path)
        except DataError:
            refused += 1
        else:  # only the file's end mark was lost
            assert np.array_equal(found, label)
    assert refused > len(whole) - 25


def test_file_that_vanished(folder: Path) -> None:
    dataset = FolderDataset(folder, CLASSES)
    (folder / "labels" / "b.png").unlink()
    with pytest.raises(DataError, match="nothing"):
        dataset[1]


def test_labels_outside_the_classes(tmp_path: Path) -> None:
    save(tmp_path, "a", label_map(3, 77))
    with pytest.raises(LabelError, match="outside the classes") as caught:
        FolderDataset(tmp_path, CLASSES)[0]
    assert caught.value.found == "3 (3 pixels), 77 (3 pixels)"
    assert "0..2 (background, body, wheel) or 255" in str(caught.value.expected)
    (tmp_path / "labels" / "a.png").unlink()
    np.save(tmp_path / "labels" / "a.npy", label_map(1).astype(np.int64) - 1)
    with pytest.raises(LabelError, match=r"-1 \("):
        FolderDataset(tmp_path, CLASSES).label(0)


def test_verification_counts(folder: Path) -> None:
    report = verify_splits({"test": FolderDataset(folder, CLASSES)}, folder).splits["test"]
    assert report.images == 2
    assert report.images_with_class == {"background": 2, "body": 2, "wheel": 1}
    assert report.pixels_of_class == {"background": 2 * 48 - 12, "body": 6, "wheel": 3}
    assert report.ignored_pixels == 3
    assert report.sizes == {"8x6": 2}


def test_verification_reports_every_bad_file(folder: Path) -> None:
    (folder / "images" / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match="cannot read the image") as caught:
        refuse(verify_splits({"test": FolderDataset(folder, CLASSES)}, folder), folder)
    assert caught.value.path == folder / "images" / "b.png"
    save(folder, "c", label_map(9))
    with pytest.raises(DataError, match="2 of 3 samples are unusable") as caught:
        refuse(verify_splits({"test": FolderDataset(folder, CLASSES)}, folder), folder)
    assert "b.png" in str(caught.value.found) and "c.png" in str(caught.value.found)


def test_class_pixels() -> None:
    assert class_pixels(np.array([[0, 2], [255, 2]]), 4).tolist() == [1, 0, 2, 0]


def sample(key: str, *values: int) -> Sample:
    label = label_map(*values).astype(np.int64)
    return Sample(key, np.zeros((*label.shape, 3), np.uint8), label)


def test_support_without_foreground() -> None:
    with pytest.raises(DataError, match="no foreground") as caught:
        check_support([sample("x", 255), sample("y")], CLASSES)
    assert "x, y" in str(caught.value.found) and caught.value.remedy
    with pytest.raises(DataError, match="no image"):
        check_support([], CLASSES)


def test_support_with_a_missing_class(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert check_support([sample("x", 1), sample("y")], CLASSES) == ["wheel"]
        assert "wheel" in caplog.text and "x, y" in caplog.text
        caplog.clear()
        assert check_support([sample("x", 1), sample("y", 2)], CLASSES) == []
        assert not caplog.records


def test_folder_hash_follows_names_and_contents(folder: Path) -> None:
    files = [*(folder / "images").iterdir(), *(folder / "labels").iterdir()]
    before = folder_sha256(folder, files)
    assert folder_sha256(folder, files[::-1]) == before
    renamed = (folder / "images" / "a.png").rename(folder / "images" / "z.png")
    files = [renamed if file.name == "a.png" and file.parent.name == "images" else file for file in files]
    assert folder_sha256(folder, files) != before
    with (folder / "labels" / "a.npy").open("ab") as file:
        file.write(b"!")
    assert folder_sha256(folder, files) != before


def test_manifest_must_be_complete(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_manifest(tmp_path)
    for text, words in (("{", "cannot read"), ("[]", "not complete"), ('{"version": 1}', "no subject, classes, files")):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(DataError, match=words) as caught:
            read_manifest(tmp_path)
        assert str(tmp_path) in str(caught.value.remedy)


def test_a_folder_differs_from_its_manifest(folder: Path) -> None:
    files = {"images/b.png": "0" * 64, "images/c.png": "0" * 64}
    found = compare_manifest(folder, files, {"images/b.png": "1" * 64})
    assert found == ["missing: images/c.png", "changed: images/b.png", "not listed: images/a.png"]

"""PASCAL-Part's .mat files: the real ones, those of the twin, and every way one can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from data_prep.pascal_part.annotations import read_annotation
from slime_bench.errors import DataError
from tests.fixtures.twins.pascal import Thing, anno, placed_label, write_mat

MASK = np.zeros((5, 7), dtype=bool)
MASK[1:4, 2:6] = True


def save(path: Path, **variables: Any) -> Path:
    savemat(path, variables, do_compression=True)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "2008_000001.mat"
    objects = [("person", MASK, []), ("car", ~MASK, [("wheel_1", MASK), ("frontside", ~MASK)])]
    write_mat(path, path.stem, objects)
    return path


def test_reads_objects_and_parts_in_order(file: Path) -> None:
    person, car = read_annotation(file)
    assert (person.name, person.parts) == ("person", ())
    assert np.array_equal(person.mask, MASK) and person.mask.dtype == bool
    assert car.name == "car" and np.array_equal(car.mask, ~MASK)
    assert [part.name for part in car.parts] == ["wheel_1", "frontside"]
    assert np.array_equal(car.parts[0].mask, MASK) and np.array_equal(car.parts[1].mask, ~MASK)


def test_no_objects(tmp_path: Path) -> None:
    write_mat(tmp_path / "a.mat", "a", [])
    assert read_annotation(tmp_path / "a.mat") == ()


@pytest.mark.parametrize("dtype", [bool, np.float64, np.int16])
def test_masks_of_other_types(tmp_path: Path, dtype: type) -> None:
    record = anno("a", [("car", MASK, [])])
    record[0, 0]["objects"][0, 0]["mask"] = MASK.astype(dtype)
    (item,) = read_annotation(save(tmp_path / "a.mat", anno=record))
    assert np.array_equal(item.mask, MASK)


def structure(array: np.ndarray) -> Any:
    """Names, types and numbers of axes of nested structs, without what differs between pictures."""
    if array.dtype.names is None:
        return (array.dtype.kind, array.ndim) if array.dtype.kind == "U" else (str(array.dtype), array.ndim)
    first = array.reshape(-1)[0]
    return [array.shape[0], array.ndim, array.dtype, *(structure(first[name]) for name in array.dtype.names)]


def test_twin_has_the_structure_of_a_real_file(real: Path, tmp_path: Path) -> None:
    label = placed_label(Thing("horse", (10, 10, 120, 90)), "support", 0)
    objects = [("horse", label > 0, [("head", label == 1), ("torso", label == 2)])]
    write_mat(tmp_path / "2008_000008.mat", "2008_000008", objects)
    twin = loadmat(tmp_path / "2008_000008.mat")
    original = loadmat(real / "pascal_part" / "2008_000008.mat")
    assert structure(twin["anno"]) == structure(original["anno"])
    assert twin["anno"].shape == original["anno"].shape == (1, 1)
    for each in (twin, original):
        record = each["anno"][0, 0]
        assert record["imname"].tolist() == ["2008_000008"]
        item = record["objects"][0, -1]
        assert item["class"].tolist() == ["horse"] and item["class_ind"].tolist() == [[13]]
        assert item["class_ind"].dtype == item["mask"].dtype == item["parts"][0, 0]["mask"].dtype == np.uint8
        assert np.unique(item["mask"]).tolist() == [0, 1]


def test_real_files(real: Path) -> None:
    found = {key: read_annotation(real / "pascal_part" / f"{key}.mat") for key in ("2008_000008", "2008_000026")}
    person, horse = found["2008_000008"]
    assert (person.name, len(person.parts), horse.name, len(horse.parts)) == ("person", 14, "horse", 13)
    assert horse.mask.shape == (442, 500) and int(horse.mask.sum()) == 38559
    assert {part.name: int(part.mask.sum()) for part in horse.parts}["tail"] == 2595
    assert [item.name for item in found["2008_000026"]] == ["person", "dog"]


def refused(path: Path) -> str:
    """What the error says that was found."""
    with pytest.raises(DataError, match="cannot read the annotation") as caught:
        read_annotation(path)
    assert caught.value.path == path and caught.value.remedy
    return str(caught.value.found)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8\xff\xe0" + bytes(400), b"<html>" * 90, b"MATLAB 7.3".ljust(126) + b"IM" + bytes(600)]
)
def test_missing_and_foreign_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mat"
    assert "No such file" in refused(path)
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize("compressed", [True, False])
def test_no_cut_goes_unseen(file: Path, compressed: bool) -> None:
    if not compressed:
        savemat(file, {"anno": anno("a", [("car", MASK, [("wheel_1", MASK)])])}, do_compression=False)
    whole = file.read_bytes()
    for keep in range(len(whole)):
        file.write_bytes(whole[:keep])
        refused(file)


def test_no_changed_byte_goes_unseen_or_unexplained(file: Path) -> None:
    whole = file.read_bytes()
    for place in range(124, len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        if place == 124:  # the format's minor version, which nobody needs
            assert len(read_annotation(file)) == 2
        else:
            refused(file)


def test_other_layouts(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    good = [("car", MASK, [("wheel_1", MASK)])]
    assert "anno" in refused(save(path, other=anno("a", good)))
    assert "objects" in refused(save(path, anno={"imname": "a"}))
    for field, value, words in (
        ("class", np.uint8(3), "3 in place of a name"),
        ("mask", "text", "mask"),
        ("mask", np.zeros((2, 2, 2)), "a mask [2, 2, 2]"),
        ("mask", MASK * 255, "255"),
        ("mask", np.where(MASK, np.nan, 0), "nan"),
        ("parts", np.ones((1, 2)), ""),
    ):
        wrong = anno("a", good)
        wrong[0, 0]["objects"][0, 0][field] = value
        assert words in refused(save(path, anno=wrong)), (field, words)
    write_mat(path, "a", [("person", MASK, []), ("car", MASK, [("wheel_2", MASK[:4])])])
    assert "masks differ in size: [(4, 7), (5, 7)]" in refused(path)

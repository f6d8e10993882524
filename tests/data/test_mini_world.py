"""The mini world: the same bytes everywhere, exact labels, captions whose every word the tokenizer knows."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.pretrain.models import build_tokenizer
from slime_bench.data.mini_world import render as mini_world
from slime_bench.data.mini_world.render import CLASSES, SPLIT_SIZES, STREAM, Picture, render, vocabulary, write_dataset
from slime_bench.errors import StorageError

# sha256 of the pixels of image and label map: the mini backbone was trained on these bytes and the tables made on them.
# Where they change, WORLD_VERSION must change and the backbone be trained again.
KNOWN = {
    ("car", "pretrain", 5): (
        "eda2c694f3c8acf5018c22e306fdaab1de67d960e720326a1a3fe0b3a66283ca",
        "a0e199ced2f0821a45c19f496ac737c650a51d93d3453315a75c6108334dff49",
    ),
    ("horse", "support", 3): (
        "e97f3d5e0b36d0c81097d24d374ac74472ab2103dfb79ddfa9ab01b5b4edcf3e",
        "925950b66f010c567a1c7183339f22aefeaba88766578cdecb9772375d91603c",
    ),
    ("face", "test", 41): (
        "a29d2f7e4d000eb3654b3fc38cbf5547a086196e09f7ebd23b782612951127da",
        "7f2e7650058b19b3d2097bc2e27f74051fc350f25313aefb5e68db06cd2075d7",
    ),
}
SPLITS = (*SPLIT_SIZES, STREAM)


@pytest.fixture(scope="module")
def pictures() -> dict[tuple[str, str, int], Picture]:
    """A few pictures of every subject and split."""
    return {
        (subject, split, index): render(subject, split, index)
        for subject in CLASSES
        for split in SPLITS
        for index in range(5)
    }


@pytest.mark.parametrize("key", KNOWN)
def test_the_same_bytes_on_every_machine(key: tuple[str, str, int]) -> None:
    picture = render(*key)
    found = tuple(hashlib.sha256(array.tobytes()).hexdigest() for array in (picture.image, picture.label))
    assert mini_world.WORLD_VERSION == 2 and found == KNOWN[key]


def test_form_of_the_pictures(pictures: Any) -> None:
    for (subject, _, _), picture in pictures.items():
        assert picture.image.shape == (128, 128, 3) and picture.image.dtype == np.uint8
        assert picture.label.shape == (128, 128) and picture.label.dtype == np.uint8
        present = set(np.unique(picture.label).tolist())
        assert present <= set(range(len(CLASSES[subject]))) and len(present) > 2
        assert picture.image.std() > 5


def test_every_class_occurs(pictures: Any) -> None:
    for subject, classes in CLASSES.items():
        labels = [picture.label for key, picture in pictures.items() if key[0] == subject]
        assert set(np.unique(labels).tolist()) == set(range(len(classes)))


def test_no_picture_is_in_two_splits(pictures: Any) -> None:
    hashes = [hashlib.sha256(picture.image.tobytes()).hexdigest() for picture in pictures.values()]
    assert len(set(hashes)) == len(hashes)


def test_every_word_of_a_caption_is_one_token(pictures: Any) -> None:
    words, tokenizer = set(vocabulary()), build_tokenizer(vocabulary())
    for picture in pictures.values():
        said = picture.caption.split(" ")
        assert set(said) <= words, sorted(set(said) - words)
        assert len(tokenizer(picture.caption).input_ids) == len(said) + 2  # start and end
        assert len(said) + 2 <= tokenizer.model_max_length
    for word in words - {"neck+torso"}:  # the punctuation is cut off, as in CLIP's own vocabulary
        assert len(tokenizer.tokenize(word)) == 1, word
    assert len(tokenizer.tokenize("zebra")) > 1  # any other word still has tokens


def test_captions_name_subject_parts_and_scene(pictures: Any) -> None:
    for (subject, _, _), picture in pictures.items():
        first, *rest = picture.caption.split(" , ")
        assert subject in first.split(" ") and first.startswith("a ") and rest[-1].startswith("on ")
        assert ("plate" in picture.caption.split(" ")) >= (
            subject == "car" and 3 in picture.label and not _second(picture)
        )


def _second(picture: Picture) -> bool:
    return "another" in picture.caption


class TestDataSet:
    @pytest.fixture(autouse=True)
    def small_splits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mini_world, "SPLIT_SIZES", {"support": 4, "val": 2, "test": 3})

    def test_what_is_written_is_what_is_rendered(self, tmp_path: Path) -> None:
        write_dataset(tmp_path / "horse", "horse")
        manifest = json.loads((tmp_path / "horse" / "manifest.json").read_text())
        assert manifest["subject"] == "horse" and manifest["classes"] == CLASSES["horse"]
        files = {p.relative_to(tmp_path / "horse").as_posix() for p in (tmp_path / "horse").rglob("*.png")}
        assert set(manifest["files"]) == files and len(files) == 18
        picture = render("horse", "val", 1)
        for kind, array in (("images", picture.image), ("labels", picture.label)):
            name = f"val/{kind}/horse-val-0001.png"
            stored = np.asarray(Image.open(tmp_path / "horse" / name))
            assert np.array_equal(stored, array) and stored.shape == array.shape
            assert manifest["files"][name] == hashlib.sha256(array.tobytes()).hexdigest()
        assert manifest["captions"]["horse-val-0001"] == picture.caption

    def test_other_test_pictures_share_none_with_the_first(self, tmp_path: Path) -> None:
        for first in (0, 3):
            write_dataset(tmp_path / str(first), "car", first)
        ours, fresh = (json.loads((tmp_path / str(first) / "manifest.json").read_text()) for first in (0, 3))
        assert fresh["first_test"] == 3 and "first_test" not in ours
        tests = [{value for name, value in one["files"].items() if name.startswith("test/")} for one in (ours, fresh)]
        assert all(len(each) == 6 for each in tests) and not tests[0] & tests[1]
        assert "test/images/car-test-0003.png" in fresh["files"] and "test/images/car-test-0000.png" in ours["files"]
        same = [{n: v for n, v in one["files"].items() if not n.startswith("test/")} for one in (ours, fresh)]
        assert same[0] == same[1]

    def test_a_larger_pool_begins_with_the_usual_one(self, tmp_path: Path) -> None:
        write_dataset(tmp_path / "usual", "car")
        write_dataset(tmp_path / "large", "car", pool=7)
        usual, large = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("usual", "large"))
        assert large["pool"] == 7 and "pool" not in usual
        assert usual["files"].items() < large["files"].items() and len(large["files"]) == len(usual["files"]) + 2 * 3

    def test_a_failure_leaves_nothing_half_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root = tmp_path / "car"
        write_dataset(root, "car")
        before = sorted((path, path.read_bytes()) for path in root.rglob("*") if path.is_file())
        saved: list[Any] = []
        real = Image.Image.save

        def full_disk(image: Image.Image, path: Any, *args: Any, **kwargs: Any) -> None:
            saved.append(path)
            if len(saved) == 5:
                raise OSError(28, "No space left on device")
            real(image, path, *args, **kwargs)

        monkeypatch.setattr(Image.Image, "save", full_disk)
        with pytest.raises(StorageError, match="No space left") as caught:
            write_dataset(root, "car")
        assert caught.value.path == root and caught.value.remedy
        assert sorted((path, path.read_bytes()) for path in root.rglob("*") if path.is_file()) == before
        assert [path.name for path in tmp_path.iterdir()] == ["car"]
        saved.clear()
        with pytest.raises(StorageError):
            write_dataset(tmp_path / "horse", "horse")
        assert [path.name for path in tmp_path.iterdir()] == ["car"]


def test_training_pictures_share_none_with_validation_and_test() -> None:
    """Pictures are keyed by split and number; here of the pool's both ends."""
    pool = {render("car", "support", index).image.tobytes() for index in (*range(20), *range(2980, 3000))}
    others = {render("car", split, index).image.tobytes() for split in ("val", "test") for index in range(10)}
    assert len(pool) == 40 and not pool & others

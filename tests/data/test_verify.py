"""Verification: what is wrong with a data set is found and named; a good verdict is remembered."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.fft import dctn

from slime_bench.data.duplicates import MAX_BITS, MAX_DIFFERENCE, find_duplicates, fingerprint
from slime_bench.data.manifest import MANIFEST, pixels_sha256
from slime_bench.data.mini_world.render import render
from slime_bench.data.reading import FolderDataset
from slime_bench.data.verify import (
    CACHE,
    VerifyReport,
    ensure_verified,
    verified,
    verify_splits,
)
from slime_bench.errors import DataError, LabelError

CLASSES = ("background", "body", "light", "plate", "wheel", "window")
PICTURES = {"support": 4, "val": 2, "test": 3}


def recompressed(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer).convert("RGB"))


def resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def write(root: Path, split: str, key: str, image: np.ndarray, label: np.ndarray, suffix: str = ".png") -> None:
    for kind, array, end in (("images", image, suffix), ("labels", label, ".png")):
        path = root / split / kind / f"{key}{end}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def write_manifest(root: Path) -> None:
    files = {}
    for file in sorted(root.rglob("*.png")):
        with Image.open(file) as image:
            files[file.relative_to(root).as_posix()] = pixels_sha256(np.asarray(image))
    manifest = {"version": 1, "subject": "car", "classes": CLASSES, "files": files}
    (root / MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small car data set: four support, two validation and three test pictures, without a manifest."""
    root = tmp_path / "car"
    for split, count in PICTURES.items():
        for index in range(count):
            picture = render("car", split, index)
            write(root, split, f"{split[0]}{index}", picture.image, picture.label)
    return root


def splits_of(root: Path, *names: str, classes: tuple[str, ...] = CLASSES) -> dict[str, FolderDataset]:
    return {name: FolderDataset(root / name, classes) for name in names or PICTURES}


def look(root: Path) -> VerifyReport:
    return verify_splits(splits_of(root), root)


Print = tuple[int, np.ndarray]


def duplicates_of(prints: Sequence[Print]) -> list[tuple[int, int]]:
    thumbs = np.array([thumb for _, thumb in prints], np.uint8).reshape(-1, 32, 32, 3)
    return find_duplicates(np.array([bits for bits, _ in prints], np.uint64), thumbs)


def same_picture(first: Print, second: Print) -> bool:
    """The plain definition."""
    close = (first[0] ^ second[0]).bit_count() <= MAX_BITS
    return close and float(np.abs(first[1].astype(int) - second[1]).mean()) <= MAX_DIFFERENCE


class TestPerceptualHash:
    subjects = st.sampled_from(["car", "horse", "face"])
    indices = st.integers(0, 400)

    @settings(max_examples=40, deadline=None)
    @given(subject=subjects, index=indices, quality=st.integers(60, 100))
    def test_recompressed_pictures_are_found(self, subject: str, index: int, quality: int) -> None:
        image = render(subject, "pretrain", index).image
        assert same_picture(fingerprint(image), fingerprint(recompressed(image, quality)))

    @settings(max_examples=60, deadline=None)
    @given(subject=subjects, indices=st.sets(indices, min_size=2, max_size=2))
    def test_different_pictures_are_not(self, subject: str, indices: set[int]) -> None:
        first, second = (fingerprint(render(subject, "pretrain", index).image) for index in sorted(indices))
        assert not same_picture(first, second)

    def test_real_photographs(self, real: Path) -> None:
        files = sorted(real.rglob("*.jpg"))
        assert len(files) >= 5
        images = [np.array(Image.open(file).convert("RGB")) for file in files]
        prints = [fingerprint(image) for image in images]
        half = [fingerprint(resized(image, image.shape[1] // 2, image.shape[0] // 2)) for image in images]
        assert all(same_picture(first, second) for first, second in zip(prints, half, strict=True))
        assert duplicates_of([*prints, *half]) == [(index, index + len(files)) for index in range(len(files))]

    @pytest.mark.parametrize(("height", "width"), [(128, 128), (512, 300), (20, 700), (1, 1)])
    def test_the_hash_is_that_of_cosine_coefficients(self, height: int, width: int) -> None:
        """Against scipy's transform, and bit by bit."""
        image = resized(render("face", "test", 3).image, width, height)
        found, thumb = fingerprint(image)
        grey = np.asarray(thumb, float) @ [0.299, 0.587, 0.114]
        low = np.rint(dctn(grey, norm="ortho")[:8, :8]).ravel()
        middle = float(np.median(low[1:]))
        bits = ["0", *("1" if value > middle else "0" for value in low[1:])]
        assert found == int("".join(bits), 2) and thumb.shape == (32, 32, 3)

    def test_flat_pictures(self) -> None:
        flat = [np.full((40, 50, 3), value, np.uint8) for value in (0, 3, 128, 255)]
        red = np.zeros((40, 50, 3), np.uint8)
        red[..., 0] = 128
        prints = [fingerprint(each) for each in (*flat, red)]
        assert {bits for bits, _ in prints} == {0}
        assert duplicates_of(prints) == [(0, 1)]  # black and nearly black; colour counts

    @settings(max_examples=15, deadline=None)
    @given(count=st.integers(0, 600), kinds=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
    def test_all_against_all(self, count: int, kinds: int, seed: int) -> None:
        """Against the plain definition, over the edges of the blocks of rows."""
        rng = np.random.default_rng(seed)
        originals = rng.integers(0, 2**63, kinds)
        thumbs = rng.integers(0, 256, (kinds, 32, 32, 3), dtype=np.uint8)
        prints = []
        for kind in rng.integers(0, kinds, count):
            flipped = int(originals[kind])
            for bit in rng.integers(0, 64, rng.integers(0, 6)):
                flipped ^= 1 << int(bit)
            prints.append((flipped, thumbs[kind]))
        expected = []
        for j in range(count):
            earlier = [i for i in range(j) if same_picture(prints[i], prints[j])]
            expected += [(earlier[0], j)] if earlier else []
        assert duplicates_of(prints) == expected


class TestVerifySplits:
    def test_counts(self, root: Path) -> None:
        report = look(root)
        assert report.usable and report.problems == [] and report.duplicates == [] and report.differences == []
        for split, count in PICTURES.items():
            labels = np.stack([render("car", split, index).label for index in range(count)])
            found = report.splits[split]
            assert found.images == count and found.sizes == {"128x128": count} and found.ignored_pixels == 0
            for index, name in enumerate(CLASSES):
                assert found.pixels_of_class[name] == (labels == index).sum()
                assert found.images_with_class[name] == (labels == index).any((1, 2)).sum()

    def test_ignored_pixels_and_sizes(self, root: Path) -> None:
        label = np.full((40, 60), 255, np.uint8)
        label[:10] = 1
        write(root, "val", "odd", np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8), label)
        shutil.rmtree(root / "test")
        write(root, "test", "only", np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8), label)
        report = look(root)
        assert report.splits["val"].ignored_pixels == 30 * 60
        assert report.splits["val"].sizes == {"128x128": 2, "60x40": 1}
        assert report.splits["test"].pixels_of_class["body"] == 600

    @pytest.mark.parametrize(
        ("spoil", "summary", "kind"),
        [
            (lambda image, label: image.write_bytes(image.read_bytes()[:2000]), "cannot read the image", DataError),
            (lambda image, label: label.write_bytes(image.read_bytes()), "the label map is a colour", LabelError),
            (lambda image, label: Image.new("L", (128, 128), 6).save(label), "label outside the classes", LabelError),
        ],
    )
    def test_a_faulty_sample(self, root: Path, spoil: Callable[..., Any], summary: str, kind: type[Exception]) -> None:
        image, label = root / "test" / "images" / "t1.png", root / "test" / "labels" / "t1.png"
        spoil(image, label)
        report = look(root)
        (problem,) = report.problems
        assert type(problem) is kind and summary in problem.summary and problem.path in (image, label)
        assert problem.found is not None and not report.usable and report.splits["test"].images == 2
        with pytest.raises(kind, match=summary) as caught:
            ensure_verified(splits_of(root), root)
        assert caught.value.path == problem.path

    def test_several_faulty_samples(self, root: Path) -> None:
        for split, key in (("support", "s1"), ("test", "t0"), ("test", "t2")):
            (root / split / "images" / f"{key}.png").write_bytes(b"GIF89a")
        report = look(root)
        assert [Path(str(each.path)).stem for each in report.problems] == ["s1", "t0", "t2"]
        with pytest.raises(DataError, match="3 of 9 samples are unusable") as caught:
            ensure_verified(splits_of(root), root)
        assert str(caught.value.found).count("cannot read the image") == 3

    def test_duplicates(self, root: Path) -> None:
        first, other = render("car", "support", 0), render("car", "test", 0)
        write(root, "test", "copy", recompressed(first.image, 75), first.label, ".jpg")
        write(root, "test", "zagain", resized(other.image, 256, 256), np.zeros((256, 256), np.uint8))
        write(root, "val", "copy", first.image, first.label)
        report = look(root)
        assert report.duplicates == [
            ("support/s0", "val/copy"),
            ("support/s0", "test/copy"),
            ("test/t0", "test/zagain"),
        ]
        assert report.usable and report.leaks == ["support/s0 = test/copy"]
        assert report.twins == ["support/s0 = val/copy", "test/t0 = test/zagain"]

    def test_nothing_is_drawn(self, root: Path) -> None:
        states = random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()  # type: ignore[index]
        look(root)
        assert states == (random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist())  # type: ignore[index]


class TestManifest:
    @pytest.fixture(autouse=True)
    def manifest(self, root: Path) -> None:
        write_manifest(root)

    def test_as_listed(self, root: Path) -> None:
        for file in root.rglob("*.png"):  # another compression is the same picture
            with Image.open(file) as image:
                image.load()
                image.save(file, compress_level=0)
        (root / "test" / "images" / ".DS_Store").write_text("")
        assert look(root).usable

    def test_edges_of_listed_label_maps_are_not_judged(self, root: Path) -> None:
        """Of thousands of drawings one looks as if it had been smoothed; the manifest says that it was made so."""
        path = root / "val" / "labels" / "v1.png"
        label = np.array(Image.open(path))
        label[...] = 0
        label[10:30, 10:30], label[11:29, 11:29], label[12:28, 12:28] = 1, 2, 3  # 0, 1, 2, 3: a ramp on every side
        Image.fromarray(label).save(path)
        assert "soft edges" in look(root).problems[0].summary
        write_manifest(root)
        assert look(root).usable

    @pytest.mark.parametrize("kind", ["images", "labels"])
    def test_a_changed_pixel(self, root: Path, kind: str) -> None:
        path = root / "val" / kind / "v1.png"
        pixels = np.array(Image.open(path))
        pixels[5, 7] ^= 1
        Image.fromarray(pixels).save(path)
        report = look(root)
        assert report.differences == [f"changed: val/{kind}/v1.png"] and not report.usable
        with pytest.raises(DataError, match="differs from its manifest") as caught:
            ensure_verified(splits_of(root), root)
        assert caught.value.found == f"changed: val/{kind}/v1.png"

    def test_missing_and_not_listed(self, root: Path) -> None:
        for kind in ("images", "labels"):
            (root / "test" / kind / "t1.png").rename(root / "test" / kind / "more.png")
        assert look(root).differences == [
            "missing: test/images/t1.png, test/labels/t1.png",
            "not listed: test/images/more.png, test/labels/more.png",
        ]

    def test_only_the_splits_asked_for(self, root: Path) -> None:
        for kind in ("images", "labels"):
            (root / "val" / kind / "v0.png").unlink()
        assert verify_splits(splits_of(root, "support", "test"), root).usable
        assert len(look(root).differences) == 1

    @pytest.mark.parametrize(
        ("text", "found"),
        [("", "Expecting value"), ("[]", "version, subject"), ('{"version": 1}', "subject, classes, files"),
         ("[" * 100_000, "recursion")],
    )  # fmt: skip
    def test_a_broken_manifest(self, root: Path, text: str, found: str) -> None:
        (root / MANIFEST).write_text(text)
        report = look(root)
        (problem,) = report.problems
        assert problem.path == root / MANIFEST and report.splits["test"].images == 3
        assert found in str(problem.found) and str(root) in str(problem.remedy)
        with pytest.raises(DataError, match="manifest"):
            ensure_verified(splits_of(root), root)


class Reads:
    """Counts the samples that are decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        plain = FolderDataset.__getitem__

        def counted(dataset: FolderDataset, index: int) -> Any:
            self.count += 1
            return plain(dataset, index)

        monkeypatch.setattr(FolderDataset, "__getitem__", counted)

    def during(self, root: Path, *names: str, **arguments: Any) -> int:
        before = self.count
        ensure_verified(splits_of(root, *names, **arguments), root)
        return self.count - before


class TestRemembered:
    @pytest.fixture(autouse=True)
    def user_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user cache"))
        return tmp_path / "user cache"

    @pytest.fixture
    def reads(self, monkeypatch: pytest.MonkeyPatch) -> Reads:
        return Reads(monkeypatch)

    def test_once(self, root: Path, reads: Reads, user_cache: Path) -> None:
        assert [reads.during(root), reads.during(root)] == [9, 0]
        assert (root / CACHE).is_file() and not user_cache.exists()
        first, again = look(root), verified(splits_of(root), root)
        assert again.remembered and again.splits == first.splits and again.duplicates == first.duplicates
        assert not verified(splits_of(root), root, fresh=True).remembered

    @pytest.mark.parametrize("change", ["time", "size", "new file", "lost file", "manifest", "hidden file"])
    def test_until_a_file_changes(self, root: Path, reads: Reads, change: str) -> None:
        reads.during(root)
        path = root / "val" / "images" / "v1.png"
        if change == "time":
            os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
        elif change == "size":
            stat = path.stat()
            path.write_bytes(path.read_bytes() + b"\0")
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        elif change == "new file":
            for kind in ("images", "labels"):
                shutil.copy2(root / "val" / kind / "v1.png", root / "val" / kind / "v2.png")
        elif change == "lost file":
            path.unlink()
            (root / "val" / "labels" / "v1.png").unlink()
        elif change == "manifest":
            write_manifest(root)
        else:
            (root / "val" / "images" / ".DS_Store").write_text("")
        expected = {"new file": 10, "lost file": 8, "hidden file": 0}.get(change, 9)
        assert reads.during(root) == expected and reads.during(root) == 0

    def test_by_classes_and_by_colours(self, root: Path, reads: Reads) -> None:
        more = (*CLASSES, "door")
        assert [reads.during(root), reads.during(root, classes=more)] == [9, 9]
        assert [reads.during(root), reads.during(root, classes=more)] == [0, 0]
        splits = splits_of(root)
        for dataset in splits.values():
            dataset.colours = {"body": [255, 0, 0]}
        before = reads.count
        verified(splits, root)
        assert reads.count - before == 9

    def test_a_part_of_what_is_known(self, root: Path, reads: Reads, caplog: pytest.LogCaptureFixture) -> None:
        write(root, "test", "copy", render("car", "val", 0).image, render("car", "val", 0).label)
        assert [reads.during(root), reads.during(root, "support", "test"), reads.during(root, "val")] == [10, 0, 0]
        report = verified(splits_of(root, "support", "test"), root)
        assert set(report.splits) == {"support", "test"} and report.leaks == []
        assert len(verified(splits_of(root, "val", "test"), root).leaks) == 1
        assert len(json.loads((root / CACHE).read_text())["verdicts"]) == 1

    def test_what_is_faulty_is_not_remembered(self, root: Path, reads: Reads) -> None:
        path = root / "test" / "images" / "t1.png"
        content = path.read_bytes()
        path.write_bytes(b"")
        for _ in range(2):
            with pytest.raises(DataError):
                ensure_verified(splits_of(root), root)
        assert reads.count == 18 and not (root / CACHE).exists()
        path.write_bytes(content)
        ensure_verified(splits_of(root), root)

    def test_a_file_that_changes_meanwhile(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = FolderDataset.__getitem__

        def changing(dataset: FolderDataset, index: int) -> Any:
            path = dataset.pairs[index].image
            os.utime(path, ns=(1, time.time_ns()))
            return plain(dataset, index)

        monkeypatch.setattr(FolderDataset, "__getitem__", changing)
        ensure_verified(splits_of(root), root)
        assert not (root / CACHE).exists()

    def test_a_root_that_cannot_be_written(self, root: Path, reads: Reads, user_cache: Path) -> None:
        (root / CACHE).mkdir()  # tests may run as root, whom no permission stops
        assert [reads.during(root), reads.during(root)] == [9, 0]
        assert len(list((user_cache / "slime-bench" / "verified").iterdir())) == 1
        other = root.with_name("horse")
        shutil.copytree(root, other)
        assert reads.during(other) == 9  # no other folder's verdict

    @pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', '{"version": 2, "verdicts": 3}', "[" * 100_000])
    def test_a_broken_cache(self, root: Path, reads: Reads, text: str) -> None:
        (root / CACHE).write_text(text)
        assert [reads.during(root), reads.during(root)] == [9, 0]

    def test_warnings(self, root: Path, caplog: pytest.LogCaptureFixture) -> None:
        picture = render("car", "support", 0)
        write(root, "test", "copy", picture.image, picture.label)
        write(root, "support", "twin", picture.image, picture.label)
        for _ in range(2):  # also when it is remembered
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                ensure_verified(splits_of(root), root)
            messages = [each.getMessage() for each in caplog.records]
            assert len(messages) == 2
            assert "1 image(s) of the test split are in another split too: support/s0 = test/copy" in messages[0]
            assert "1 image(s) appear twice: support/s0 = support/twin" in messages[1]

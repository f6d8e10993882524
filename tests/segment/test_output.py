"""What `slime-bench segment` writes: label maps, overlays, areas, the grid; and how files are found and named."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from slime_bench.colours import palette
from slime_bench.data.reading import read_image
from slime_bench.data.transforms import unfit
from slime_bench.errors import DataError, ResultError, StorageError
from slime_bench.lock import BusyError
from slime_bench.segment import segmenter
from slime_bench.segment.folder import Record, Run, check_folder, list_images, locked, read_run, write_run
from slime_bench.segment.output import (
    COLUMNS,
    GAP,
    TILE,
    Shown,
    areas_csv,
    blend,
    grid_png,
    overlay,
    pixel_counts,
    scores_npz,
    thumbnail,
)
from slime_bench.segment.segmenter import label_map

Array = NDArray[Any]
COLOURS = [(int(red), int(green), int(blue)) for red, green, blue in palette(4).tolist()]
NAMES = ["background", "body", "größe", "wheel"]


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


@given(
    hnp.arrays(np.float32, (3, 6, 6), elements=st.floats(-4, 4, width=32)),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.sampled_from(["squash", "pad"]),
)
@settings(deadline=None)
def test_a_label_is_the_argmax_of_the_enlarged_scores(scores: Array, size: tuple[int, int], fit: str) -> None:
    maps = torch.from_numpy(scores)
    expected = unfit(maps, size, fit)
    found = torch.from_numpy(label_map(maps, size, fit)).long()
    assert found.shape == size
    chosen = expected.gather(0, found[None])[0]
    assert bool((chosen == expected.amax(0)).all())
    assert bool((found <= expected.argmax(0)).all()), "the first of equals"


@pytest.mark.parametrize("fit", ["squash", "pad"])
@pytest.mark.parametrize("size", [(57, 130), (200, 33), (4, 9), (6, 6)])
def test_strips_of_a_large_label_map_make_the_whole(
    size: tuple[int, int], fit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = torch.randn((4, 6, 6), generator=torch.Generator().manual_seed(0))
    whole = label_map(scores, size, fit)
    monkeypatch.setattr(segmenter, "LARGE", 1)
    assert (label_map(scores, size, fit) == whole).all()


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_saved_scores_are_those_of_the_label_map(fit: str) -> None:
    """By the line of docs/segment.md."""
    scores = torch.randn((4, 16, 16), generator=torch.Generator().manual_seed(0))
    label = label_map(scores, (50, 90), fit)
    with np.load(io.BytesIO(scores_npz(scores, (50, 90), fit, NAMES))) as saved:
        assert saved["scores"].dtype == np.float16 and saved["scores"].shape == (4, 9 if fit == "pad" else 16, 16)
        assert saved["classes"].tolist() == NAMES and saved["size"].tolist() == [50, 90]
        maps = torch.from_numpy(saved["scores"]).float()[None]
        large = torch.nn.functional.interpolate(maps, tuple(saved["size"].tolist()), mode="bilinear")[0].numpy()
    assert (large.argmax(0) == label).mean() > 0.995
    assert pixel_counts(label, 4) == np.bincount(label.ravel(), minlength=4).tolist()


def test_the_grid_holds_no_large_pictures() -> None:
    label = Image.fromarray(np.repeat(np.arange(4, dtype=np.uint8), 1000)[None].repeat(30, 0))
    image, small = thumbnail(Image.new("RGB", (2000, 15)), label)
    assert image.size == (1600, 12) and small.shape == (12, 1600) and np.unique(small).tolist() == [0, 1, 2, 3]
    image, same = thumbnail(Image.new("RGB", (40, 30)), Image.new("L", (40, 30)))
    assert image.size == (40, 30) and same.shape == (30, 40)


def test_blending_leaves_the_background_and_colours_the_rest() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    label = np.zeros((20, 30), dtype=np.uint8)  # half the image's size
    label[5:15, 5:15] = 2
    label[0, 0] = 255  # ignored: no colour
    mixed = np.array(blend(Image.fromarray(image), label, COLOURS))
    assert (mixed[:8] == image[:8]).all() and (mixed[32:] == image[32:]).all()
    assert (mixed[10, 12:28] == COLOURS[2]).all(), "the outline is in the full colour"
    inside = mixed[14:26, 14:26].reshape(-1, 3).astype(int)
    spread = inside - np.array(COLOURS[2]) * 0.6
    assert np.ptp(spread, axis=1).max() <= 1, "the rest is grey"


def test_an_overlay_has_a_legend_of_what_it_shows() -> None:
    image, label = Image.new("RGB", (200, 100), (90, 90, 90)), np.zeros((50, 100), dtype=np.uint8)
    label[:25] = 1
    with opened(overlay(image, label, NAMES, COLOURS)) as picture:
        below = np.array(picture)[100:].reshape(-1, 3).astype(int)
        assert picture.format == "JPEG" and picture.width == 200 and len(below)
    near = [int((np.abs(below - colour).max(1) < 12).sum()) for colour in COLOURS[1:]]
    assert near[0] > 80 and near[1:] == [0, 0]
    with opened(overlay(image, label * 0, NAMES, COLOURS)) as picture:
        assert picture.height > 100  # "nothing found"


def test_areas_add_up() -> None:
    one = Record("a, b.png", 1, 1, [2, 2], [1, 2, 0, 1], [None, 0.5, 0.25, None])
    content = areas_csv([one, Record("ü\udcff.png", 1, 1, [2, 2], [4, 0, 0, 0])], NAMES).decode()
    rows = list(csv.DictReader(io.StringIO(content)))
    assert list(rows[0]) == ["image", "class", "pixels", "fraction", "confidence"] and len(rows) == 8
    assert list(rows[2].values()) == ["a, b.png", "größe", "0", "0.000000", "0.250"]
    assert [row["confidence"] for row in rows] == ["", "0.500", "0.250", "", "", "", "", ""], "where it is known"
    assert sum(float(row["fraction"]) for row in rows[:4]) == 1 and rows[4]["image"] == "ü\\udcff.png"


def test_the_grid_shows_images_of_any_form_and_name() -> None:
    sizes = [(30, 90), (128, 128), (300, 20), (50, 50)]
    shown = [
        Shown(f"{'long ' * 40}{index}\n.png", Image.new("RGB", size), np.ones(size, np.uint8))
        for index, size in enumerate(sizes)
    ]
    with opened(grid_png(shown[:1], shown, 90, NAMES, COLOURS)) as picture:
        assert picture.width == COLUMNS * (2 * TILE + 2 * GAP) + GAP and picture.height > 3 * TILE
    with opened(grid_png([], shown[:1], 1, NAMES, COLOURS)) as picture:
        assert picture.width >= 2 * TILE


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


class TestImages:
    def names(self, out: Path, *places: Path) -> list[str]:
        return list(list_images(places, out)[0])

    def test_a_folder_without_what_is_inside_it(self, tmp_path: Path) -> None:
        touch(tmp_path, "b 1.JPG", "a.webp", ".hidden.png", "._a.png", "notes.txt", "p.heic", "masks/labels/z.png")
        files, passed = list_images([tmp_path], tmp_path / "masks")
        assert list(files) == ["a", "b 1"]
        assert passed == ["not called like an image: notes.txt", "HEIC, which is to be exported as JPEG: p.heic"]

    def test_every_suffix_of_a_still_picture(self, tmp_path: Path) -> None:
        kinds = ["JFIF", "jpe", "jp2", "ppm", "pgm", "pnm", "gif", "avif", "tiff"]
        touch(tmp_path, *(f"{kind}.{kind}" for kind in kinds), "clip.mp4", "raw.cr2", "inside/a.png")
        files, passed = list_images([tmp_path], tmp_path / "out")
        assert sorted(files) == sorted(kinds)
        assert passed == ["not called like an image: clip.mp4, raw.cr2", "folders: inside"]

    def test_links(self, tmp_path: Path) -> None:
        """Two names are two images; a link to nothing is one that cannot be read, and is refused where it is all."""
        touch(tmp_path, "a.png")
        for name, target in (("b.png", "a.png"), ("gone.jpg", "nowhere.jpg"), ("loop.jpg", "loop.jpg")):
            (tmp_path / name).symlink_to(target)
        files, passed = list_images([tmp_path], tmp_path / "out")
        assert list(files) == ["a", "b", "gone", "loop"] and not passed
        assert not Record("gone.jpg", 0, 0, [], []).is_of(files["gone"])
        with pytest.raises(DataError, match=r"nowhere\.jpg, which is not there"):
            read_image(files["gone"])
        for name in ("gone.jpg", "loop.jpg"):
            with pytest.raises(DataError, match="which is not there"):
                list_images([tmp_path / "a.png", tmp_path / name], tmp_path / "out")

    def test_one_stem_twice(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.png", "A.jpg", "b.png", "e\u0301.png", "\u00e9.jpg")
        assert set(self.names(tmp_path / "out", tmp_path)) == {"A.jpg", "a.png", "b", "e\u0301.png", "\u00e9.jpg"}

    def test_one_name_in_two_folders(self, tmp_path: Path) -> None:
        touch(tmp_path, "one/a.png", "two/a.png")
        with pytest.raises(DataError, match="one name"):
            self.names(tmp_path / "out", tmp_path / "one", tmp_path / "two")

    def test_a_file_that_is_named_twice_counts_once(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.png", "b.png")
        assert self.names(tmp_path / "out", tmp_path / "a.png", tmp_path, tmp_path / "a.png") == ["a", "b"]

    @pytest.mark.parametrize("place", ["", "a.png", "labels", "overlays/a.jpg"])
    def test_results_are_no_images(self, tmp_path: Path, place: str) -> None:
        touch(tmp_path, "a.png", "labels/a.png", "overlays/a.jpg")
        with pytest.raises(DataError, match="one folder"):
            self.names(tmp_path, tmp_path / place)
        assert self.names(tmp_path / "masks", tmp_path / place)

    @pytest.mark.parametrize("place", ["nowhere", "empty"])
    def test_no_images(self, tmp_path: Path, place: str) -> None:
        touch(tmp_path, "empty/a.heic")
        with pytest.raises(DataError, match="nothing" if place == "nowhere" else r"a\.heic"):
            self.names(tmp_path / "out", tmp_path / place)


class TestRun:
    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"origin": {}, "images": {"a": {"size": 1}}}'])
    def test_a_record_that_cannot_be_read(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ResultError, match=r"run\.json"):
            read_run(tmp_path)

    @pytest.mark.parametrize("name", ["grid.png", "labels"])
    def test_a_folder_of_someone_else(self, tmp_path: Path, name: str) -> None:
        out = tmp_path / "out"
        check_folder(out)
        touch(out, name)
        with pytest.raises(ResultError):
            check_folder(out)
        write_run(out, Run())
        check_folder(out)

    def test_one_command_at_a_time(self, tmp_path: Path) -> None:
        """By whatever path; the refused one writes nothing and says who is there; a killed one holds nothing."""
        out = tmp_path / "not there yet" / "out"
        code = (
            "import sys, time; from pathlib import Path; from slime_bench.segment.folder import locked\n"
            "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
        )
        other = subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, text=True)
        try:
            assert other.stdout is not None and other.stdout.readline() == "held\n"
            before = {each: each.read_bytes() for each in out.iterdir()}
            (tmp_path / "link").symlink_to(out)
            for path in (out, tmp_path / "link"):
                with pytest.raises(BusyError) as caught, locked(path):
                    pass
                assert f"process {other.pid}" in str(caught.value) and "choose another --out" in str(caught.value)
                assert caught.value.path == path
            assert {each: each.read_bytes() for each in out.iterdir()} == before
        finally:
            other.kill()
            other.wait()
        with locked(out):
            pass

    def test_the_folder_one_stands_in(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with locked(Path()), pytest.raises(BusyError), locked(tmp_path):
            pass
        touch(tmp_path, "file")
        with pytest.raises(StorageError, match="choose another --out"), locked(tmp_path / "file"):
            pass

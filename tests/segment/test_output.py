"""What `slime-bench segment` writes: label maps, overlays, areas, the grid; and how files are found and named."""

from __future__ import annotations

import csv
import io
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

from slime_bench.data.label_maps import palette
from slime_bench.data.transforms import unfit
from slime_bench.errors import DataError, ResultError
from slime_bench.segment.folder import Record, Run, check_folder, list_images, read_run, write_run
from slime_bench.segment.output import (
    COLUMNS,
    GAP,
    TILE,
    Shown,
    areas_csv,
    blend,
    grid_png,
    overlay,
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
        assert list(files) == ["a", "b 1"] and passed == ["notes.txt", "p.heic"]

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

"""The numbers of single figures, the grid, and what the command refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slime_bench.config.compose import plan
from slime_bench.errors import ConfigError, DataError
from slime_bench.figures.bench import iou_by_size, labelled_share
from slime_bench.figures.command import figures, known_figure, main
from slime_bench.figures.grid import CELL, Panel, write_grid
from slime_bench.trial.spec import backbone_facts, check_parts

COLOURS = [(26, 26, 26), (255, 0, 0), (0, 0, 255)]


def test_the_share_counts_any_part_within_the_region_alone() -> None:
    prediction = np.zeros((4, 4), np.uint8)
    prediction[0, :3], prediction[3] = (1, 2, 1), 1  # of which the last row lies outside
    region = np.zeros((4, 4), bool)
    region[:2] = True
    assert labelled_share([(prediction, region)]) == 100 * 3 / 8
    other = np.zeros((4, 4), bool)
    other[3, :2] = True
    assert labelled_share([(prediction, region), (prediction, other)]) == 100 * 5 / 10
    assert labelled_share([]) is None and labelled_share([(prediction, ~region & region)]) is None


def test_parts_are_sorted_by_their_pixels() -> None:
    small, large = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    small[0, :4], small[1, 0] = 1, 255
    large[:2, :5], large[7, :4] = 2, 1
    found = [large.copy(), small.copy()]
    found[0][0, :5], found[1][0, :2] = 0, 0
    ranges = iou_by_size(zip(found, (large, small), strict=True), edges=(4, 8, 12, 20))
    assert [(each.least, each.most, each.count) for each in ranges] == [(4, 7, 2), (8, 11, 1), (12, 19, 0)]
    assert ranges[0].iou == 100 * (4 + 2) / (4 + 4) and ranges[1].iou == 50 and ranges[2].iou is None


def test_the_grid_shows_a_row_for_each_method(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    support, tall, wide = (draw.integers(0, 255, (*size, 3), np.uint8) for size in ((32, 32), (60, 20), (700, 1400)))
    masks = [(each[..., 0] // 90).clip(0, 2) for each in (support, tall, wide)]

    def panel(*rows: str) -> Panel:
        found = dict.fromkeys(rows, masks[1:])
        return Panel("a", ["background", "leaf", "stem"], COLOURS, support, masks[0], [tall, wide], found)

    png, pdf = write_grid(tmp_path / "out" / "grid", [panel("one", "two"), panel("three")], "title")
    assert pdf.read_bytes().startswith(b"%PDF")
    with Image.open(png) as one:
        first = one.size
    again, _ = write_grid(tmp_path / "again", [panel("one", "two"), panel("three")], "title")
    assert again.read_bytes() == png.read_bytes()
    more, _ = write_grid(tmp_path / "more", [panel("one", "two", "four"), panel("three")], "title")
    with Image.open(more) as other:
        assert other.width == first[0] and abs(other.height - first[1] - CELL * 100) <= 2


def test_every_figure_is_an_experiment() -> None:
    assert figures() == [1, 2, 5, 8, 9, 10, 11, 12, 13]
    assert known_figure("5") == known_figure("figure5") == known_figure("figure-5") == 5


@pytest.mark.parametrize("number", figures())
def test_every_trial_of_a_figure_fits(number: int) -> None:
    """Backbone and protocol to the method, and InfoScore's words to the classes."""
    for cfg in plan([f"experiment=figure{number}", "seed=0"], sweep=True).trials:
        check_parts(cfg)
        size = cfg.data.image_size
        cfg.parts["method"].check(cfg.method, backbone_facts(cfg), cfg.data.classes, size, cfg.shots)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["7"], "no such figure"),
        (["seven"], "no such figure"),
        ([], "nothing to draw"),
        (["--support", "car.jpg"], "nothing to draw"),
        (["5", "--mask", "car.png"], "do not go together"),
    ],
)
def test_what_cannot_be_drawn(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        main(words)
    assert caught.value.found and caught.value.expected and caught.value.remedy


def test_own_images_without_a_query_or_with_a_method_that_does_not_fit(tmp_path: Path) -> None:
    for name, array in (("car.png", np.zeros((32, 32, 3), np.uint8)), ("mask.png", np.eye(32, dtype=np.uint8))):
        Image.fromarray(array).save(tmp_path / name)
    (tmp_path / "photos").mkdir()
    annotated = ["--support", str(tmp_path / "car.png"), "--mask", str(tmp_path / "mask.png")]
    places = ["--queries", str(tmp_path / "photos"), "--out", str(tmp_path / "out")]
    with pytest.raises(DataError, match="there are no images"):
        main([*annotated, *places])
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "photos" / "a.png")
    for methods, message in (("infoscore", "does not take the method"), ("slime,slime", "differ"), ("slim", "slime")):
        with pytest.raises(ConfigError, match=message):
            main([*annotated, *places, "--methods", methods])
    assert not (tmp_path / "out").exists()

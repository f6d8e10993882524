"""`slime-bench figure`, end to end: of trials of the bench, and of one's own images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from slime_bench.data.mini_world import render as mini_world
from tests.e2e.conftest import SIDE, command
from tests.fixtures.wandb_log import WandbLog, log_file

SPLITS = {"support": 4, "val": 2, "test": 5}


@pytest.fixture(autouse=True)
def small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini_world, "SPLIT_SIZES", SPLITS)


@pytest.mark.parametrize(("number", "extra"), [(5, None), (10, "share"), (13, "size")])
def test_a_figure_of_the_bench(number: int, extra: str | None, tiny_sd: Path, tmp_path: Path) -> None:
    places = [f"data_root={tmp_path / 'data'}", f"output_root={tmp_path / 'out'}"]
    chosen = ["method=feature_knn", "seed=0", f"backbone.weights={tiny_sd}", *places, "trainer=cpu"]
    nothing = command("figure", str(number), *chosen)
    assert nothing.code == 2 and "no trial of this command is finished" in nothing.err
    assert command("--multirun", f"experiment=figure{number}", *chosen, "trainer.progress=false").code == 0
    done = command("figure", str(number), *chosen, "--out", str(tmp_path / "figure"))
    assert done.code == 0, done.err
    written = {path.name for path in (tmp_path / "figure").iterdir()}
    assert {"grid.png", "grid.pdf", "report.html"} <= written and "no picture" not in done.out
    # The annotated image in two cells, four queries; one panel for each data set.
    with Image.open(tmp_path / "figure" / "grid.png") as grid:
        assert (grid.height > grid.width) == (number == 5)
    for name in ("share", "size"):
        assert (f"{name}.json" in written) == (name == extra)
    if extra is not None:
        content = json.loads((tmp_path / "figure" / f"{extra}.json").read_text())
        assert {row["n"] for row in content} == {1} and all(row["data"] == content[0]["data"] for row in content)
        with (tmp_path / "figure" / f"{extra}.csv").open() as file:
            assert len(list(csv.DictReader(file))) == len(content)
    if extra == "share":
        again = command("figure", str(number), *chosen, "logger=wandb", "logger.mode=offline", "--out", str(tmp_path))
        assert again.code == 0, again.err
        log = WandbLog(log_file(tmp_path))
        (grid,) = (row["grid.path"] for row in log.history if "grid.path" in row)
        assert log.run["run_id"] == "figure10" and grid.endswith(".png")
        assert 0 < log.summary["iou/mini_two_subjects/feature kNN"] < 100
    if extra == "size":
        assert sum(row["parts"] for row in content) == SPLITS["test"] and "size.png" in written


def test_ones_own_images(tiny_sd: Path, car_pictures: Path, tmp_path: Path) -> None:
    place = car_pictures / "support"
    annotated = ["--support", str(place / "images" / "car-support-0.png")]
    annotated += ["--mask", str(place / "labels" / "car-support-0.png"), "--classes", "body,light,plate,wheel,window"]
    small = [f"data.image_size={SIDE}", f"backbone.image_size={SIDE}", f"backbone.weights={tiny_sd}"]
    photos = ["--queries", str(car_pictures / "test" / "images")]
    done = command("figure", *annotated, *photos, *small, "--methods", "feature_knn", "--out", str(tmp_path / "out"))
    assert done.code == 0, done.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["grid.pdf", "grid.png"]

"""A trial of Peekaboo from the command line to the table, on the first test images alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import SIDE, command
from tests.e2e.tiny import write_pictures, write_weights


def test_a_trial_on_the_first_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # no line is folded
    data, weights, outputs = write_pictures(tmp_path / "data"), write_weights(tmp_path / "sd"), tmp_path / "outputs"
    settings = [
        "method=peekaboo", "shots=0", "data=pascal_part_car", "data.name=tiny_car", f"data.root={data}",
        f"data.image_size={SIDE}", f"backbone.image_size={SIDE}", f"backbone.weights={weights}",
        f"output_root={outputs}", "method.size=16", "method.steps=2", "data.test_limit=3", "data.batch_size=2",
    ]  # fmt: skip
    done = command(*settings)
    assert done.code == 0, done.err
    (folder,) = (outputs / "runs" / "tiny_car" / "peekaboo" / "0-shot").glob("seed0-*")
    result = json.loads((folder / "result.json").read_text())
    assert result["prepared"] == {"test images": "the first 3"} and result["config"]["data"]["test_limit"] == 3
    assert result["num_test_images"] == 3
    before = (folder / "result.json").stat().st_mtime_ns
    assert command(*settings).code == 0 and (folder / "result.json").stat().st_mtime_ns == before, "not run again"
    report = command("report", "--outputs", str(outputs), "--subject", "car", "--shots", "0", "--seeds", "0")
    assert report.code == 0, report.err
    assert "Peekaboo zero-shot" in report.out and "test images the first 3" in report.out
    more = command(*settings, "data.test_limit=6")
    assert more.code == 2 and "there are fewer test images" in more.err and "1 to 5" in more.err

    wrong = command(*settings, "shots=1")
    assert wrong.code == 2 and "shots=0" in wrong.err

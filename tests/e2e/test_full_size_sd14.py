"""DiffSeg and Peekaboo on the architecture of Stable Diffusion 1.4 at full size, with random weights; in a file of its
own, so that it may run beside the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.full_size import PARAMETERS, SIDE, affordable, build_full_size
from tests.fixtures.measured import measured

LIMITS = {"diffseg": 10e9, "peekaboo": 20e9}
"""Bytes, weights included."""


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.timeout(1800)
def test_one_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, precision, side = build_full_size("sd15", tmp_path / "sd15"), affordable(), SIDE
    found = measured("tests.fixtures.full_size_sd14", folder, precision, side)
    diffseg, peekaboo, seconds = found["diffseg"], found["peekaboo"], found["seconds"]
    with capsys.disabled():
        print(f"\nSD 1.4's architecture, {precision}, {side} pixels: load {seconds['load']} s, at most "
              f"{found['load_bytes'] / 1e9:.1f} GB")  # fmt: skip
        print(f"diffseg: names {seconds['names']} s, segment {seconds['segment']} s, "
              f"{diffseg['peak_bytes'] / 1e9:.1f} GB")  # fmt: skip
        print(f"peekaboo, alpha of {peekaboo['size']}: a step {seconds['peekaboo']} s, {peekaboo['processors']} s of "
              f"processors, {peekaboo['peak_bytes'] / 1e9:.1f} GB; 300 steps {5 * peekaboo['processors']:.0f} minutes "
              "of a processor")  # fmt: skip
    assert found["backbone"] == "sd14" and tuple(found["parameters"]) == PARAMETERS["sd15"]
    assert diffseg["layers"] == 16 and diffseg["prototypes"] == [6, 3 * (1280 + 640)]
    assert diffseg["scores"] == [1, 6, side, side] and diffseg["finite"]
    assert diffseg["range"][0] >= 0 and diffseg["range"][1] <= 1 + 1e-6
    assert peekaboo["size"] == 256 and peekaboo["scores"] == [1, 2, side, side]
    assert 0 < peekaboo["range"][0] < peekaboo["range"][1] < 1
    assert all(found[name]["peak_bytes"] < limit for name, limit in LIMITS.items()), found

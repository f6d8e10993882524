"""The architecture of SegDDPM's pixel-space models at full size, with random weights; in a file of its own, so that it
may run beside Stable Diffusion's."""

from __future__ import annotations

from pathlib import Path

import pytest

from slime_bench.backbones.ddpm import Ddpm
from tests.fixtures.adm import save_adm
from tests.fixtures.measured import measured

LIMIT = 10e9
"""Bytes, weights included."""


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.timeout(1800)
def test_segddpm_on_the_published_pixel_space_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One support image and one test image at 256 pixels."""
    file = save_adm(tmp_path / "lsun_horse.pt", Ddpm.Config())
    found = measured("tests.fixtures.adm", file)
    stages = ", ".join(f"{stage} {seconds} s" for stage, seconds in found["seconds"].items())
    stages += f", peak {found['peak_bytes'] / 1e9:.1f} GB, learned state {found['state_bytes'] / 1e6:.0f} MB"
    with capsys.disabled():
        print(f"\nsegddpm, ADM at {found['side']} pixels, fp32: {stages}")
    assert found["parameters"] == 552_814_086 and found["features"] == 2816
    assert found["scores"] == [1, 5, 256, 256] and found["sum"] == pytest.approx(1)
    assert found["peak_bytes"] < LIMIT

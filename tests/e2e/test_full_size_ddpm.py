"""The architecture of SegDDPM's pixel-space models at full size, with random weights; in a file of its own, so that it
may run beside Stable Diffusion's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slime_bench.backbones.ddpm import Ddpm
from tests.fixtures.adm import save_adm

LIMIT = 10e9
"""Bytes, weights included."""


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.timeout(1800)
def test_segddpm_on_the_published_pixel_space_model(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One support image and one test image at 256 pixels."""
    file = save_adm(tmp_path / "lsun_horse.pt", Ddpm.Config())
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    try:
        line = [sys.executable, "-m", "tests.fixtures.adm", str(file)]
        run = subprocess.run(line, cwd=repository, env=environment, capture_output=True, text=True)
    finally:
        file.unlink()  # 2.2 GB, which pytest would keep for three runs
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    stages = ", ".join(f"{stage} {seconds} s" for stage, seconds in found["seconds"].items())
    stages += f", peak {found['peak_bytes'] / 1e9:.1f} GB, learned state {found['state_bytes'] / 1e6:.0f} MB"
    with capsys.disabled():
        print(f"\nsegddpm, ADM at {found['side']} pixels, fp32: {stages}")
    assert found["parameters"] == 552_814_086 and found["features"] == 2816
    assert found["scores"] == [1, 5, 256, 256] and found["sum"] == pytest.approx(1)
    assert found["peak_bytes"] < LIMIT

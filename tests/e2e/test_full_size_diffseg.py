"""DiffSeg on the architecture of Stable Diffusion 1.4 at full size, with random weights; in a file of its own, so that
it may run beside the others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.full_size import affordable, build_full_size

LIMIT = 10e9
"""Bytes, weights included."""


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.timeout(1800)
def test_one_image(tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, (precision, side) = build_full_size("sd15", tmp_path / "sd15"), affordable()
    environment = {**os.environ, "PYTHONPATH": str(repository), "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-m", "tests.fixtures.full_size_diffseg", str(folder), precision, str(side)]
    try:
        run = subprocess.run(line, cwd=repository, env=environment, capture_output=True, text=True)
    finally:
        shutil.rmtree(folder)  # some gigabytes, which pytest would keep for three runs
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    stages = ", ".join(f"{stage} {seconds} s" for stage, seconds in found["seconds"].items())
    memory = f"{found['peak_bytes'] / 1e9:.1f} GB, {found['load_bytes'] / 1e9:.1f} GB while loading"
    with capsys.disabled():
        print(f"\ndiffseg, SD 1.4's architecture, {precision}, {side} pixels: {stages}, peak {memory}")
    assert found["layers"] == 16 and found["prototypes"] == [6, 3 * (1280 + 640)]
    assert found["scores"] == [1, 6, side, side] and found["finite"]
    assert found["range"][0] >= 0 and found["range"][1] <= 1 + 1e-6
    assert found["peak_bytes"] < LIMIT

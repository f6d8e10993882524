"""Peekaboo on the architecture of Stable Diffusion 1.x with random weights; in a file of its own, so that it may run
beside the other full-size tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.full_size import affordable, build_full_size

LIMIT = 20e9
"""Bytes, weights included."""


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.timeout(1800)
def test_two_steps_of_one_part(tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = build_full_size("sd15", tmp_path / "sd15")
    environment = {**os.environ, "PYTHONPATH": str(repository), "HF_HUB_OFFLINE": "1"}
    precision, side = affordable()
    line = [sys.executable, "-m", "tests.fixtures.full_size_peekaboo", str(folder), precision, str(side)]
    try:
        run = subprocess.run(line, cwd=repository, env=environment, capture_output=True, text=True)
    finally:
        shutil.rmtree(folder)  # some gigabytes, which pytest would keep for three runs
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    with capsys.disabled():
        print(
            f"\npeekaboo, {precision}, {side} pixels, alpha of {found['size']}: load {found['load']} s, steps "
            f"{found['steps']} s ({found['processors']} s of processors), {found['peak_bytes'] / 1e9:.1f} GB; "
            f"300 steps {5 * found['processors'][-1]:.0f} minutes of a processor"
        )
    assert found["backbone"] == "sd14" and found["size"] == 256
    assert found["scores"] == [1, 2, side, side] and len(found["steps"]) == 2
    assert 0 < found["range"][0] < found["range"][1] < 1
    assert found["peak_bytes"] < LIMIT

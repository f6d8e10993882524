"""SLiMe and the feature probe on the architecture of SD 2.1-base with random weights, in bfloat16 where the
processor has it. `SLIME_BENCH_FULL_SIDE=512 pytest -s` prints seconds and memory at the published size."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import pytest

from tests.fixtures.full_size import PARAMETERS, SIDE, affordable, build_full_size
from tests.fixtures.measured import measured

LIMIT = 20e9
"""Bytes: what a step and a segmentation may take on a CPU, weights included."""


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.timeout(1800)
def test_one_step_and_one_segmentation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    folder = build_full_size("sd21_base", tmp_path / "sd21_base")
    built = time.monotonic() - began
    precision, side = affordable(), SIDE
    found = measured("tests.fixtures.full_size", folder, precision, side)
    # Of all child processes so far; this one is by far the largest.
    peak = max(found["peak_bytes"], resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
    stages = ", ".join(f"{stage} {seconds} s" for stage, seconds in found["seconds"].items())
    threads = os.environ.get("OMP_NUM_THREADS", f"{os.cpu_count()}")
    with capsys.disabled():
        sizes = f"{precision}, {side} pixels, {threads} threads"
        print(f"\nSD 2.1-base, {sizes}: build {built:.0f} s, {stages}, {peak / 1e9:.1f} GB")
        print(f"feature probe: {found['probe']['peak_bytes'] / 1e9:.1f} GB with the weights")
    assert tuple(found["parameters"]) == PARAMETERS["sd21_base"]
    assert found["dtypes"] == [{"bf16": "torch.bfloat16", "fp32": "torch.float32"}[precision]]
    assert 0 < found["loss"] < 100 and 0 < found["gradient"] < 100
    assert found["moved"] == pytest.approx(0.1, rel=1e-3)  # Adam's first step is the learning rate
    assert found["scores"] == [1, 6, side, side] and found["score_dtype"] == "torch.float32"
    assert found["finite"] and found["spread"] > 0
    assert peak < LIMIT
    probe = found["probe"]
    assert probe["dimensions"] == 3 * (1280 + 640) and probe["scores"] == [1, 6, side, side]
    assert probe["finite"] and probe["peak_bytes"] < LIMIT

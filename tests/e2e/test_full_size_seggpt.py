"""SegGPT ViT-L with random weights: one support image and one test image on the CPU, in float32."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.measured import measured
from tests.fixtures.seggpt import save_full_size

LIMIT = 6e9
"""Bytes, weights included."""


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.timeout(1800)
def test_seggpt_at_the_published_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured("tests.fixtures.seggpt", save_full_size(tmp_path / "seggpt"))
    stages = ", ".join(f"{stage} {seconds} s" for stage, seconds in found["seconds"].items())
    with capsys.disabled():
        stages += f" ({found['cpu_seconds']} of the CPU in all), peak {found['peak_bytes'] / 1e9:.1f} GB"
        print(f"\nseggpt, {found['parameters']:,} parameters at {found['side']} pixels, fp32: {stages}")
    assert 3.6e8 < found["parameters"] < 3.8e8
    assert found["scores"] == [1, 6, 448, 448] and found["finite"]
    assert found["peak_bytes"] < LIMIT

"""The memory comparison on the bundled model: both ways give one label map, and ours takes less."""

from __future__ import annotations

import pytest

from tests.parity.peak_memory import compare, describe


@pytest.mark.slow
def test_the_memory_linear_way_takes_less_and_segments_the_same() -> None:
    plain, ours = compare("mini_sd", "mini_sd", "fp32", side=256, device="cpu")  # 64 x 64 positions, as SD at 512
    added = {each["way"]: each["peak"] - each["loaded"] for each in (plain, ours)}
    assert added["ours"] < added["materialising"] / 2, describe([plain, ours])
    differing = sum(a != b for a, b in zip(plain["labels"], ours["labels"], strict=True))
    assert differing < 1e-3 * len(ours["labels"])
    assert len(set(ours["labels"])) > 1

"""The memory comparison on the bundled model: both ways give one label map, and ours takes less."""

from __future__ import annotations

import pytest

from slime_bench.bench.case import Case
from slime_bench.bench.race import race


@pytest.mark.slow
@pytest.mark.release
def test_the_memory_linear_way_takes_less_and_segments_the_same() -> None:
    case = Case("mini", 256, 6, "mini_sd")  # 64 x 64 positions, as SD at 512
    entries = {name: (case, name) for name in ("reference", "fast fp32")}
    plain, ours = race(entries, ["inference"], rounds=1)
    assert plain.memory is not None and ours.memory is not None
    assert ours.memory.peak > ours.memory.loaded > 1e7
    assert ours.memory.added < plain.memory.added / 2, (plain.memory, ours.memory)
    assert ours.differs["labels"] < 1e-3

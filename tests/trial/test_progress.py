"""The line of progress, within a test batch too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from slime_bench.trial.progress import ProgressLine


def test_a_slow_method_moves_the_bar_within_a_batch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line, method, trainer = ProgressLine("title", 0, 4), SimpleNamespace(), Any
    monkeypatch.setattr("time.monotonic", iter(range(1000, 2000, 20)).__next__)
    line.on_test_batch_start(trainer, method, None, 1)  # type: ignore[arg-type]
    method.progress(10, 20)
    first = capsys.readouterr().err
    assert "test [#########" in first and "1/4" in first and "50% of the next batch" in first
    line.on_test_batch_end(trainer, method, None, None, 1)  # type: ignore[arg-type]
    assert "2/4" in capsys.readouterr().err

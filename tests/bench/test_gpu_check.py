"""`make gpu-check`: every part of it, on the CPU and small; what becomes of one that fails; and no GPU."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from slime_bench.bench import gpu_check
from slime_bench.bench.architecture import build_width
from slime_bench.bench.case import Case
from slime_bench.bench.gpu_check import Line, parity, report, run, share_of_peak, speed


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    weights = build_width("golden", tmp_path_factory.mktemp("gpu") / "golden")
    return Case("golden", 128, 4, str(weights), trials=2)


def test_the_numbers_of_a_device_are_the_cpu_s(case: Case) -> None:
    lines = parity(case, "cpu")
    assert {line.what for line in lines} == {"inference, labels", "step, losses", "step, gradient"}
    full, half = lines[:3], lines[3:]
    assert all(float(line.found) == 0 and line.fine for line in full), "the CPU against itself"
    assert any(float(line.found) > 0 for line in half) and all(line.part.endswith("bf16") for line in half)


@pytest.mark.slow
def test_speed_and_seeds_and_the_share_of_the_peak(case: Case) -> None:
    lines = speed(case, rounds=1, memory=False)
    assert len(lines) == 2 * 5 + 2 and all(line.fine is None for line in lines)
    assert "times as fast as the authors' way" in lines[1].found and "2 seeds at once" in lines[-1].what
    (share,) = share_of_peak(case, rounds=1, side=256)
    assert share.found.partition(" %")[0].isdigit()


@pytest.mark.parametrize("name", gpu_check.TRIALS)
def test_the_trials_compose(name: str) -> None:
    from slime_bench.config.compose import plan

    (cfg,) = plan(gpu_check.TRIALS[name]).trials
    assert cfg.preset == "mini" and cfg.method.name == name.lower()


def test_a_part_that_fails_and_one_without_time() -> None:
    def fails() -> list[Line]:
        raise RuntimeError("out of luck")

    lines = run([("one", fails), ("two", lambda: [Line("two", "x", "1")])], seconds=60)
    assert [line.fine for line in lines] == [False, None] and "out of luck" in lines[0].found
    assert "NOT FINE" in report(lines)

    def long() -> list[Line]:
        time.sleep(0.05)
        return []

    assert [line.what for line in run([("one", long), ("two", fails)], seconds=0.06)] == ["left out"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_ends_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("There is no CUDA device here") and not any(tmp_path.iterdir())

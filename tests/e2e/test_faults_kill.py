"""Sweeps whose process is killed at random moments, and two sweeps of the same trials at once.

The script beside this file does it, in a process that has computed nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.release

SCRIPT = Path(__file__).with_name("kill_rounds.py")
ROUNDS = 20


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("kill")
    line = [sys.executable, str(SCRIPT), "--rounds", str(ROUNDS), "--seed", "1", "--together", "2"]
    line += ["--sweep", "shots=1 seed=0,1", "--work", str(folder / "work"), "trainer.checkpoint_every=1"]
    run = subprocess.run(
        line, capture_output=True, text=True, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_no_finished_trial_is_lost_or_run_twice(figures: dict[str, Any]) -> None:
    assert figures["rounds"] == ROUNDS and figures["hit"] > 0 and figures["trials"] == 2 * figures["sweeps"] > 0
    assert (figures["lost"], figures["repeated"]) == (0, 0)


def test_the_results_are_those_of_an_undisturbed_sweep(figures: dict[str, Any]) -> None:
    assert (figures["differing"], figures["leftovers"]) == (0, 0)


def test_two_sweeps_at_once_share_the_work(figures: dict[str, Any]) -> None:
    together = figures["together"]
    assert together["codes"] == [0, 0] and together["differing"] == 0
    assert together["computed"] == {"1 0": 1, "1 1": 1}

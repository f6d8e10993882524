"""Sweeps whose process is killed at random moments, and two sweeps of the same trials at once.

The script beside this file does it, in a process that has computed nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.release
def test_no_finished_trial_is_lost_or_run_twice_and_two_sweeps_share_the_work(tmp_path: Path) -> None:
    line = [sys.executable, str(Path(__file__).with_name("kill_rounds.py")), str(tmp_path), "10"]
    run = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    figures = json.loads(run.stdout.splitlines()[-1])
    assert figures["hit"] > 0 and figures["sweeps"] == figures["folders"] > 0
    assert (figures["lost"], figures["repeated"], figures["differing"], figures["leftovers"]) == (0, 0, 0, 0)
    assert figures["together"] == [[0, 0], {"1 0": 1, "1 1": 1}]

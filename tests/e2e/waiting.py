"""SLiMe whose fit stops in the middle, once, until its process is ended: something to interrupt, at a known step."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from slime_bench.methods.slime.method import Slime
from slime_bench.trial import resume

STEP = 1
FILE = "SLIME_BENCH_TEST_STEPS"
"""Environment variable: the file that gets a line for every step that was begun; where none is named, nothing waits."""

if FILE in os.environ:
    resume.SHARE = float("inf")  # steps take less time here than a checkpoint does


class Waiting(Slime):
    """Waits in its step `STEP`, of a trial with seed 0 alone."""

    def training_step(self, *arguments: Any) -> Any:
        if FILE in os.environ and self.seed == 0:
            step = self.trainer.global_step
            before = steps(Path(os.environ[FILE]))
            with open(os.environ[FILE], "a") as file:
                file.write(f"{step}\n")
            while step == STEP and STEP not in before:
                time.sleep(0.1)
        return super().training_step(*arguments)


def steps(path: Path) -> list[int]:
    """The steps that were begun, of all lives of the trial with seed 0."""
    return [int(line) for line in path.read_text().split()] if path.exists() else []

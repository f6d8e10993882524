"""Mirrors of a trial's curve and result in a CSV file or in W&B; the results are files whatever is chosen here."""

from __future__ import annotations

import os
from typing import Final

FOLDER: Final = "wandb"
"""Of W&B, in the trial's folder."""
COMPLETE: Final = "complete"
"""File in it that says that W&B has been told everything of the trial."""


def in_sweep() -> bool:
    """Whether the process was started by `wandb agent`, which has chosen the run."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))

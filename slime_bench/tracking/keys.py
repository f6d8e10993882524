"""Names under which a trial's numbers and pictures stand in W&B; dashboards and sweeps ask for them."""

from __future__ import annotations

import re
from typing import Final

STEP: Final = "trainer/global_step"
"""The x axis of all curves. (`_step` counts rows, and is counted anew when runs that were kept offline are synced.)"""

LOSS: Final = "train/loss"
LEARNING_RATE: Final = "train/lr"
TIMESTEP: Final = "train/t"
SECONDS: Final = "train/step_seconds"
MEMORY: Final = "train/memory_gib"
VALIDATION: Final = "val/miou"

MIOU: Final = "test/miou"
"""Percent, under the trial's own convention; what sweeps maximise."""
EXAMPLES: Final = "test/examples"
TABLE: Final = "test/images"
BARS: Final = "infoscore/layers"
LAYERS: Final = "infoscore/table"

PREDICTION: Final = "prediction"
TRUTH: Final = "ground_truth"
"""Names of the two masks over every example."""


def iou(name: str, convention: str | None = None) -> str:
    """Of a class, or `miou` of the average, in percent; without a convention under the trial's own."""
    return f"test/{f'{convention}/' if convention else 'iou/'}{plain(name)}"


def score_map(name: str) -> str:
    """Of a class."""
    return f"maps/{plain(name)}"


def plain(name: str) -> str:
    """A class's name without what separates parts of a key, or of the file's name that W&B makes of it."""
    return re.sub(r"[^\w .-]", "_", name)

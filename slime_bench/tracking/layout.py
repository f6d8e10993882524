"""What a dashboard of the bench's runs shows, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from slime_bench.tracking import keys

Kind = Literal["curves", "bars", "media", "table"]


@dataclass(frozen=True)
class Panel:
    """A panel over all runs that are shown.

    Attributes:
        kind: `curves` over the training steps, and `bars`, are means over runs of one group (the seeds), with their
            spread; `media` are pictures and `table` is a table, of single runs.
        keys: what was logged, see `slime_bench.tracking.keys`.
    """

    kind: Kind
    title: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    title: str
    panels: tuple[Panel, ...]


COLUMNS = (f"summary:{keys.MIOU}", "config:seed", "config:shots")
"""Beside the runs' names."""


def layout(classes: Sequence[str], conventions: Sequence[str]) -> list[Section]:
    """Result, pictures, optimisation, layers: from what a reader asks first to what only some methods have.

    Args:
        classes: K names, `background` first. conventions: names of the metric's rules.
    """
    return [
        Section(
            "Result",
            (
                Panel("bars", "mIoU (%)", (keys.MIOU,)),
                Panel("bars", "IoU per class (%)", tuple(keys.iou(name) for name in classes)),
                Panel("bars", "mIoU under each convention (%)", tuple(keys.iou("miou", name) for name in conventions)),
            ),
        ),
        Section(
            "Test images",
            (
                Panel("media", "Prediction and ground truth", (keys.EXAMPLES,)),
                Panel("table", "Test images", (keys.TABLE,)),
                *(Panel("media", f"Score map: {name}", (keys.score_map(name),)) for name in classes),
            ),
        ),
        Section(
            "Optimisation",
            (
                Panel("curves", "Validation mIoU (%)", (keys.VALIDATION,)),
                Panel("curves", "Loss", (keys.LOSS,)),
                Panel("curves", "Terms of the loss", ("train/cross_entropy", "train/was", "train/diffusion")),
                Panel("curves", "Learning rate", (keys.LEARNING_RATE,)),
                Panel("curves", "Timestep t", (keys.TIMESTEP,)),
                Panel("curves", "Seconds per step", (keys.SECONDS,)),
                Panel("curves", "Peak memory (GiB)", (keys.MEMORY,)),
            ),
        ),
        Section("Layers", (Panel("table", "InfoScore of the layers", (keys.LAYERS,)),)),
    ]

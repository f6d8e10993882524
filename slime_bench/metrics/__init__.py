"""Metrics of the bench. The names live here, free of heavy imports; the mathematics is in `slime_bench.metrics.iou`."""

from __future__ import annotations

from typing import Final

CONVENTION_RULES: Final[dict[str, str]] = {
    "slime": "IoU per image, mean over the images whose ground truth has the class",
    "dataset": "intersection and union summed over all images",
    "present_or_predicted": "IoU per image, mean over the images that have or predict the class",
}
"""Every convention's name and rule, as tables print it."""

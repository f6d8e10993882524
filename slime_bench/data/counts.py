"""What label maps hold, counted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from slime_bench.data.labels import IGNORE


@dataclass(frozen=True)
class DatasetReport:
    """What a folder of samples holds; both counts are per class, in label order."""

    images: int
    images_with_class: dict[str, int]
    pixels_of_class: dict[str, int]
    ignored_pixels: int
    sizes: dict[str, int]
    """Number of images of each "WIDTHxHEIGHT"."""


def class_pixels(label: Tensor, num_classes: int) -> Tensor:
    """Pixels of each class: int64 [K], from a label map [H,W] in 0..255, of which those beyond K count for no class."""
    return torch.bincount(label.flatten(), minlength=IGNORE + 1)[:num_classes]

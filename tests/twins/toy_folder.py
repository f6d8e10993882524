"""A folder of noise with label maps of three classes, in the usual layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ["background", "body", "wheel"]
SIZE = 24
POOL = 12
COMPLETE = {"s02", "s05", "s09"}
"""The only pool images that show the wheel."""


def write_split(folder: Path, prefix: str, count: int, complete: set[str]) -> None:
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    draws = np.random.default_rng(len(prefix) + count)
    for index in range(count):
        key = f"{prefix}{index:02d}"
        label = np.zeros((SIZE, SIZE), np.uint8)
        label[4:16, 3 + index % 5 : 20] = 1
        if key in complete:
            label[14:20, 6:12] = 2
        Image.fromarray(draws.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)).save(folder / "images" / f"{key}.png")
        Image.fromarray(label).save(folder / "labels" / f"{key}.png")

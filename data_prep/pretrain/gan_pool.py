"""What the mini GAN learns from: cars of the mini world. R is the side of a picture."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from slime_bench.data.mini_world.render import STREAM, render

SUBJECT: Final = "car"


class Pool:
    """Pictures of the pre-training stream at the generator's size, rendered when they are first asked for.

    Args:
        first, count: numbers of the stream. side: R, a divisor of 128.
    """

    def __init__(self, first: int, count: int, side: int) -> None:
        self._first = first
        self._held = np.zeros((count, side, side, 3), np.uint8)
        self._there = np.zeros(count, bool)

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 [R,R,3], means of blocks of a rendered picture."""
        if not self._there[index]:
            image, side = render(SUBJECT, STREAM, self._first + index).image, self._held.shape[1]
            block = len(image) // side
            small = image.reshape(side, block, side, block, 3).mean((1, 3))
            self._held[index], self._there[index] = small.round().astype(np.uint8), True
        return self._held[index]

    def batch(self, count: int, rng: np.random.Generator) -> torch.Tensor:
        """Pictures at random, mirrored at random: float32 [B,3,R,R] in [-1,1]."""
        found = [
            self[int(index)][:, :: int(rng.choice([-1, 1]))] for index in rng.integers(len(self._held), size=count)
        ]
        return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 127.5 - 1

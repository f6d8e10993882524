"""The pre-training stream: pictures, captions varied as people write them, and a pool of their latents."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional as F

from slime_bench.data.mini_world.render import STREAM, SUBJECTS, Picture, render
from slime_bench.seeding import numpy_generator

_SUBJECTS = list(SUBJECTS)


@lru_cache(maxsize=16)  # neighbouring examples show the same pictures in other views
def stream_picture(index: int) -> Picture:
    """Picture `index` of the endless pre-training stream; the subjects take turns."""
    return render(_SUBJECTS[index % len(_SUBJECTS)], STREAM, index // len(_SUBJECTS))


def to_pixels(images: list[np.ndarray]) -> torch.Tensor:
    """uint8 [H,W,3] each -> float32 [B,3,H,W] in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def vary_caption(caption: str, rng: np.random.Generator) -> str:
    """The caption with its phrases in another order, and some left out: 'a red car , blue windows , on grass' ...

    Word order then says nothing, so the model must read the words; and what is not described must be seen.
    """
    first, *rest = caption.split(" , ")
    parts, scene = rest[:-1], rest[-1]
    keep = rng.random() if rng.random() < 0.4 else 1.0
    parts = [part for part in rng.permutation(parts) if rng.random() < keep] if parts else []
    if rng.random() < 0.15:
        first = first.split(" with ")[0]
    return " , ".join([first, *parts] + ([scene] if rng.random() < max(keep, 0.5) else []))


class LatentPool:
    """A window over the endless stream: latents and captions of the newest `capacity` pictures.

    Encoding is the dearer half of making an example, so a picture serves a few steps before it leaves.

    Args:
        encode: float32 [B,3,S,S] in [-1,1] -> (mean, std), each float [B,4,S/4,S/4].
        side: side of the pictures, 128 or 64 (box-averaged).
    """

    def __init__(
        self, encode: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], capacity: int, side: int, start: int
    ) -> None:
        self._encode, self._capacity, self._side, self.next_index = encode, capacity, side, start
        self._mean = torch.empty(0)
        self._std = torch.empty(0)
        self._captions: list[str] = []

    def refill(self, count: int, batch: int = 32) -> None:
        """Render and encode the next `count` pictures of the stream; the oldest leave."""
        means, stds = [self._mean] if len(self._mean) else [], [self._std] if len(self._std) else []
        for start in range(self.next_index, self.next_index + count, batch):
            pictures = [stream_picture(i) for i in range(start, min(start + batch, self.next_index + count))]
            pixels = to_pixels([p.image for p in pictures])
            if self._side != pixels.shape[-1]:
                pixels = F.avg_pool2d(pixels, pixels.shape[-1] // self._side)
            mean, std = self._encode(pixels)
            means.append(mean.half())
            stds.append(std.half())
            self._captions += [p.caption for p in pictures]
        self.next_index += count
        self._mean = torch.cat(means)[-self._capacity :]
        self._std = torch.cat(stds)[-self._capacity :]
        self._captions = self._captions[-self._capacity :]

    def sample(
        self, batch: int, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[torch.Tensor, list[str]]:
        """Latents float32 [B,4,h,w] drawn from the encoder's distribution, and varied captions."""
        rows = torch.from_numpy(rng.integers(len(self._captions), size=batch))
        mean, std = self._mean[rows].float(), self._std[rows].float()
        noise = torch.randn(mean.shape, generator=generator)
        return mean + std * noise, [vary_caption(self._captions[int(i)], rng) for i in rows]


def stream_rng(stage: str, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """Generators of one training step: a resumed run draws what an uninterrupted one would have drawn."""
    rng = numpy_generator(0, "pretrain", stage, step)
    return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))

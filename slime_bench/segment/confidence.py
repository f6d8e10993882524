"""How far the parts of a picture convince: their best scores beside those that they reached on the annotated pictures.

A method always gives some pixels to some class, also in a picture without any. Its scores tell the two apart, though
not surely: docs/segment.md says how well on the mini world.

Shapes: K classes, scores of the method's square S x S.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from slime_bench.data.label_maps import class_pixels

UNSURE: Final = 0.6
"""A class with less confidence is marked."""
DOUBTFUL: Final = 0.65
"""A picture whose classes have less confidence on average is named: nothing in it convinces."""
LARGE: Final = 4.0
"""A class that covers so many times its annotated share of the picture is named."""
_BEST: Final = 1 / 800  # of the pixels: 20 of 128 x 128, so that one odd pixel decides nothing


@dataclass(frozen=True)
class Reached:
    """What the classes reached on the annotated pictures; None for one that these do not show.

    Attributes:
        best: K scores, see `best_scores`; the highest of all pictures. shares: K parts of the labelled pixels, 0..1.
    """

    best: tuple[float | None, ...]
    shares: tuple[float | None, ...]

    def confidence(self, best: torch.Tensor) -> list[float | None]:
        """K numbers in [0,1] of a picture with these `best_scores`, float [K]; None for the background and for classes
        that reached nothing."""
        pairs = zip(best.tolist(), self.best, strict=True)
        ratios = [None if mine is None or mine <= 0 else min(1.0, max(0.0, one / mine)) for one, mine in pairs]
        return [None, *ratios[1:]]

    def too_large(self, shares: Sequence[float]) -> list[int]:
        """Foreground classes that cover several times their annotated share of the picture."""
        pairs = enumerate(zip(shares, self.shares, strict=True))
        return [index for index, (one, mine) in pairs if index and mine is not None and one > LARGE * mine]


def best_scores(scores: torch.Tensor) -> torch.Tensor:
    """The mean of the highest scores of each class, float [K], of score maps [K,S,S] before any refinement."""
    flat = scores.flatten(1)
    return flat.topk(max(1, round(_BEST * flat.shape[1])), dim=1).values.mean(dim=1)


def reached(best: Sequence[torch.Tensor], labels: Sequence[NDArray[np.uint8]]) -> Reached:
    """What the annotated pictures reached.

    Args:
        best: `best_scores` of each. labels: their label maps uint8 [H,W].
    """
    classes = len(best[0])
    pixels = np.stack([class_pixels(label, classes) for label in labels])  # [N,K]
    parts = pixels / np.maximum(pixels.sum(axis=1, keepdims=True), 1)
    shown = pixels > 0
    highest = [
        max((float(one[k]) for one, has in zip(best, shown[:, k], strict=True) if has), default=None)
        for k in range(classes)
    ]
    shares = [float(parts[shown[:, k], k].mean()) if shown[:, k].any() else None for k in range(classes)]
    return Reached(tuple(highest), tuple(shares))


def doubtful(confidence: Sequence[float | None]) -> bool:
    """Whether nothing in a picture convinces."""
    known = [each for each in confidence if each is not None]
    return bool(known) and sum(known) / len(known) < DOUBTFUL

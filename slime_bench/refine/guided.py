"""The guided filter with a colour guide (He, Sun and Tang, "Guided Image Filtering", TPAMI 2013, section 3.5).

In the window w_k of (2r+1) x (2r+1) pixels around every pixel k, a map p is fitted by a linear function of the guide I:

    a_k = (cov_k(I, I) + eps 1)^-1 cov_k(I, p),    b_k = mean_k p - a_k . mean_k I
    q_i = mean_i(a) . I_i + mean_i(b)

mean_i is over the part of w_i that lies inside the image, cov_k(x, y) = mean_k(x y) - mean_k x mean_k y. Where the
guide is flat, q is a mean of p over twice the window; at an edge of the guide q may have one too, and nowhere else.

All is computed in float64: in float32 the rounding of cov is not small against eps. Box means are pools and not running
sums, which CUDA adds up in any order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from slime_bench.places import double

CHUNK = 2**24
"""Numbers worked on at a time, which bound the memory: at 512 pixels 5 maps."""
_NUMBERS = 12  # for each pixel of a map: the products with the guide, their means, the solution and its means


def guided_filter(maps: Tensor, guide: Tensor, radius: int, eps: float, rounds: int = 1) -> Tensor:
    """Maps whose edges are the guide's; affine in the maps, so that sums over maps and a constant are kept.

    Args:
        maps: float [B,K,H,W], of any range. guide: float [B,3,H,W], RGB in [0,1], of the same images.
        radius: r >= 1, pixels; it may be larger than the image. eps: > 0, in squared units of the guide.
        rounds: passes, each over the output of the one before.

    Returns:
        float [B,K,H,W] on the same device; float64 stays, others become float32.
    """
    found = torch.empty_like(maps, dtype=torch.float64 if maps.dtype == torch.float64 else torch.float32)
    step = max(1, CHUNK // (_NUMBERS * maps.shape[-2] * maps.shape[-1]))
    for image, own, out in zip(guide, maps, found, strict=True):
        windows = _Windows.of(double(image), radius, eps)
        for start in range(0, len(own), step):
            some = double(own[start : start + step])
            for _ in range(rounds):
                some = windows.filtered(some)
            out[start : start + step] = some
    return found


@dataclass(frozen=True)
class _Windows:
    """The windows of one image, for any number of maps.

    Attributes:
        guide, mean: float64 [3,H,W], the second over each window. radius: of them.
        pivots, below: of L D L^T = cov(I, I) + eps 1: the three of D and L's (1,0), (2,0), (2,1), float64 [H,W] each.
    """

    guide: Tensor
    mean: Tensor
    radius: int
    pivots: tuple[Tensor, Tensor, Tensor]
    below: tuple[Tensor, Tensor, Tensor]

    @classmethod
    def of(cls, guide: Tensor, radius: int, eps: float) -> _Windows:
        mean = _box(guide, radius)
        cov = _box((guide[:, None] * guide).flatten(0, 1), radius).unflatten(0, (3, 3)) - mean[:, None] * mean
        first = cov[0, 0] + eps
        low, lower = cov[0, 1] / first, cov[0, 2] / first
        second = cov[1, 1] + eps - low * cov[0, 1]
        rest = cov[1, 2] - low * cov[0, 2]
        third = cov[2, 2] + eps - lower * cov[0, 2] - rest / second * rest
        return cls(guide, mean, radius, (first, second, third), (low, lower, rest / second))

    def filtered(self, maps: Tensor) -> Tensor:
        """One pass: float64 [K,H,W] -> [K,H,W]."""
        mean = _box(maps, self.radius)
        products = _box((maps[:, None] * self.guide).flatten(0, 1), self.radius).unflatten(0, (-1, 3))
        slope = self._solved(products - mean[:, None] * self.mean)
        offset = mean - (slope * self.mean).sum(1)
        slope = _box(slope.flatten(0, 1), self.radius).unflatten(0, (-1, 3))
        return (slope * self.guide).sum(1) + _box(offset, self.radius)

    def _solved(self, right: Tensor) -> Tensor:
        """(cov(I, I) + eps 1)^-1 of vectors [K,3,H,W]."""
        low, lower, last = self.below
        x, y, z = right.unbind(1)
        y = y - low * x
        z = (z - lower * x - last * y) / self.pivots[2]
        y = y / self.pivots[1] - last * z
        return torch.stack([x / self.pivots[0] - low * y - lower * z, y, z], dim=1)


def _box(maps: Tensor, radius: int) -> Tensor:
    """Mean over the part of the window around each pixel that lies inside the image: [C,H,W] -> [C,H,W]."""
    rows, columns = (min(radius, length - 1) for length in maps.shape[-2:])
    maps = F.avg_pool2d(maps, (2 * rows + 1, 1), 1, (rows, 0), count_include_pad=False)
    return F.avg_pool2d(maps, (1, 2 * columns + 1), 1, (0, columns), count_include_pad=False)

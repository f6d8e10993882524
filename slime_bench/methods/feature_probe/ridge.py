"""Ridge regression of soft labels on features, and dense retrieval among them. Pure functions in float64 or float32.

Shapes: N rows (cells of support images), D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from slime_bench.places import double, exact

IGNORE = 255


class Linear(NamedTuple):
    """s = x W + b on features as they are: weight float32 [D,K], bias float32 [K]."""

    weight: Tensor
    bias: Tensor


class Rows(NamedTuple):
    """Cells of one support image: features float [N,D], soft labels float [N,K], weights float [N] >= 0."""

    features: Tensor
    targets: Tensor
    weights: Tensor


def cell_labels(label: Tensor, num_classes: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Share of each class in each cell of a grid, among its labelled pixels.

    Args:
        label: int64 [B,H,W], 255 = ignore; H and W are multiples of the grid's sides.

    Returns:
        float64 [B,K,h,w], whose sum over K is 1, or 0 in a cell without labels; and the labelled share of each cell,
        float64 [B,h,w].
    """
    valid = label != IGNORE
    label, valid = label.to(exact(label.device)), valid.to(exact(label.device))
    hot = F.one_hot(label.masked_fill(~valid, 0), num_classes).permute(0, 3, 1, 2).double() * valid[:, None]
    shares = F.adaptive_avg_pool2d(hot, grid)
    labelled = shares.sum(1)
    return shares / labelled.clamp(min=torch.finfo(torch.float64).tiny)[:, None], labelled


def tilted(shares: Tensor, totals: Tensor, exponent: float) -> Tensor:
    """T'_c = T_c (n/n_c)^g / sum_c' T_c' (n/n_c')^g, which lifts rare classes in mixed cells; rows keep their sum.

    Args:
        shares: T, float64 [N,K]. totals: n_c, their sums over the support, float64 [K]; n is their sum.
        exponent: g; 0 changes nothing.
    """
    factor = torch.where(totals > 0, totals.sum() / totals.clamp(min=1e-12), totals.new_zeros(())) ** exponent
    lifted = shares * torch.where(totals > 0, factor, torch.zeros_like(factor))
    return lifted / lifted.sum(1, keepdim=True).clamp(min=1e-12) * shares.sum(1, keepdim=True)


def row_weights(targets: Tensor, totals: Tensor, labelled: Tensor) -> Tensor:
    """sum_c T'_c (n'/n'_c)^(1/2), times the labelled share of the cell; float64 [N].

    Args:
        targets: T', float64 [N,K]. totals: n'_c over the support, float64 [K]. labelled: float64 [N].
    """
    factor = torch.where(totals > 0, (totals.sum() / totals.clamp(min=1e-12)).sqrt(), torch.zeros_like(totals))
    return (targets * factor).sum(1) * labelled


class Moments(NamedTuple):
    """Weighted sums over rows, from which a ridge regression follows, float64: sum d, sum d x [D], sum d y [K],
    sum d x x^T [D,D], sum d x y^T [D,K]."""

    weight: Tensor
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor

    @classmethod
    def of(cls, rows: Rows) -> Moments:
        """Those of one image."""
        x, y, d = (double(each) for each in rows)
        weighted = x * d[:, None]
        return cls(d.sum(), weighted.sum(0), d @ y, weighted.T @ x, weighted.T @ y)

    @classmethod
    def total(cls, parts: Sequence[Moments]) -> Moments:
        """The sums over all images."""
        return cls(*(reduce(torch.add, each) for each in zip(*parts, strict=True)))

    def without(self, other: Moments) -> Moments:
        """The sums over the other images."""
        return Moments(*(one - two for one, two in zip(self, other, strict=True)))


def ridge(sums: Moments, strength: float) -> Linear:
    """argmin_W sum d |y - m_y - z W|^2 / sum d + lambda |W|^2 by Cholesky, z the features standardised by their
    weighted mean and deviation; as one linear map of the features themselves.

    Args:
        strength: lambda > 0.
    """
    mean_x, mean_y, deviation, gram, cross = _standardised(sums)
    gram = gram + strength * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.cholesky_solve(cross, torch.linalg.cholesky(gram)) / deviation[:, None]
    return Linear(weight.float(), (mean_y - mean_x @ weight).float())


def leave_one_out(
    images: Sequence[Moments], strengths: Sequence[float], judge: Callable[[int, Linear], float]
) -> float:
    """The strength whose regressions on all images but one do best on the one left out, summed over the images.

    Args:
        judge: how well a regression does on the image of that place; more is better.
    """
    whole, scores = Moments.total(images), [0.0] * len(strengths)
    for left, own in enumerate(images):
        rest = whole.without(own)
        if float(rest.weight) < 1e-6 * float(whole.weight):  # no other image has a label
            continue
        for place, strength in enumerate(strengths):
            scores[place] += judge(left, ridge(rest, strength))
    return strengths[scores.index(max(scores))]


def ridge_dual(rows: Rows, strength: float) -> Linear:
    """`ridge` of fewer rows than features, by the N x N system W = A^T (A A^T + lambda I)^-1 b."""
    x, y, d = (double(each) for each in rows)
    share = d / d.sum()
    mean_x, mean_y = share @ x, share @ y
    centred = x - mean_x
    deviation = _deviation((share[:, None] * centred.square()).sum(0))
    root = share.sqrt()[:, None]
    a, b = centred / deviation * root, (y - mean_y) * root
    system = a @ a.T + strength * torch.eye(len(a), dtype=a.dtype, device=a.device)
    weight = a.T @ torch.cholesky_solve(b, torch.linalg.cholesky(system)) / deviation[:, None]
    return Linear(weight.float(), (mean_y - mean_x @ weight).float())


def _standardised(sums: Moments) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Weighted means of x and y, deviation of x, and Z^T D Z / n and Z^T D Y / n."""
    n = sums.weight
    mean_x, mean_y = sums.x / n, sums.y / n
    covariance = sums.xx / n - torch.outer(mean_x, mean_x)
    deviation = _deviation(covariance.diagonal())
    gram = covariance / torch.outer(deviation, deviation)
    cross = (sums.xy / n - torch.outer(mean_x, mean_y)) / deviation[:, None]
    return mean_x, mean_y, deviation, gram, cross


def _deviation(variance: Tensor) -> Tensor:
    """Its root; 1 for a feature that is constant."""
    return torch.where(variance > 1e-12, variance.clamp(min=0).sqrt(), torch.ones_like(variance))


def apply(model: Linear, maps: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """Scores of features that stay on their own grids, each as a 1x1 convolution, float [B,K,*grid]: equal to those of
    the features resized to `grid`, as resizing is linear.

    Args:
        maps: float [B,C_l,h_l,w_l], whose C_l sum to D.
    """
    model = Linear(*(each.to(maps[0].device) for each in model))  # which a fit in float64 may have left on the CPU
    scores = model.bias[None, :, None, None]
    for part, weight in zip(maps, model.weight.split([each.shape[1] for each in maps]), strict=True):
        scores = scores + resized(torch.einsum("bchw,ck->bkhw", part, weight), grid)
    return scores


def resized(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bilinear, half-pixel centres: float [B,C,h,w] -> [B,C,*grid]."""
    if tuple(maps.shape[-2:]) == tuple(grid):
        return maps
    return F.interpolate(maps, size=grid, mode="bilinear", align_corners=False)


def descriptors(maps: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """Unit vectors to compare cells of different images by, float [B,h*w,D].

    Per image and layer the spatial mean is taken off (what a whole image has in common says nothing of parts), each
    layer is brought to unit length, then all together.
    """
    parts = []
    for each in maps:
        centred = resized(each, grid) - each.mean((2, 3), keepdim=True)
        parts.append(F.normalize(centred, dim=1))
    return F.normalize(torch.cat(parts, dim=1), dim=1).flatten(2).transpose(1, 2)


def retrieve(queries: Tensor, bank: Tensor, targets: Tensor, neighbours: int, temperature: float) -> Tensor:
    """s_c(q) = sum over the nearest rows of softmax(q . x / temperature) T'_c.

    Args:
        queries: float [Q,D]. bank: float [M,D]. targets: T', float [M,K].

    Returns:
        float [Q,K].
    """
    near = (queries @ bank.T).topk(min(neighbours, len(bank)), dim=1)
    return torch.einsum("qn,qnk->qk", (near.values / temperature).softmax(1), targets[near.indices])

"""Attention maps merged into clusters by their KL divergence. Pure functions.

    D(x, y) = (KL(x || y) + KL(y || x)) / 2 = sum (x - y)(log x - log y) / 2

in two matrix products (Tian et al., CVPR 2024, arXiv 2308.12469, section 3.2; github google/diffseg at 77ea596).

Shapes: N positions of the latent grid (h, w), A and M maps, float64 [A,N] each with a sum of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor

from slime_bench.attention.maps import Size, resize
from slime_bench.errors import ConfigError
from slime_bench.methods.diffseg.aggregate import BLOCK
from slime_bench.places import onto

Arithmetic = Literal["half", "exact"]
MARGIN: Final = 0.01
"""How far from the threshold, times 1 + the threshold, a distance has to be for float16 not to matter."""
SHIFT: Final = 1e-4  # of the centres, relative to the maps' variance, at which k-means ends: scikit-learn's default
PASSES: Final = 300  # of k-means at most: the same


def anchors(points: int, grid: Size) -> Tensor:
    """Positions of an even grid of `points` x `points` on the latent grid, rows first, int64 [points^2].

    Along an axis of s positions: start + i (s - 1) // (points - 1), in the middle; 1, 5, ..., 61 for 16 points of 64.
    """
    axes = []
    for side in grid:
        step = (side - 1) // (points - 1)
        axes.append(torch.arange(points) * step + (side - 1 - step * (points - 1)) // 2)
    return (axes[0][:, None] * grid[1] + axes[1]).flatten()


def distances(x: Tensor, y: Tensor) -> Tensor:
    """D of every pair, float64 [A,M]; a zero counts as the smallest positive number.

    sum x log x + sum y log y - x . log y - y . log x, with the logarithms of y made block by block.
    """
    log_x = _log(x)
    own = (x * log_x).sum(dim=1, keepdim=True)
    found = []
    for rows in y.split(max(1, BLOCK // y.shape[1])):
        logs = _log(rows)
        found.append(own + (rows * logs).sum(dim=1) - x @ logs.T - log_x @ rows.T)
    return torch.cat(found, dim=1) / 2


def half_distances(x: Tensor, y: Tensor) -> Tensor:
    """D of P pairs as the authors' first step has it, float16 [P], of maps float16 [P,N] both.

    Logarithms, differences, products and the two halves are rounded to float16; sums are made in float32 and rounded. A
    map with a zero, which any number below 3e-8 has become, is NaN apart from every other."""
    difference = x.log() - y.log()
    forth, back = ((each * difference).sum(dim=1, dtype=torch.float32).half() for each in (x, y))
    return (forth - back) / 2


def half_decisions(x: Tensor, y: Tensor, threshold: float) -> Tensor:
    """Whether `half_distances` of a pair is below the threshold, itself in float16: bool [A,M].

    Only pairs near the threshold are computed so. For the others matrix products of the rounded maps and logarithms
    tell: the later roundings, of relative size u = 2^-11, change D by at most

        u (sum (x + y) |log x - log y| + 3 D) + N 2^-25 <= u (5 D + 4) + N 2^-25

    (as min(x, y) |log x - log y| <= |x - y|), of which `MARGIN` is twice as much for D about 1 and N = 4096.
    """
    limit = torch.tensor(threshold, dtype=torch.float16)
    margin = MARGIN * (1 + threshold)
    x = x.half()
    log_x, whole_x = _finite_log(x)
    own = (x.double() * log_x).sum(dim=1, keepdim=True)
    found = []
    for rows in y.half().split(max(1, BLOCK // y.shape[1])):
        log_y, whole_y = _finite_log(rows)
        apart = own + (rows.double() * log_y).sum(dim=1) - x.double() @ log_y.T - log_x @ rows.double().T
        apart = apart / 2 - float(limit)
        near = apart < 0
        pairs = (apart.abs() <= margin).nonzero()
        for some in pairs.split(max(1, BLOCK // y.shape[1])):
            one, other = some.unbind(dim=1)
            near[one, other] = half_distances(x[one], rows[other]) < limit
        found.append(near & whole_x[:, None] & whole_y)
    return torch.cat(found, dim=1)


def merge(maps: Tensor, start: Tensor, thresholds: Sequence[float], first_step: Arithmetic) -> Tensor:
    """Maps of clusters, float64 [n,N], in the order of the anchors that they come from.

    First step: every anchor becomes the mean of all maps that are nearer than the threshold. Later steps: of the maps
    in order, each that no earlier one has taken becomes the mean of all that are nearer, also of those already taken.

    Args:
        maps: float64 [N,N]. start: int64, positions of the anchors. thresholds: of the steps, one or more.
        first_step: `half`: D of the first step as `half_distances` has it; an anchor whose D are NaN is left out.

    Raises:
        ConfigError: no anchor is left.
    """
    near = first_decisions(maps, start, thresholds[0], first_step)
    near = near[near.any(dim=1)].double()  # an anchor is near itself, if it is near anything
    if not len(near):
        raise ConfigError(
            "every anchor's map has numbers that float16 rounds to 0", path="method.first_step", found="half",
            expected="maps of numbers above 3e-8", remedy="method.first_step=exact",
        )  # fmt: skip
    found = near @ maps / near.sum(dim=1, keepdim=True)
    for threshold in thresholds[1:]:
        near = (distances(found, found) < threshold).cpu()
        taken = torch.zeros(len(found), dtype=torch.bool)
        kept = []
        for place in range(len(found)):
            if not taken[place]:
                rows = onto(near[place].nonzero()[:, 0], maps.device)
                kept.append(found[rows].mean(dim=0))
                taken |= near[place]
        found = torch.stack(kept)
    return found


def first_decisions(maps: Tensor, start: Tensor, threshold: float, first_step: Arithmetic) -> Tensor:
    """Which maps the anchors take in the first step, bool [A,N]."""
    if first_step == "exact":
        return distances(maps[start], maps) < threshold
    return half_decisions(maps[start], maps, threshold)


def k_means(maps: Tensor, centres: Tensor) -> Tensor:
    """Means of the clusters that Lloyd's iteration makes of all maps, float64 [n,N], started at `centres` [n,N].

    It ends as scikit-learn's does: where no map changes its cluster, or the centres hardly move. A cluster without maps
    keeps its centre while it runs, and is left out at the end.
    """
    least = SHIFT * float(maps.var(dim=0, correction=0).mean())
    labels = torch.full((len(maps),), -1, device=maps.device)
    for _ in range(PASSES):
        before, labels = labels, _nearest(maps, centres)
        moved = _means(maps, labels, centres)
        shift, centres = float((moved - centres).square().sum()), moved
        if torch.equal(labels, before):
            break
        if shift <= least:
            labels = _nearest(maps, centres)
            break
    return _means(maps, labels, centres)[labels.unique()]


def cluster_scores(clusters: Tensor, grid: Size, size: Size) -> Tensor:
    """Maps of clusters [n,N] resized bilinearly from the latent grid to `size` = (H, W): float64 [n,H,W]. A pixel
    belongs to the cluster with the largest, the first of equal ones."""
    return resize(clusters.view(1, -1, *grid), size)[0]


def _log(maps: Tensor) -> Tensor:
    return maps.clamp(min=torch.finfo(maps.dtype).tiny).log()


def _finite_log(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms rounded to float16, as float64 [n,N], of maps float16; and which maps have no zero, bool [n]."""
    logs = maps.log()
    whole = logs.isfinite().all(dim=1)
    return logs.double().where(whole[:, None], 0), whole


def _nearest(maps: Tensor, centres: Tensor) -> Tensor:
    return (centres.square().sum(dim=1) - 2 * maps @ centres.T).argmin(dim=1)


def _means(maps: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """Means of the maps of each label; the centre itself where there are none."""
    member = torch.nn.functional.one_hot(labels, len(centres)).to(maps.dtype)
    counts = member.sum(dim=0)[:, None]
    return torch.where(counts > 0, member.T @ maps / counts.clamp(min=1), centres)

"""Self-attention of all layers of a U-Net as one map for each position of the latent grid. Pure functions.

    A(p, .) = sum_r w_r Z^-1 resize(mean over layers and heads of softmax(q k^T)(parent_r(p), .))

with r the resolutions, parent_r(p) the position of r that holds p, and Z what makes each resized map sum to 1 (Tian et
al., CVPR 2024, arXiv 2308.12469, section 3.1; github google/diffseg at 77ea596).

Shapes: H heads, n positions of a layer, T text tokens, D head width, (h, w) the latent grid with N = h w positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from slime_bench.attention.attend import full
from slime_bench.attention.capture import LayerAttention
from slime_bench.attention.maps import Size, grid_size, resize
from slime_bench.places import double, exact

BLOCK: Final = 2**22
"""Numbers in a block of a product that may take any memory; larger ones fall out of a CPU's cache."""


def block_rows(width: int, budget: int) -> int:
    """Rows of a block whose rows hold `width` float32 numbers, of which three copies may take `budget` bytes."""
    return max(1, min(BLOCK, budget // 12) // width)


def probabilities(layer: LayerAttention, budget: int) -> Iterator[Tensor]:
    """softmax(q k^T * scale), mean over heads, of the queries block by block: float [rows, keys], at least float32.

    Args:
        layer: of one image, query [1,H,n,D], key [1,H,M,D]. budget: bytes that a block may take.
    """
    query, key = layer.query[0], full(layer.key[0]).transpose(1, 2)
    with torch.autocast(query.device.type, enabled=False):
        for rows in query.split(block_rows(query.shape[0] * key.shape[2], budget), dim=1):
            yield (full(rows) @ key * layer.scale).softmax(dim=-1).mean(dim=0)


def default_weights(sizes: Sequence[Size]) -> list[float]:
    """Of the resolutions, in proportion to their sides: 64, 32, 16, 8 over 120 for 512 pixels."""
    total = sum(height for height, _ in sizes)
    return [height / total for height, _ in sizes]


def aggregate(layers: Sequence[LayerAttention], grid: Size, budget: int, weights: Sequence[float] | None) -> Tensor:
    """The maps A of one image, float64 [N,N], a row for each position; rows sum to the sum of the weights.

    One layer's map exists at a time, besides one of each resolution and the result.

    Args:
        layers: self-attention layers of one image (batch of 1). grid: (h, w) of the latent.
        budget: bytes that a block of a product may take.
        weights: of the resolutions, the finest first, taken as they are; None for `default_weights`.
    """
    by_size: dict[Size, list[LayerAttention]] = {}
    for layer in layers:
        by_size.setdefault(grid_size(layer.query.shape[2], grid), []).append(layer)
    sizes = sorted(by_size, reverse=True)
    positions = grid[0] * grid[1]
    found = torch.zeros(positions, positions, dtype=torch.float64, device=exact(layers[0].query.device))
    for size, weight in zip(sizes, weights or default_weights(sizes), strict=True):
        mean = torch.zeros(size[0] * size[1], size[0] * size[1], device=layers[0].query.device)
        for layer in by_size[size]:
            start = 0
            for block in probabilities(layer, budget):
                mean[start : start + len(block)] += block / len(by_size[size])
                start += len(block)
        _add(found, mean, size, grid, weight)
    return found


def _add(found: Tensor, maps: Tensor, size: Size, grid: Size, weight: float) -> None:
    """Add a resolution's maps [n,n] to `found` [N,N]: keys resized bilinearly and to a sum of 1, queries repeated."""
    (height, width), (rows, columns) = grid, size
    parents = torch.arange(width, device=found.device) * columns // width
    for row in range(rows):
        fine = double(resize(maps[row * columns : (row + 1) * columns].view(columns, 1, *size), grid).flatten(1))
        fine = weight * fine / fine.sum(dim=1, keepdim=True)
        for here in range(height):
            if here * rows // height == row:
                found[here * width : (here + 1) * width] += fine[parents]


def token_maps(
    layers: Sequence[tuple[LayerAttention, float]], tokens: Tensor, grid: Size, size: Size, budget: int
) -> Tensor:
    """Cross-attention of some tokens, float32 [len(tokens),H,W]: mean over heads, weighted mean over the layers of a
    resolution, resized to `size` = (H, W), summed over the resolutions.

    The authors' division by the sum over all tokens is the one by the sum of the weights: each layer's maps sum to 1
    over the tokens at every position, and so they do when resized.

    Args:
        layers: cross-attention layers of one image (batch of 1) with their weights. tokens: int64, their numbers.
        grid: (h, w) of the latent. budget: bytes that a block of a product may take.
    """
    by_size: dict[Size, list[tuple[LayerAttention, float]]] = {}
    for layer, weight in layers:
        by_size.setdefault(grid_size(layer.query.shape[2], grid), []).append((layer, weight))
    found = torch.zeros(len(tokens), *size, device=tokens.device)
    for here, own in by_size.items():
        total = sum(weight for _, weight in own)
        mean = sum(
            weight / total * torch.cat([block[:, tokens] for block in probabilities(layer, budget)])
            for layer, weight in own
        )
        assert isinstance(mean, Tensor)
        found += resize(mean.T.reshape(1, -1, *here).float(), size)[0]
    return found

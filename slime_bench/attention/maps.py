"""Maps made of queries and keys: class logits, class probabilities, WAS. Pure functions.

Shapes: B images, K classes, H heads, N query positions, M keys, T text tokens, D head width, (h, w) a layer's grid.

Queries and keys may be float32, bfloat16 or float16; maps are float32 all the same, also under autocast
(float64 stays float64).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from slime_bench.attention.attend import full, propagate
from slime_bench.attention.capture import LayerAttention
from slime_bench.errors import BackboneError

Size = tuple[int, int]


def grid_size(positions: int, latent_size: Size) -> Size:
    """(h, w) of a layer with `positions` = h * w queries, in a model that halves `latent_size`, rounding up.

    Raises:
        BackboneError: no number of halvings gives as many positions.
    """
    height, width = latent_size
    while height * width > max(positions, 1):
        height, width = -(-height // 2), -(-width // 2)
    if height * width != positions:
        raise BackboneError(
            "an attention layer's positions do not form a grid of the latent",
            found=f"{positions} positions, latent {latent_size[0]}x{latent_size[1]}",
            expected="a model that halves its grid",
            remedy="choose other layers in backbone.cross_layers and backbone.self_layers",
        )
    return height, width


def class_logits(layer: LayerAttention, num_classes: int, grid: Size) -> torch.Tensor:
    """Pre-softmax logits of the first `num_classes` tokens, averaged over heads: float [B,K,h,w].

    Averaging commutes with the dot product, so the keys of other tokens are never touched (Eq. 3 without softmax, as
    the authors' code trains).
    """
    with _full_precision(layer):
        query, key = full(layer.query), full(layer.key[:, :, :num_classes])
        logits = torch.einsum("bhnd,bhkd->bkn", query, key) * (layer.scale / query.shape[1])
    return logits.unflatten(-1, grid)


def class_probabilities(
    layer: LayerAttention, num_classes: int, grid: Size, over_all_tokens: bool = True
) -> torch.Tensor:
    """Attention probabilities of the first `num_classes` tokens, averaged over heads: float [B,K,h,w] in [0,1].

    Args:
        over_all_tokens: softmax over all T tokens, or over the class tokens alone (then the classes sum to 1).
    """
    key = layer.key if over_all_tokens else layer.key[:, :, :num_classes]
    with _full_precision(layer):
        logits = torch.einsum("bhnd,bhkd->bhkn", full(layer.query), full(key)) * layer.scale
    return logits.softmax(dim=2)[:, :, :num_classes].mean(dim=1).unflatten(-1, grid)


def resize(maps: torch.Tensor, size: Size) -> torch.Tensor:
    """Bilinear resize (half-pixel centres, no antialias) of float [B,K,h,w] to [B,K,*size]."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def average(maps: Sequence[torch.Tensor], size: Size) -> torch.Tensor:
    """Mean over layers of maps resized to `size` (Eq. 3): list of float [B,K,h_l,w_l] -> [B,K,*size]."""
    return torch.stack([resize(m, size) for m in maps]).mean(dim=0)


def was(layers: Sequence[LayerAttention], maps: torch.Tensor) -> torch.Tensor:
    """Weighted accumulated self-attention (Eq. 6): WAS_k(q) = sum_p A_sa(q, p) R_k(p).

    A_sa is the mean over layers and heads of the self-attention. That is one more attention product with the maps as
    values, so no N x N matrix is kept.

    Args:
        layers: self-attention layers, all with N = h * w positions.
        maps: R, float [B,K,h,w], on the layers' grid.

    Returns:
        float [B,K,h,w]; every pixel is a convex combination of the pixels of the same map.
    """
    grid, values = (int(maps.shape[-2]), int(maps.shape[-1])), to_rows(maps)
    found = torch.stack([propagate(layer.query, layer.key, values, layer.scale) for layer in layers]).mean(dim=0)
    return to_maps(found, grid)


def to_rows(maps: torch.Tensor) -> torch.Tensor:
    """[B,K,h,w] -> [B,h*w,K]."""
    return maps.flatten(2).transpose(1, 2)


def to_maps(rows: torch.Tensor, grid: Size) -> torch.Tensor:
    """[B,h*w,K] -> [B,K,h,w]."""
    return rows.transpose(1, 2).unflatten(-1, grid)


def _full_precision(layer: LayerAttention) -> torch.autocast:
    """Without autocast, which would do a product of float32 tensors in half precision again."""
    return torch.autocast(layer.query.device.type, enabled=False)

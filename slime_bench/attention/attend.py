"""Attention products on the kernel that is fastest for their sizes; memory is linear in the number of positions.

All of them are torch's fused ones, which keep no N x M matrix. They are slow, or refuse, where heads are narrow or of
an odd width; columns of zeros put that right and change neither the logits nor the other values.
"""

from __future__ import annotations

from typing import Final

import torch
from torch.nn import functional as F

LANES: Final = 16
"""Numbers in a vector register of the CPU: narrower heads leave the matrix products half empty. Filled up to it, heads
of 4 and 8 run 1.2 to 1.5 times as fast, heads of 12 1.0 to 1.2 times (`python -m slime_bench.bench.attention`)."""

MANY_KEYS: Final = 256
"""From so many keys on filling up pays on a CPU; with a prompt's 77 the copying costs what it saves."""

STEP: Final = 8
"""Widths of heads go up by this: CUDA's fused kernels take no other ones. A CPU is 1.0 to 1.15 times as fast where less
than half a step is missing (38, 70), and 0.8 to 0.95 times where more is (18, 36): there it stays as it is."""


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """softmax(query @ key^T * scale) @ value. Differentiable once.

    Args:
        query: float [B,H,N,D]. key: float [B,H,M,D]. value: float [B,H,M,E], of any width E.
        mask: added to the logits, or bool with True for what takes part; it must fit [B,H,N,M].

    Returns:
        float [B,H,N,E].
    """
    wide = value.shape[-1]
    width = kernel_width(max(query.shape[-1], wide), key.shape[-2], query.device.type)
    query, key, value = (_filled(x, width) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)[..., :wide]


def kernel_width(width: int, keys: int, device: str) -> int:
    """Columns to which queries, keys and values are filled up before they go to the kernel.

    Args:
        width: of the widest of the three. keys: how many. device: type of the device.
    """
    rounded = -(-width // STEP) * STEP
    if device == "cpu":
        if keys < MANY_KEYS:
            return width
        return max(LANES, rounded if rounded - width < STEP / 2 else width)
    return rounded if device == "cuda" else width


def propagate(query: torch.Tensor, key: torch.Tensor, maps: torch.Tensor, scale: float) -> torch.Tensor:
    """Maps propagated by one layer's self-attention: softmax(query @ key^T * scale) @ maps, mean over heads.

    Args:
        query, key: float [B,H,N,D]. maps: float [B,N,K], taken in the precision of the queries.

    Returns:
        float [B,N,K], at least float32.
    """
    values = maps.to(query.dtype).contiguous()[:, None].expand(-1, query.shape[1], -1, -1)
    return head_mean(attend(query, key, values, scale))


def head_mean(values: torch.Tensor) -> torch.Tensor:
    """Mean over heads, at least float32: [B,H,N,K] -> [B,N,K]."""
    return full(values).mean(dim=1)


def full(values: torch.Tensor) -> torch.Tensor:
    """At least float32: float64 stays what it is."""
    return values if values.dtype == torch.float64 else values.float()


def _filled(x: torch.Tensor, width: int) -> torch.Tensor:
    """[B,H,N,D] -> [B,H,N,width] with a contiguous last axis, which the fused kernels want; on CUDA not expanded, as
    not all of them expect that."""
    if x.shape[-1] < width:
        return F.pad(x, (0, width - x.shape[-1]))
    return x if x.stride(-1) == 1 and not (x.is_cuda and 0 in x.stride()) else x.contiguous()

"""One pass of the frozen backbone for the images of several trials, whose rows stand one after another.

T trials, B images of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from slime_bench.attention.capture import LayerAttention
from slime_bench.backbones.stable_diffusion import DiffusionAttention


def prompt_rows(texts: Sequence[torch.Tensor], counts: Sequence[int]) -> torch.Tensor:
    """Each trial's prompt, float [1,T,D], for its `counts` rows: [sum(counts),T,D]. Of a single trial the one prompt of
    all its rows, [1,T,D], whose keys and values the backbone then computes once."""
    if len(texts) == 1:
        return texts[0]
    return torch.cat([text.expand(count, -1, -1) for text, count in zip(texts, counts, strict=True)])


def split(found: DiffusionAttention, counts: list[int]) -> list[DiffusionAttention]:
    """The attention of a pass in parts of these numbers of rows.

    By torch's `split` and not by slices: its backward pass joins the parts' gradients once, where every slice would add
    a tensor of the whole batch's size, all zeros but for the part.
    """
    if len(counts) == 1:
        return [found]

    def tensors(whole: torch.Tensor | None) -> Sequence[torch.Tensor | None]:
        return [None] * len(counts) if whole is None else whole.split(counts)

    def layers(every: Sequence[LayerAttention]) -> list[list[LayerAttention]]:
        divided = [(each.query.split(counts), each.key.split(counts), each.scale) for each in every]
        return [
            [LayerAttention(query[part], key[part], scale) for query, key, scale in divided]
            for part in range(len(counts))
        ]

    pieces = zip(layers(found.cross), layers(found.self_), tensors(found.noise), tensors(found.propagated), strict=True)
    return [
        DiffusionAttention(cross, found.cross_grids, self_, found.self_grids, noise, propagated)
        for cross, self_, noise, propagated in pieces
    ]


def joined(one: DiffusionAttention, other: DiffusionAttention) -> DiffusionAttention:
    """The layers of two passes side by side, where the second has some: the mean over layers is then the mean over
    passes and layers."""
    if not other.cross:
        return one
    return DiffusionAttention(
        one.cross + other.cross,
        one.cross_grids + other.cross_grids,
        one.self_ + other.self_,
        one.self_grids + other.self_grids,
        one.noise,
    )

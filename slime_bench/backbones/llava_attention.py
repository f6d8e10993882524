"""Many prompts about one image in one pass, and the scores of their tokens against the image.

A language model with causal attention sees an image before the text about it, so the keys and values of everything up
to the image are the same for all prompts. They are computed once. The rests of the conversations, from the image to the
question, then stand one after another in one sequence: each row attends to the shared keys and to earlier rows of its
own conversation, and positions start again with every conversation. There is no padding on either side. The shared keys
are read and never extended, so no prompt can change them for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one layer, rotated where the model rotates: float [B,G,N,D], G key heads."""


@dataclass(frozen=True)
class Packed:
    """The rests of P conversations in one sequence of S tokens.

    Attributes:
        ids: int64 [1,S]. positions: int64 [1,S], counted from the start of the conversation.
        prompt: int64 [P,T], rows of the prompts' tokens in the sequence. Padding repeats the last token's row.
        last: int64 [P], rows after which the model would answer.
        bounds: rows at which a group of conversations begins, and S.
        masks: for every group of R rows, bool [R,N+R], True where a row attends: all N shared keys, then its own
            conversation up to itself.
    """

    ids: Tensor
    positions: Tensor
    prompt: Tensor
    last: Tensor
    bounds: tuple[int, ...]
    masks: tuple[Tensor, ...]


def pack(lead: Sequence[int], ids: Tensor, mask: Tensor, question: Sequence[int], shared: int, group: int) -> Packed:
    """Put conversations after one another.

    Args:
        lead, question: ids before and after every prompt. ids: int64 [P,T], mask: bool [P,T], True for a token.
        shared: N, tokens before `lead`. group: conversations per attention call.
    """
    prompts, tokens = ids.shape
    ends = [torch.tensor(part, dtype=ids.dtype, device=ids.device).expand(prompts, -1) for part in (lead, question)]
    used = torch.cat([torch.ones_like(ends[0], dtype=torch.bool), mask, torch.ones_like(ends[1], dtype=torch.bool)], 1)
    row = used.flatten().cumsum(0).view(used.shape) - 1  # [P,A+T+B]; an unused place has its predecessor's
    position = used.cumsum(1) - 1 + shared
    owner = torch.arange(prompts, device=ids.device)[:, None].expand_as(used)[used]  # [S]
    lengths = used.sum(1).tolist()
    firsts = [0]
    for length in lengths:
        firsts.append(firsts[-1] + length)
    bounds = (*firsts[:-1:group], firsts[-1])
    masks = []
    for start, end in pairwise(bounds):
        own = owner[start:end]
        attends = (own[:, None] == own[None, :]).tril()
        masks.append(torch.cat([attends.new_ones(len(own), shared), attends], dim=1))
    return Packed(
        ids=torch.cat([ends[0], ids, ends[1]], dim=1)[used][None],
        positions=position[used][None],
        prompt=row[:, len(lead) : len(lead) + tokens],
        last=row[:, -1],
        bounds=bounds,
        masks=tuple(masks),
    )


def image_scores(query: Tensor, key: Tensor, rows: Tensor, scaling: float) -> Tensor:
    """Scores q.k * scaling of chosen rows, before the softmax and in float32, also under autocast.

    Args:
        query: float [B,H,S,D]. key: float [B,G,M,D]; every H/G heads in a row share one key head.
        rows: int64 [P,T].

    Returns:
        float32 [B,P,H,T,M].
    """
    with torch.autocast(query.device.type, enabled=False):
        chosen = query[:, :, rows.flatten()].float().unflatten(1, (key.shape[1], -1))  # [B,G,H/G,PT,D]
        scores = (chosen @ key.float()[:, :, None].mT) * scaling
    return scores.flatten(1, 2).unflatten(2, tuple(rows.shape)).transpose(1, 2)


def shared_attention(
    packed: Packed, shared: Sequence[KeyValue], image: slice, keep: Mapping[int, Callable[[Tensor], None]]
) -> Callable[..., tuple[Tensor, None]]:
    """An attention function, as the library calls it, for a pass over `packed`.

    Args:
        shared: of every layer, keys and values of what comes before. image: the image's place among them.
        keep: layer's index -> what takes its scores, float32 [B,P,H,T,M].
    """

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        """query float [B,H,S,D], key and value float [B,G,S,D] -> float [B,S,H,D]."""
        before_key, before_value = shared[module.layer_idx]
        if module.layer_idx in keep:
            keep[module.layer_idx](image_scores(query, before_key[:, :, image], packed.prompt, scaling))
        repeats = query.shape[1] // key.shape[1]
        mixed = []
        for (start, end), mask in zip(pairwise(packed.bounds), packed.masks, strict=True):
            keys, values = (
                torch.cat([before, own[:, :, start:end]], dim=2)
                for before, own in ((before_key, key), (before_value, value))
            )
            if repeats > 1:  # by hand: with a mask, the fused kernels of CUDA take no key heads that queries share
                keys, values = (each.repeat_interleave(repeats, dim=1) for each in (keys, values))
            mixed.append(
                F.scaled_dot_product_attention(query[:, :, start:end], keys, values, attn_mask=mask, scale=scaling)
            )
        return torch.cat(mixed, dim=2).transpose(1, 2).contiguous(), None

    return attend


@contextmanager
def attention_by(model: Any, function: Callable[..., tuple[Tensor, None]]) -> Iterator[None]:
    """Let a model of the library attend by `function` inside the `with` block; what it did before is restored on exit,
    also after an exception, and nothing stays in the library's table of attention functions."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = model.config._attn_implementation
    name = f"slime_bench_{id(function)}"
    ALL_ATTENTION_FUNCTIONS[name] = function
    try:
        model.set_attn_implementation(name)
        yield
    finally:
        model.set_attn_implementation(before)
        del ALL_ATTENTION_FUNCTIONS[name]

"""One pass of prompts and images through BLIP's stock text layers, and the cross-attention scores on the way.

Self-attention sees one prompt at a time, [B*P,T]; cross-attention treats every token by itself, so that all prompts of
an image go through it as one sequence, [B,P*T], and the image's keys and values are projected once. What comes before
the first cross-attention does not depend on the image and is computed once per prompt. Only the loop over the layers is
ours: every number comes from the library's own modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from slime_bench.attention.attend import full

Take = Callable[[str, Tensor, Tensor], None]
"""Called with a layer's name, its queries [B,N,D] and keys [B,M,D], projected, not scaled, heads side by side in D."""


@contextmanager
def captured(layers: Mapping[str, nn.Module], take: Take) -> Iterator[None]:
    """Hand over queries and keys of attention modules while they run; all hooks are gone on exit, however it comes.

    Args:
        layers: modules with the projections `query` and `key`, by name.
    """
    queries: dict[str, Tensor] = {}

    def keep(_: nn.Module, __: Any, output: Tensor, name: str) -> None:
        queries[name] = output

    def hand_over(_: nn.Module, __: Any, output: Tensor, name: str) -> None:
        take(name, queries.pop(name), output)

    with ExitStack() as hooks:
        for name, module in layers.items():
            hooks.enter_context(module.get_submodule("query").register_forward_hook(partial(keep, name=name)))
            hooks.enter_context(module.get_submodule("key").register_forward_hook(partial(hand_over, name=name)))
        yield


def scores(query: Tensor, key: Tensor, heads: int, prompts: int) -> Tensor:
    """Attention scores q.k / sqrt(d) before the softmax.

    Args:
        query: float [B,P*T,D]. key: float [B,M,D]. heads: H, of d = D/H numbers each. prompts: P.

    Returns:
        float32 [B,P,H,T,M], not contiguous, whatever the precision of the weights; float64 for float64.
    """
    batch, tokens, width = query.shape
    with torch.autocast(query.device.type, enabled=False):
        split_query = full(query).view(batch, tokens, heads, -1).transpose(1, 2) / math.sqrt(width // heads)
        split_key = full(key).view(batch, key.shape[1], heads, -1).permute(0, 2, 3, 1)
        found = split_query @ split_key
    return found.view(batch, heads, prompts, tokens // prompts, -1).transpose(1, 2)


def padding_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to self-attention scores so that padding gets no attention: bool [P,T] -> [P,1,1,T]."""
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill_(~mask, torch.finfo(dtype).min)[:, None, None]


def image_free(text: Any, ids: Tensor, mask: Tensor, first: int) -> Tensor:
    """What the first cross-attention is asked with: embeddings, the text-only layers, one more self-attention.

    Args:
        text: `BlipTextModel`. ids: int64 [P,T]. mask: bool [P,T]. first: index of the first layer with cross-attention.

    Returns:
        float [P,T,D].
    """
    hidden = text.embeddings(input_ids=ids)
    bias = padding_bias(mask, hidden.dtype)
    for layer in text.encoder.layer[:first]:
        hidden = layer.feed_forward_chunk(layer.attention(hidden, attention_mask=bias)[0])
    return text.encoder.layer[first].attention(hidden, attention_mask=bias)[0]


def fuse(text: Any, attended: Tensor, mask: Tensor, states: Tensor, first: int) -> Tensor:
    """The layers with cross-attention.

    Args:
        text: `BlipTextModel`. attended: float [P,T,D], as `image_free` gives it. mask: bool [P,T].
        states: float [B,M,E] of images. first: index of the first layer with cross-attention.

    Returns:
        float [B,P,T,D], the last layer's output.
    """
    images, (prompts, tokens, width) = len(states), attended.shape
    bias = padding_bias(mask, attended.dtype).repeat(images, 1, 1, 1)
    hidden = attended.expand(images, -1, -1, -1)
    for index, layer in enumerate(text.encoder.layer[first:]):
        if index:
            hidden = layer.attention(hidden.view(images * prompts, tokens, width), attention_mask=bias)[0]
        packed = hidden.reshape(images, prompts * tokens, width)
        hidden = layer.feed_forward_chunk(layer.crossattention(packed, encoder_hidden_states=states)[0])
    return hidden.view(images, prompts, tokens, width)


class ImageFreeCache:
    """The last `image_free` states, kept while neither prompts nor weights change; worth it where layers are text-only.

    Weights are known by their places and their counters of changes.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._kept = torch.empty(0)

    def __call__(self, text: Any, ids: Tensor, mask: Tensor, first: int) -> Tensor:
        """As `image_free`; nothing is kept or taken where gradients are asked for."""
        layers = text.encoder.layer
        modules = (text.embeddings, *layers[:first], layers[first].attention)
        weights = [each for module in modules for each in module.parameters()]
        asked = torch.is_grad_enabled() and any(each.requires_grad for each in weights)
        if asked or any(each.is_inference() for each in weights):  # those have no counter
            return image_free(text, ids, mask, first)
        key = ids.tolist(), mask.tolist(), [(each.data_ptr(), each._version) for each in weights]
        if key != self._key:
            # A plain tensor, whatever mode the caller is in: what is kept may enter a graph later.
            with torch.inference_mode(False), torch.no_grad():
                self._key, self._kept = key, image_free(text, ids, mask, first)
        return self._kept

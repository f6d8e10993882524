"""Record queries and keys of named attention layers of a diffusers model while it runs.

`capture` swaps the attention processors of the named layers and puts the old ones back on exit, also after an
exception. The captured run computes what the plain run computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from slime_bench.errors import BackboneError


@dataclass(frozen=True)
class LayerAttention:
    """Queries and keys of one attention layer.

    Attributes:
        query: float [B,H,N,D], projected, not scaled.
        key: float [B,H,M,D]; M = N for self-attention, the number of text tokens T for cross-attention.
        scale: factor of the logits, query @ key^T * scale.
    """

    query: torch.Tensor
    key: torch.Tensor
    scale: float


class _AllCaptured(Exception):
    """Every named layer has been seen; what follows in the model is not needed."""


@dataclass
class Recording:
    """What `capture` has recorded: layer name -> queries and keys, in the order in which the layers ran."""

    layers: dict[str, LayerAttention] = field(default_factory=dict)


class _RecordingProcessor:
    """Computes the layer as diffusers' own fused processor does, and keeps queries and keys on the way."""

    def __init__(self, name: str, recording: Recording, names: frozenset[str], stop_early: bool) -> None:
        self._name, self._recording, self._names, self._stop_early = name, recording, names, stop_early

    def __call__(
        self,
        attn: Any,  # diffusers' Attention: its attributes are set at run time
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """hidden_states float [B,N,C], encoder_hidden_states float [B,M,E] or None -> float [B,N,C]."""
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key = (_split(linear(x), attn.heads) for linear, x in ((attn.to_q, hidden_states), (attn.to_k, source)))
        self._recording.layers[self._name] = LayerAttention(query, key, float(attn.scale))
        if self._stop_early and self._names <= self._recording.layers.keys():
            raise _AllCaptured
        value = _split(attn.to_v(source), attn.heads)
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, source.shape[1], len(source))
            attention_mask = attention_mask.view(len(source), attn.heads, -1, attention_mask.shape[-1])
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=attn.scale)
        mixed = mixed.transpose(1, 2).flatten(2).to(query.dtype)  # [B,N,H*D]
        output = attn.to_out[1](attn.to_out[0](mixed))
        if attn.residual_connection:
            output = output + hidden_states
        return output / attn.rescale_output_factor


def _split(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[B,N,H*D] -> [B,H,N,D]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def named_layer(model: nn.Module, name: str) -> Any:
    """The attention layer `name` of a diffusers model.

    Raises:
        BackboneError: no such layer, or one with features that the recording would miss.
    """
    modules = dict(model.named_modules())
    known = [n for n, m in modules.items() if hasattr(m, "set_processor") and hasattr(m, "to_q")]
    if name not in known:
        raise BackboneError(
            "no attention layer of this name in the backbone",
            path=name,
            expected=known,
            remedy="name one of these layers in backbone.cross_layers or backbone.self_layers",
        )
    layer = modules[name]
    extras = ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k", "add_k_proj")
    unusual = [extra for extra in extras if getattr(layer, extra, None)]
    if unusual:
        raise BackboneError(
            "this attention layer cannot be captured faithfully",
            path=name,
            found=f"it uses {', '.join(unusual)}",
            expected="plain Stable Diffusion attention",
            remedy="choose another layer, or write a processor for such layers in slime_bench/attention/capture.py",
        )
    return layer


@contextmanager
def capture(model: nn.Module, names: Sequence[str], stop_early: bool = False) -> Iterator[Recording]:
    """Record the named layers of every forward pass inside the `with` block (a later pass replaces an earlier one).

    Args:
        model: a diffusers model. names: module names such as `up_blocks.1.attentions.0.transformer_blocks.0.attn2`.
        stop_early: leave the forward pass as soon as the last named layer has its queries and keys. The pass then
            returns nothing: the `with` block ends at that point.

    Raises:
        BackboneError: no such layer, or one with features that the recording would miss.
    """
    layers = {name: named_layer(model, name) for name in names}
    before = {name: layer.processor for name, layer in layers.items()}
    recording = Recording()
    try:
        for name, layer in layers.items():
            layer.set_processor(_RecordingProcessor(name, recording, frozenset(layers), stop_early))
        yield recording
    except _AllCaptured:
        pass
    finally:
        for name, layer in layers.items():
            layer.set_processor(before[name])

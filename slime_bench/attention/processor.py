"""The attention processor of plain layers: what diffusers' own computes, on `attend`, and a text only once."""

from __future__ import annotations

from typing import Any, Final, Protocol

import torch
from torch import nn

from slime_bench.attention.attend import attend
from slime_bench.attention.constant_text import ConstantText

UNSUPPORTED: Final = ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k", "add_k_proj")
"""Features of diffusers' attention layers that `Processor` does not compute; Stable Diffusion has none of them."""


class Observer(Protocol):
    """Looks on while layers run, and may have them propagate extra values."""

    def seen(self, name: str, query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor | None:
        """Called before the values of the layer `name` are computed; it may leave the forward pass by raising.

        Args:
            query: float [B,H,N,D], projected, not scaled. key: float [B,H,M,D]. scale: of the logits.

        Returns:
            extra values, to be propagated by the same attention, float [B,M,K], or None.
        """

    def propagated(self, name: str, values: torch.Tensor) -> None:
        """The extra values, propagated: float [B,H,N,K]. Called only where `seen` returned some."""


class Processor:
    """Equals diffusers' `AttnProcessor2_0` on a layer without `UNSUPPORTED`, to rounding.

    Args:
        text: keeps the projections of a text that does not change. observer: see there. name: of the layer, for it.
    """

    def __init__(self, text: ConstantText | None = None, observer: Observer | None = None, name: str = "") -> None:
        self.text, self._observer, self._name = text, observer, name

    def __call__(
        self,
        attn: Any,  # diffusers' Attention: its attributes are set at run time
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """hidden_states float [B,N,C], encoder_hidden_states float [B,M,E], [1,M,E] for all, or None -> [B,N,C]."""
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        batch, scale, observer = len(hidden_states), float(attn.scale), self._observer
        query = _split(attn.to_q(hidden_states), attn.heads)
        key = _split(self._projected(attn.to_k, source), attn.heads).expand(batch, -1, -1, -1)
        extra = observer.seen(self._name, query, key, scale) if observer is not None else None
        value = _split(self._projected(attn.to_v, source), attn.heads).expand(batch, -1, -1, -1)
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, source.shape[1], batch)
            attention_mask = attention_mask.view(batch, attn.heads, -1, attention_mask.shape[-1])
        own = value.shape[-1]
        if extra is not None:
            extra = extra[:, None].to(value.dtype).expand(-1, attn.heads, -1, -1)
            value = torch.cat([value, extra], dim=-1)
        attended = attend(query, key, value, scale, attention_mask)
        if extra is not None and observer is not None:
            observer.propagated(self._name, attended[..., own:])
            attended = attended[..., :own]
        output = attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2).to(query.dtype)))
        if attn.residual_connection:
            output = output + hidden_states
        return output if attn.rescale_output_factor == 1 else output / attn.rescale_output_factor

    def _projected(self, linear: nn.Module, source: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = linear(source) if self.text is None else self.text.projected(linear, source)
        return projected


def _split(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[B,N,H*D] -> [B,H,N,D]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attention_layers(model: nn.Module) -> dict[str, Any]:
    """Module name -> attention layer of a diffusers model."""
    return {name: module for name, module in model.named_modules() if is_attention(module)}


def is_attention(module: nn.Module) -> bool:
    """Whether a module is a layer of diffusers that takes a processor."""
    return hasattr(module, "set_processor") and hasattr(module, "to_q")


def unsupported(layer: Any) -> list[str]:
    """Features of the layer that `Processor` would leave out."""
    return [feature for feature in UNSUPPORTED if getattr(layer, feature, None)]


def install(model: nn.Module, text: ConstantText | None = None) -> bool:
    """Give every plain layer that has diffusers' own fused processor a `Processor`; other layers keep theirs.

    Returns:
        whether no layer was left out, so that a text of one row will do for all images of a call.
    """
    from diffusers.models.attention_processor import AttnProcessor2_0

    every = True
    for layer in attention_layers(model).values():
        if type(layer.processor) is AttnProcessor2_0 and not unsupported(layer):
            layer.set_processor(Processor(text))
        else:
            every = False
    return every

"""Record queries and keys of named attention layers of a diffusers model while it runs.

`capture` swaps the attention processors of the named layers and puts the old ones back on exit, also after an
exception. The captured run computes what the plain run computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from slime_bench.attention.attend import head_mean, propagate
from slime_bench.attention.processor import Processor, attention_layer, attention_layers, unsupported
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


class AllCaptured(Exception):
    """Every named layer has been seen; what follows in the model is not needed."""


@dataclass
class Recording:
    """What `capture` has recorded.

    Attributes:
        layers: layer name -> queries and keys, in the order in which the layers ran.
        propagated: layer name -> the extra values, propagated by this layer's self-attention, float [B,N,K].
    """

    layers: dict[str, LayerAttention] = field(default_factory=dict)
    propagated: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ExtraValues:
    """Values that self-attention layers propagate while they run, in the same product as their own.

    Attributes:
        layers: names of these layers.
        make: the values, float [B,N,K], from the recording when the first of `layers` is reached, once per pass; None
            if they cannot be made by then, and nothing is propagated.
    """

    layers: frozenset[str]
    make: Callable[[Recording], torch.Tensor | None]


class _Pass:
    """What the observers of all named layers share: `capture`'s arguments, and the extra values of the running pass."""

    def __init__(self, names: Sequence[str], stop_early: bool, extra: ExtraValues | None) -> None:
        self.names, self.stop_early, self.extra = frozenset(names), stop_early, extra
        self.recording = Recording()
        self.values: torch.Tensor | None = None

    def values_of(self, name: str) -> torch.Tensor | None:
        """The extra values for the layer `name`, which has just been recorded."""
        if self.extra is None or name not in self.extra.layers:
            return None
        if not self.extra.layers & self.recording.layers.keys() - {name}:  # the first of them
            self.values = self.extra.make(self.recording)
        return self.values


class _Recorder:
    """Observes one layer."""

    def __init__(self, name: str, shared: _Pass) -> None:
        self._name, self._shared = name, shared

    def seen(self, query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor | None:
        """As `Observer` says."""
        shared, recording = self._shared, self._shared.recording
        if self._name in recording.layers:  # a new pass
            recording.layers.clear()
            recording.propagated.clear()
        recording.layers[self._name] = LayerAttention(query, key, scale)
        values = shared.values_of(self._name)
        if shared.stop_early and shared.names <= recording.layers.keys():
            if values is not None:
                recording.propagated[self._name] = propagate(query, key, values, scale)
            raise AllCaptured
        return values

    def propagated(self, values: torch.Tensor) -> None:
        """As `Observer` says."""
        self._shared.recording.propagated[self._name] = head_mean(values)


def named_layer(model: nn.Module, name: str) -> Any:
    """The attention layer `name` of a diffusers model.

    Raises:
        BackboneError: no such layer, or one with features that the recording would miss.
    """
    layer = attention_layer(model, name)
    if layer is None:
        raise BackboneError(
            "no attention layer of this name in the backbone", path=name, expected=list(attention_layers(model)),
            remedy="name one of these layers in backbone.cross_layers or backbone.self_layers",
        )  # fmt: skip
    unusual = unsupported(layer)
    if unusual:
        raise BackboneError(
            "this attention layer cannot be captured faithfully", path=name, found=f"it uses {', '.join(unusual)}",
            expected="plain Stable Diffusion attention",
            remedy="choose another layer, or write a processor for such layers in slime_bench/attention/processor.py",
        )  # fmt: skip
    return layer


@contextmanager
def capture(
    model: nn.Module, names: Sequence[str], stop_early: bool = False, extra: ExtraValues | None = None
) -> Iterator[Recording]:
    """Record the named layers of every forward pass inside the `with` block (a later pass replaces an earlier one).

    Args:
        model: a diffusers model. names: module names such as `up_blocks.1.attentions.0.transformer_blocks.0.attn2`.
        stop_early: leave the forward pass as soon as the last named layer has its queries and keys. The pass then
            returns nothing: the `with` block ends at that point.
        extra: values that some of the named layers propagate on the way.

    Raises:
        BackboneError: no such layer, or one with features that the recording would miss.
    """
    layers = {name: named_layer(model, name) for name in names}
    before = {name: layer.processor for name, layer in layers.items()}
    shared = _Pass(names, stop_early, extra)
    try:
        for name, layer in layers.items():
            text = before[name].text if isinstance(before[name], Processor) else None
            layer.set_processor(Processor(text, _Recorder(name, shared)))
        yield shared.recording
    except AllCaptured:
        pass
    finally:
        for name, layer in layers.items():
            layer.set_processor(before[name])

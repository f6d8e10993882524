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

from slime_bench.attention.attend import head_mean, spread
from slime_bench.attention.processor import Processor, attention_layer, attention_layers, extras
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
        spread: layer name -> the maps of a `Ride`, propagated by this layer's self-attention, float [B,N,K].
    """

    layers: dict[str, LayerAttention] = field(default_factory=dict)
    spread: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class Ride:
    """Maps that the self-attention layers `layers` propagate while they run, in the same product as their own values.

    Attributes:
        maps: what is to be propagated, float [B,N,K], made from the recording when the first of `layers` is reached;
            None if it cannot be made by then, and nothing is propagated.
    """

    layers: frozenset[str]
    maps: Callable[[Recording], torch.Tensor | None]


class _Recorder:
    """Looks on at one layer."""

    def __init__(self, name: str, names: frozenset[str], stop_early: bool, recording: Recording, ride: _Once) -> None:
        self._name, self._names, self._stop_early = name, names, stop_early
        self._recording, self._ride = recording, ride

    def seen(self, query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor | None:
        """As `Observer` says."""
        recording = self._recording
        if self._name in recording.layers:  # a new pass
            recording.layers.clear()
            recording.spread.clear()
        recording.layers[self._name] = LayerAttention(query, key, scale)
        maps = self._ride(self._name)
        if self._stop_early and self._names <= recording.layers.keys():
            if maps is not None:
                recording.spread[self._name] = spread(query, key, maps, scale)
            raise AllCaptured
        return maps

    def mixed(self, values: torch.Tensor) -> None:
        """As `Observer` says."""
        self._recording.spread[self._name] = head_mean(values)


class _Once:
    """The maps of a ride, made once per pass."""

    def __init__(self, ride: Ride | None, recording: Recording) -> None:
        self._ride, self._recording = ride, recording
        self._maps: torch.Tensor | None = None

    def __call__(self, name: str) -> torch.Tensor | None:
        if self._ride is None or name not in self._ride.layers:
            return None
        if not self._ride.layers & self._recording.layers.keys() - {name}:  # the first of them
            self._maps = self._ride.maps(self._recording)
        return self._maps


def named_layer(model: nn.Module, name: str) -> Any:
    """The attention layer `name` of a diffusers model.

    Raises:
        BackboneError: no such layer, or one with features that the recording would miss.
    """
    layer = attention_layer(model, name)
    if layer is None:
        raise BackboneError(
            "no attention layer of this name in the backbone",
            path=name,
            expected=list(attention_layers(model)),
            remedy="name one of these layers in backbone.cross_layers or backbone.self_layers",
        )
    unusual = extras(layer)
    if unusual:
        raise BackboneError(
            "this attention layer cannot be captured faithfully",
            path=name,
            found=f"it uses {', '.join(unusual)}",
            expected="plain Stable Diffusion attention",
            remedy="choose another layer, or write a processor for such layers in slime_bench/attention/processor.py",
        )
    return layer


@contextmanager
def capture(
    model: nn.Module, names: Sequence[str], stop_early: bool = False, ride: Ride | None = None
) -> Iterator[Recording]:
    """Record the named layers of every forward pass inside the `with` block (a later pass replaces an earlier one).

    Args:
        model: a diffusers model. names: module names such as `up_blocks.1.attentions.0.transformer_blocks.0.attn2`.
        stop_early: leave the forward pass as soon as the last named layer has its queries and keys. The pass then
            returns nothing: the `with` block ends at that point.
        ride: maps that some of the named layers propagate on the way.

    Raises:
        BackboneError: no such layer, or one with features that the recording would miss.
    """
    layers = {name: named_layer(model, name) for name in names}
    before = {name: layer.processor for name, layer in layers.items()}
    recording = Recording()
    once = _Once(ride, recording)
    try:
        for name, layer in layers.items():
            text = before[name].text if isinstance(before[name], Processor) else None
            recorder = _Recorder(name, frozenset(layers), stop_early, recording, once)
            layer.set_processor(Processor(text, recorder))
        yield recording
    except AllCaptured:
        pass
    finally:
        for name, layer in layers.items():
            layer.set_processor(before[name])

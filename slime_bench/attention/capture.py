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
from slime_bench.attention.processor import Processor, attention_layers, is_attention, unsupported
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


class _Recorder:
    """Observes the named layers, as `Observer` says; holds the extra values of the running pass."""

    def __init__(self, names: Sequence[str], stop_early: bool, extra: ExtraValues | None) -> None:
        self._names, self._stop_early, self._extra = frozenset(names), stop_early, extra
        self.recording = Recording()
        self._values: torch.Tensor | None = None

    def seen(self, name: str, query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor | None:
        layers, extra = self.recording.layers, self._extra
        if name in layers:  # a new pass
            layers.clear()
            self.recording.propagated.clear()
        layers[name] = LayerAttention(query, key, scale)
        values = None
        if extra is not None and name in extra.layers:
            if not extra.layers & layers.keys() - {name}:  # the first of them
                self._values = extra.make(self.recording)
            values = self._values
        if self._stop_early and self._names <= layers.keys():
            if values is not None:
                self.recording.propagated[name] = propagate(query, key, values, scale)
            raise AllCaptured
        return values

    def propagated(self, name: str, values: torch.Tensor) -> None:
        self.recording.propagated[name] = head_mean(values)


def named_layer(model: nn.Module, name: str) -> Any:
    """The attention layer `name` of a diffusers model.

    Raises:
        BackboneError: no such layer, or one with features that the recording would miss.
    """
    try:
        layer = model.get_submodule(name)  # every pass asks for some, and the list of all takes long
    except AttributeError:
        layer = model
    if not is_attention(layer):
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
    recorder = _Recorder(names, stop_early, extra)
    try:
        for name, layer in layers.items():
            text = before[name].text if isinstance(before[name], Processor) else None
            layer.set_processor(Processor(text, recorder, name))
        yield recorder.recording
    except AllCaptured:
        pass
    finally:
        for name, layer in layers.items():
            layer.set_processor(before[name])

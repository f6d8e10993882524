"""Capturing queries and keys: the run is not changed, the model is left as it was, and nothing needless is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from slime_bench.attention.capture import capture
from slime_bench.errors import BackboneError
from tests.fixtures.rounding import TINY, same

CROSS = [f"up_blocks.{block}.attentions.{index}.transformer_blocks.0.attn2" for block in (1, 2) for index in (0, 1)]
SELF = [f"up_blocks.3.attentions.{index}.transformer_blocks.0.attn1" for index in (0, 1)]


@pytest.fixture(scope="module")
def unet(tiny_backbone: Any) -> nn.Module:
    return tiny_backbone.unet


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy latents [2,4,16,16], timesteps [2], text [2,77,32]."""
    draw = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 16, 16, generator=draw), torch.tensor([3, 700]), torch.randn(2, 77, 32, generator=draw)


def processors(unet: Any) -> dict[str, int]:
    return {name: id(processor) for name, processor in unet.attn_processors.items()}


class Calls:
    """Counts forward passes of a module."""

    def __init__(self, module: nn.Module) -> None:
        self.count = 0
        self._handle = module.register_forward_pre_hook(self._add)

    def _add(self, *_: Any) -> None:
        self.count += 1

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_captured_run_computes_what_the_plain_run_computes(unet: Any, inputs: Any, masked: bool) -> None:
    noisy, t, text = inputs
    mask = (torch.arange(77) < torch.tensor([[9], [40]])) if masked else None  # the images see different words
    plain = unet(noisy, t, text, encoder_attention_mask=mask).sample
    before = processors(unet)
    with capture(unet, [*CROSS, *SELF]) as recording:
        captured = unet(noisy, t, text, encoder_attention_mask=mask).sample
    same(captured, plain, **TINY)
    assert set(recording.layers) == {*CROSS, *SELF}
    assert processors(unet) == before


@torch.no_grad()
def test_recorded_queries_and_keys_are_those_of_the_layer(unet: Any, inputs: Any) -> None:
    noisy, t, text = inputs
    seen: dict[str, torch.Tensor] = {}
    layers = {name: unet.get_submodule(name) for name in (CROSS[0], SELF[1])}
    handles = [
        getattr(layer, part).register_forward_hook(lambda _, __, out, key=f"{name}/{part}": seen.update({key: out}))
        for name, layer in layers.items()
        for part in ("to_q", "to_k")
    ]
    with capture(unet, list(layers)) as recording:
        unet(noisy, t, text)
    for handle in handles:
        handle.remove()
    for name, layer in layers.items():
        found = recording.layers[name]
        assert found.query.shape == (2, 2, 256 if name == SELF[1] else 16, 32) and layer.heads == 2
        assert found.key.shape[2] == (77 if name in CROSS else found.query.shape[2])
        assert found.scale == pytest.approx(32**-0.5)
        for part, tensor in (("to_q", found.query), ("to_k", found.key)):
            torch.testing.assert_close(tensor.transpose(1, 2).flatten(2), seen[f"{name}/{part}"], rtol=0, atol=0)


@torch.no_grad()
def test_early_stop_leaves_out_everything_after_the_last_layer(unet: Any, inputs: Any) -> None:
    before, finished = processors(unet), False
    last = unet.get_submodule(CROSS[1])  # the last cross-attention of up_blocks.1
    later = (last.to_v, unet.up_blocks[2], unet.up_blocks[3], unet.conv_out)
    counters = [Calls(module) for module in later]
    with Calls(last.to_k) as keys:
        with capture(unet, CROSS[:2], stop_early=True) as recording:
            unet(*inputs)
            finished = True
        assert keys.count == 1
    assert not finished and [counter.count for counter in counters] == [0, 0, 0, 0]
    assert list(recording.layers) == CROSS[:2]
    assert processors(unet) == before
    unet(*inputs)
    assert [counter.count for counter in counters] == [1, 1, 1, 1]  # the hooks do count
    for counter in counters:
        counter.__exit__()


def test_processors_come_back_after_an_exception(unet: Any, inputs: Any) -> None:
    before = processors(unet)
    with pytest.raises(RuntimeError, match="in the block"), capture(unet, CROSS):
        assert processors(unet) != before
        raise RuntimeError("in the block")
    assert processors(unet) == before
    with pytest.raises(RuntimeError), capture(unet, CROSS):
        unet(inputs[0], inputs[1], inputs[2][..., :5])  # text of another width: the model itself fails
    assert processors(unet) == before


@torch.no_grad()
def test_a_later_pass_replaces_an_earlier_one(unet: Any, inputs: Any) -> None:
    noisy, t, text = inputs
    with capture(unet, CROSS[:1]) as recording:
        unet(noisy, t, text)
        first = recording.layers[CROSS[0]]
        unet(noisy[:1], t[:1], text[:1])
        assert len(first.query) == 2 and len(recording.layers[CROSS[0]].query) == 1


def test_unknown_layer_is_named_with_the_known_ones(unet: Any) -> None:
    before = processors(unet)
    with pytest.raises(BackboneError) as caught, capture(unet, [CROSS[0], "up_blocks.0.attentions.0.attn2"]):
        pass
    message = str(caught.value)
    assert "up_blocks.0.attentions.0.attn2" in message and CROSS[3] in message and SELF[0] in message
    assert "backbone.cross_layers" in message
    assert processors(unet) == before


def test_layer_that_the_recording_would_falsify_is_refused() -> None:
    from diffusers.models.attention_processor import Attention

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.odd = Attention(query_dim=32, heads=2, dim_head=16, norm_num_groups=4)

    with pytest.raises(BackboneError, match="group_norm"), capture(Model(), ["odd"]):
        pass

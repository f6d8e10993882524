"""The backbone's own attention processor against diffusers', and which layers get it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn

from slime_bench.attention.processor import Processor, install, unsupported
from tests.fixtures.rounding import TINY, same


@pytest.fixture(scope="module")
def narrow() -> UNet2DConditionModel:
    """Heads of 4 numbers, which are filled up; 16 x 16 latents give 256 positions at the first level."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=12,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
    ).eval().requires_grad_(False)  # fmt: skip


def output_and_gradient(unet: Any, processor: Any, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    noisy, text = torch.randn(2, 4, 16, 16, generator=draw), torch.randn(2, 9, 12, generator=draw).requires_grad_()
    unet.set_attn_processor(processor)
    output = unet(noisy, torch.tensor([3, 700]), text, encoder_attention_mask=mask).sample
    return output, torch.autograd.grad(output.square().sum(), text)[0]


@pytest.mark.parametrize("masked", [False, True])
def test_computes_what_the_library_computes(narrow: Any, masked: bool) -> None:
    mask = (torch.arange(9) < torch.tensor([[4], [7]])) if masked else None
    ours, theirs = (output_and_gradient(narrow, kind(), mask) for kind in (Processor, AttnProcessor2_0))
    assert theirs[1].abs().max() > 1e-3
    for one, other in zip(ours, theirs, strict=True):
        same(one, other, **TINY)


@pytest.mark.parametrize("factor", [1.0, 2.0])
@pytest.mark.parametrize("residual", [False, True])
@torch.no_grad()
def test_residual_and_factor(factor: float, residual: bool) -> None:
    layer = Attention(8, heads=2, dim_head=4, residual_connection=residual, rescale_output_factor=factor)
    x = torch.randn(2, 20, 8)
    plain = layer(x)
    layer.set_processor(Processor())
    same(layer(x), plain, terms=20, steps=4)  # 20 keys; projection, scores, mixture, projection


class Propagating:
    """Has the layer propagate maps's attention."""

    def __init__(self, maps: torch.Tensor) -> None:
        self.maps, self.found = maps, torch.empty(0)

    def seen(self, name: str, query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
        self.expected = (query @ key.transpose(-1, -2) * scale).softmax(-1) @ self.maps[:, None]
        return self.maps

    def propagated(self, name: str, values: torch.Tensor) -> None:
        self.found = values


@torch.no_grad()
def test_extra_values_are_propagated_as_the_layers_own() -> None:
    layer, x = Attention(8, heads=2, dim_head=4), torch.randn(2, 300, 8)
    plain = layer(x)
    observer = Propagating(torch.rand(2, 300, 5))
    layer.set_processor(Processor(observer=observer))
    same(layer(x), plain, terms=300, steps=4)
    assert observer.found.shape == (2, 2, 300, 5)
    same(observer.found, observer.expected, terms=300, steps=4)


def test_unusual_layers_keep_their_own() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = Attention(query_dim=32, heads=2, dim_head=16)
            self.odd = Attention(query_dim=32, heads=2, dim_head=16, norm_num_groups=4)

    model = Model()
    assert not install(model)
    assert type(model.plain.processor) is Processor and type(model.odd.processor) is AttnProcessor2_0
    assert unsupported(model.odd) == ["group_norm"]
    del model.odd
    model.plain.set_processor(AttnProcessor2_0())
    assert install(model)

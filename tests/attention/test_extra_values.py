"""Maps that the self-attention layers propagate on the way: those of `was`, with its gradients, for fewer products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from slime_bench.attention import attend as attending
from slime_bench.attention.capture import ExtraValues, LayerAttention, capture
from slime_bench.attention.maps import Size, average, class_logits, was
from slime_bench.backbones.stable_diffusion import DiffusionAttention, StableDiffusionBackbone
from tests.fixtures.rounding import TINY, same

CROSS = [f"up_blocks.{block}.attentions.{index}" for block in (1, 2) for index in (0, 1)]
SELF = ["up_blocks.3.attentions.0", "up_blocks.3.attentions.1"]
ORDERS = {
    "usual": (CROSS, SELF),
    "cross after self": ([CROSS[0], "up_blocks.3.attentions.1"], SELF),
    "cross between": ([CROSS[0], "up_blocks.3.attentions.0"], SELF),
    "self of the way down": (CROSS, ["down_blocks.0.attentions.0"]),
}


def load(folder: Path, order: str = "usual", **settings: Any) -> StableDiffusionBackbone:
    cross, self_ = ORDERS[order]
    config = StableDiffusionBackbone.Config(weights=str(folder), cross_layers=cross, self_layers=self_, **settings)
    return StableDiffusionBackbone(config)


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    noisy, text = torch.randn(2, 4, 16, 24, generator=draw), torch.randn(1, 77, 32, generator=draw)
    return noisy, torch.tensor([3, 700]), text


def maps(cross: list[LayerAttention], grids: list[Size], grid: Size) -> torch.Tensor:
    """Class probabilities of five classes."""
    return average([class_logits(one, 5, own) for one, own in zip(cross, grids, strict=True)], grid).softmax(1)


def expected(found: DiffusionAttention) -> torch.Tensor:
    return was(found.self_, maps(found.cross, found.cross_grids, found.self_grids[0]))


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of keys of every attention product that is computed."""
    seen: list[int] = []
    plain = attending.F.scaled_dot_product_attention

    def counted(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **how: Any) -> torch.Tensor:
        seen.append(key.shape[2])
        return plain(query, key, value, **how)

    monkeypatch.setattr(attending.F, "scaled_dot_product_attention", counted)
    return seen


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("with_noise", [False, True])
def test_maps_and_gradients_are_those_of_was(tiny_sd: Path, order: str, with_noise: bool) -> None:
    backbone = load(tiny_sd, order)
    noisy, t, text = inputs()
    results = []
    for on_the_way in (True, False):
        leaf = text.clone().requires_grad_()
        found = backbone.attention(noisy, t, leaf, with_noise=with_noise, propagate=maps if on_the_way else None)
        assert (found.propagated is not None) == on_the_way and (found.noise is not None) == with_noise
        propagated = found.propagated if found.propagated is not None else expected(found)
        loss = (propagated * torch.linspace(-1, 1, propagated.numel()).view_as(propagated)).sum()
        loss = loss + sum(layer.query.square().mean() for layer in found.self_)
        if found.noise is not None:
            loss = loss + found.noise.square().mean()
        results.append((propagated.detach(), torch.autograd.grad(loss, leaf)[0]))
    assert results[1][0].shape == (2, 5, 16, 24) and results[1][1].abs().max() > 1e-4
    for ours, theirs in zip(*results, strict=True):
        same(ours, theirs, **TINY)


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_rest_of_the_pass_is_not_changed(tiny_sd: Path, dtype: str) -> None:
    backbone, (noisy, t, text) = load(tiny_sd, dtype=dtype), inputs()
    found = backbone.attention(noisy, t, text, with_noise=True, propagate=maps)
    plain = backbone.attention(noisy, t, text, with_noise=True)
    assert found.noise is not None and found.propagated is not None and found.propagated.dtype == torch.float32
    wanted = (plain.noise, plain.self_[1].query, expected(plain))
    for ours, theirs in zip((found.noise, found.self_[1].query, found.propagated), wanted, strict=True):
        if dtype == "fp32":
            same(ours, theirs, **TINY)
        else:  # sums are made in float32, and each of some fifty layers rounds its output to 8 bits
            same(ours, theirs, terms=1, steps=50, dtype=torch.bfloat16)


@torch.no_grad()
@pytest.mark.parametrize(("with_noise", "saved"), [(True, 2), (False, 1)])
def test_a_product_per_layer_is_saved(tiny_sd: Path, products: list[int], with_noise: bool, saved: int) -> None:
    """Where the pass stops early the last layer propagates the maps alone."""
    backbone, (noisy, t, text) = load(tiny_sd), inputs()
    backbone.attention(noisy, t, text, with_noise=with_noise, propagate=maps)
    fewer = products.count(16 * 24)
    products.clear()
    expected(backbone.attention(noisy, t, text, with_noise=with_noise))
    assert products.count(16 * 24) == fewer + saved


@torch.no_grad()
def test_every_pass_makes_maps_of_its_own(tiny_sd: Path) -> None:
    backbone, (noisy, t, text) = load(tiny_sd), inputs()
    layers = frozenset(backbone.self_names)
    made = []

    def numbered(_: Any) -> torch.Tensor:
        made.append(torch.full((2, 16 * 24, 1), float(len(made))))
        return made[-1]

    with capture(backbone.unet, [*backbone.cross_names, *layers], extra=ExtraValues(layers, numbered)) as recording:
        for value in (0.0, 1.0):
            backbone.predict_noise(noisy, t, text)
            assert recording.propagated.keys() == layers
            for found in recording.propagated.values():
                torch.testing.assert_close(found, torch.full_like(found, value))
    assert len(made) == 2

"""Activations computed again: the same attention, noise and gradients, with much less kept for the backward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from slime_bench.attention.capture import AllCaptured, capture
from slime_bench.attention.maps import class_logits, was
from slime_bench.backbones.stable_diffusion import StableDiffusionBackbone

LAYERS = {
    "cross_layers": [f"up_blocks.{block}.attentions.{index}" for block in (1, 2) for index in (0, 1)],
    "self_layers": ["up_blocks.3.attentions.0", "up_blocks.3.attentions.1"],
}


def load(folder: Path, **settings: Any) -> StableDiffusionBackbone:
    return StableDiffusionBackbone(StableDiffusionBackbone.Config(weights=str(folder), **LAYERS, **settings))


def inputs(side: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, side, side, generator=draw), torch.tensor([3, 700]), torch.randn(
        1, 77, 32, generator=draw
    )  # fmt: skip


def gradient(backbone: StableDiffusionBackbone, with_noise: bool, with_self: bool) -> list[torch.Tensor]:
    """Loss of everything that comes out, and its gradient by the text."""
    noisy, t, text = inputs()
    text.requires_grad_()
    found = backbone.attention(noisy, t, text, with_noise=with_noise, with_self=with_self)
    maps = torch.stack([class_logits(one, 3, (4, 4)) for one in found.cross[:2]]).mean(0).softmax(1)
    loss = maps.square().mean()
    if with_self:
        loss = loss + was(found.self_, torch.nn.functional.interpolate(maps, (16, 16))).square().mean()
    if found.noise is not None:
        loss = loss + found.noise.square().mean()
    return [loss.detach(), *torch.autograd.grad(loss, text)]


@pytest.mark.parametrize("with_noise", [True, False])
@pytest.mark.parametrize("with_self", [True, False])
def test_gradients_are_those_of_the_plain_run(tiny_sd: Path, with_noise: bool, with_self: bool) -> None:
    plain = gradient(load(tiny_sd), with_noise, with_self)
    again = gradient(load(tiny_sd, checkpoint_activations=True), with_noise, with_self)
    assert plain[1].abs().max() > 1e-5
    for one, other in zip(again, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def kept_bytes(backbone: StableDiffusionBackbone) -> int:
    """Of tensors that the graph of one training pass holds, weights aside."""
    weights = {weight.untyped_storage().data_ptr() for weight in backbone.parameters()}
    kept: dict[int, int] = {}
    alive = []  # no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor

    noisy, t, text = inputs()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        backbone.attention(noisy, t, text.requires_grad_(), with_noise=True)
    return sum(kept.values())


def test_less_is_kept(tiny_sd: Path) -> None:
    plain = kept_bytes(load(tiny_sd))
    assert plain > 1_000_000
    assert kept_bytes(load(tiny_sd, checkpoint_activations=True)) < plain / 5


def test_a_pass_that_stops_early_leaves_nothing_behind(tiny_sd: Path) -> None:
    """The checkpoint watches what a block saves; a block that is left by an exception must not keep it watching, even
    while somebody holds the exception with all its frames."""
    backbone, held = load(tiny_sd, checkpoint_activations=True), []
    noisy, t, text = inputs()
    text.requires_grad_()
    with capture(backbone.unet, [*backbone.cross_names, *backbone.self_names], stop_early=True) as recording:
        try:
            backbone.predict_noise(noisy, t, text)
        except AllCaptured as end:
            held.append(end)
    assert held
    leaf = torch.ones(3, requires_grad=True)
    product = leaf * leaf
    assert torch.equal(product.grad_fn._saved_self, leaf)  # type: ignore[union-attr]
    (product.sum() + recording.layers[backbone.self_names[1]].query.sum()).backward()
    assert text.grad is not None and torch.equal(leaf.grad, torch.full((3,), 2.0))


@torch.no_grad()
def test_inference_is_the_plain_one(tiny_sd: Path) -> None:
    noisy, t, text = inputs()
    found = [load(tiny_sd, checkpoint_activations=on).predict_noise(noisy, t, text) for on in (False, True)]
    assert torch.equal(*found)

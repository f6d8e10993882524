"""Kept latents: bit-identical to computed ones, never those of other images, weights or modes, and within the limit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from slime_bench.backbones.encoder_cache import EncoderCache, Posterior
from slime_bench.backbones.stable_diffusion import StableDiffusionBackbone


class Encoder:
    """A posterior of 32 numbers, 128 bytes, per image; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: torch.Tensor) -> Posterior:
        self.calls += 1
        mean = images.float().mean((1, 2, 3)).view(-1, 1, 1, 1).expand(-1, 4, 2, 2).clone()
        return mean, -mean


def image(value: float, batch: int = 1) -> torch.Tensor:
    return torch.full((batch, 3, 4, 4), float(value))


@pytest.mark.parametrize(
    ("images", "state"),
    [
        (image(2), "fp32"),
        (image(1, 2), "fp32"),
        (image(1).view(1, 3, 2, 8), "fp32"),
        (image(1).half(), "fp32"),
        (image(1).bfloat16(), "fp32"),
        (image(1).contiguous(memory_format=torch.channels_last), "fp32"),
        (image(1), "bf16"),
    ],
)
def test_what_differs_is_encoded(images: torch.Tensor, state: str) -> None:
    cache, encoder = EncoderCache(10_000), Encoder()
    cache.get(image(1), "fp32", encoder)
    cache.get(images, state, encoder)
    assert encoder.calls == 2


def test_the_least_recently_used_is_dropped() -> None:
    cache, encoder = EncoderCache(2 * 128), Encoder()
    for value in (1, 2, 1, 3):  # 3 takes the place of 2
        cache.get(image(value), None, encoder)
    assert encoder.calls == 3
    cache.get(image(1), None, encoder)
    assert encoder.calls == 3
    cache.get(image(2), None, encoder)
    assert encoder.calls == 4


def test_too_large_for_the_limit_drops_nothing() -> None:
    cache, encoder = EncoderCache(2 * 128), Encoder()
    cache.get(image(1), None, encoder)
    cache.get(image(1, 3), None, encoder)
    cache.get(image(1), None, encoder)
    assert encoder.calls == 2


class Counted:
    """Counts what the autoencoder's encoder is asked for."""

    def __init__(self, backbone: Any) -> None:
        self.calls = 0
        self.handle = backbone.vae.encoder.register_forward_hook(self.add)

    def add(self, *_: Any) -> None:
        self.calls += 1


class TestInTheBackbone:
    @pytest.fixture
    def backbone(self, tiny_sd: Path) -> StableDiffusionBackbone:
        return StableDiffusionBackbone(StableDiffusionBackbone.Config(weights=str(tiny_sd)))

    @pytest.fixture
    def counted(self, backbone: StableDiffusionBackbone) -> Iterator[Counted]:
        counted = Counted(backbone)
        yield counted
        counted.handle.remove()

    @pytest.mark.parametrize("draw", [False, True])
    def test_hit_is_the_computed_one(self, backbone: Any, counted: Counted, draw: bool) -> None:
        images, noises = torch.rand(2, 3, 64, 64), [torch.randn(2, 4, 16, 16) if draw else None for _ in range(2)]
        plain = [backbone.encode(images, noise) for noise in noises]
        with torch.inference_mode():
            first = backbone.encode(images, noises[0], keep=True)
        assert counted.calls == 3
        second = backbone.encode(images.clone(), noises[1], keep=True)
        assert counted.calls == 3
        assert torch.equal(first, plain[0]) and torch.equal(second, plain[1])
        assert not second.is_inference()

    def test_what_is_handed_out_may_be_written_to(self, backbone: Any, counted: Counted) -> None:
        images = torch.rand(1, 3, 64, 64)
        expected = backbone.encode(images, None)
        for _ in range(3):
            found = backbone.encode(images, None, keep=True)
            assert torch.equal(found, expected)
            found.zero_()
        assert counted.calls == 2

    @pytest.mark.parametrize("change", ["converted", "written", "autocast"])
    def test_another_encoder_is_asked(self, backbone: Any, counted: Counted, change: str) -> None:
        images = torch.rand(1, 3, 64, 64)
        old = backbone.encode(images, None, keep=True)
        if change == "converted":
            backbone.to(torch.bfloat16).to(torch.float32)  # rounded weights, of which no counter tells
        elif change == "written":
            with torch.no_grad():
                next(backbone.vae.encoder.parameters()).add_(0.5)
        with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
            new = backbone.encode(images, None, keep=True)
            assert counted.calls == 2
            assert torch.equal(new, backbone.encode(images, None))
        assert not torch.equal(old, new)

    def test_a_trainer_that_moves_the_backbone_costs_nothing(self, backbone: Any, counted: Counted) -> None:
        images = torch.rand(1, 3, 64, 64)
        for _ in range(3):
            backbone.to("cpu").train().encode(images, None, keep=True)
        assert counted.calls == 1

    def test_switched_off(self, tiny_sd: Path) -> None:
        backbone = StableDiffusionBackbone(StableDiffusionBackbone.Config(weights=str(tiny_sd), encoder_cache_mb=0))
        counted, images = Counted(backbone), torch.rand(1, 3, 64, 64)
        for _ in range(2):
            backbone.encode(images, None, keep=True)
        assert counted.calls == 2

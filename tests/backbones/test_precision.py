"""Precision of the weights and of what comes out; models that predict velocity; images per call."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from slime_bench.backbones.memory import images_within
from slime_bench.backbones.stable_diffusion import StableDiffusionBackbone
from slime_bench.errors import BackboneError
from tests.fixtures.rounding import TINY, same

LAYERS = {
    "cross_layers": ["up_blocks.1.attentions.0", "up_blocks.2.attentions.1"],
    "self_layers": ["up_blocks.3.attentions.0", "up_blocks.3.attentions.1"],
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load(folder: Path, dtype: str = "fp32", **settings: Any) -> StableDiffusionBackbone:
    config = StableDiffusionBackbone.Config(weights=str(folder), dtype=dtype, **{**LAYERS, **settings})
    return StableDiffusionBackbone(config)


def inputs(backbone: StableDiffusionBackbone) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = backbone.encode(torch.rand(2, 3, 64, 64, generator=generator), None)
    noise, timesteps = torch.randn(latents.shape, generator=generator), torch.tensor([5, 700])
    return backbone.add_noise(latents, noise, timesteps), timesteps, backbone.embed("a red car")


class TestPrecision:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_weights_are_loaded_in_it(self, tiny_sd: Path, dtype: str) -> None:
        backbone = load(tiny_sd, dtype)
        assert {value.dtype for value in backbone.parameters()} == {DTYPES[dtype]}
        assert backbone.alphas_cumprod.dtype == torch.float32

    @torch.no_grad()
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_what_comes_out_is_float32_but_for_queries_and_keys(self, tiny_sd: Path, dtype: str) -> None:
        backbone = load(tiny_sd, dtype)
        noisy, timesteps, text = inputs(backbone)
        found = backbone.attention(noisy, timesteps, text, with_noise=True)
        assert found.noise is not None
        assert {x.dtype for x in (noisy, text, found.noise)} == {torch.float32}
        assert backbone.predict_noise(noisy, timesteps, text.expand(2, -1, -1)).dtype == torch.float32
        sample = backbone.encode(torch.rand(1, 3, 64, 64), torch.randn(1, 4, 16, 16))
        assert sample.dtype == torch.float32 and sample.isfinite().all()
        captured = [x for layer in (*found.cross, *found.self_) for x in (layer.query, layer.key)]
        assert {x.dtype for x in captured} == {DTYPES[dtype]}

    @torch.no_grad()
    @pytest.mark.parametrize(("dtype", "bound"), [("bf16", 0.05), ("fp16", 0.01)])
    def test_near_full_precision(self, tiny_sd: Path, dtype: str, bound: float) -> None:
        full, half = load(tiny_sd), load(tiny_sd, dtype)
        noisy, timesteps, text = inputs(full)
        expected = full.attention(noisy, timesteps, text, with_noise=True)
        found = half.attention(noisy, timesteps, text, with_noise=True)
        pairs = [(found.noise, expected.noise), (half.embed("a red car"), text)]
        layers = zip(found.cross + found.self_, expected.cross + expected.self_, strict=True)
        pairs += [(mine.query, theirs.query) for mine, theirs in layers]
        for one, other in pairs:
            assert one is not None and other is not None
            error = ((one.float() - other).norm() / other.norm()).item()
            assert 0 < error < bound

    @pytest.mark.parametrize("dtype", ["fp32", "bf16"])
    @pytest.mark.parametrize("autocast", [False, True])
    def test_gradient_reaches_float32_embeddings(self, tiny_sd: Path, dtype: str, autocast: bool) -> None:
        backbone = load(tiny_sd, dtype)
        noisy, timesteps, text = inputs(backbone)
        text = text.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = backbone.attention(noisy, timesteps, text, with_noise=True)
            assert found.noise is not None and found.noise.dtype == torch.float32
            loss = found.noise.square().mean() + found.cross[0].key.float().square().mean()
        loss.backward()
        assert text.grad is not None and text.grad.dtype == torch.float32
        assert text.grad.isfinite().all() and text.grad.abs().max() > 0
        assert backbone.add_noise(noisy, noisy, timesteps).dtype == torch.float32


class TestPrediction:
    @pytest.fixture
    def folder(self, tiny_sd: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(tiny_sd, tmp_path / "model"))

    def declare(self, folder: Path, kind: str) -> Path:
        path = folder / "scheduler/scheduler_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": kind}))
        return folder

    @torch.no_grad()
    def test_velocity_becomes_noise_as_in_the_library(self, folder: Path) -> None:
        """The scheduler of the library recovers the same clean sample from its velocity as from our noise."""
        plain = load(folder)
        noisy, timesteps, text = inputs(plain)
        velocity = plain.predict_noise(noisy, timesteps, text.expand(2, -1, -1))
        backbone = load(self.declare(folder, "v_prediction"))
        noise = backbone.predict_noise(noisy, timesteps, text.expand(2, -1, -1))
        for kind, output in (("v_prediction", velocity), ("epsilon", noise)):
            scheduler = DDIMScheduler.from_config(plain._scheduler.config, prediction_type=kind)
            scheduler.set_timesteps(1000)
            clean = [scheduler.step(output[i], int(t), noisy[i]).pred_original_sample for i, t in enumerate(timesteps)]
            if kind == "v_prediction":
                expected = torch.stack(clean)
        torch.testing.assert_close(torch.stack(clean), expected, rtol=1e-4, atol=1e-4)
        whole = backbone.attention(noisy, timesteps, text, with_noise=True)
        same(whole.noise, noise, **TINY)
        assert not torch.allclose(noise, velocity, atol=1e-2)

    @pytest.mark.parametrize("kind", ["sample", "flow"])
    def test_another_is_refused_with_a_reason(self, folder: Path, kind: str) -> None:
        config = StableDiffusionBackbone.Config(weights=str(self.declare(folder, kind)), **LAYERS)
        for start in (StableDiffusionBackbone, StableDiffusionBackbone.describe):
            with pytest.raises(BackboneError, match=f"prediction_type {kind}") as caught:
                start(config)
            assert "noise" in str(caught.value.expected) and caught.value.remedy


VAE, UNET = {"block_out_channels": [128, 256, 512, 512]}, {"block_out_channels": [320, 640, 1280, 1280]}


class TestImagesPerCall:
    def test_at_least_one(self, tiny_sd: Path) -> None:
        assert load(tiny_sd, memory_gb=0.0).images_per_call((64, 64)) == 1

    def test_full_size(self) -> None:
        """SD 2.1 at 512 pixels, bfloat16: 337 MB per image were measured (see `images_within`)."""
        assert images_within(int(10 * 337e6), VAE, UNET, (512, 512), 2) == 9
        assert images_within(int(4e9), VAE, UNET, (512, 512), 2) == 10
        assert images_within(int(4e9), VAE, UNET, (512, 512), 4) == 5

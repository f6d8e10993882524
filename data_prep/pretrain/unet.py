"""Stage 2 of the mini Stable Diffusion: text encoder and U-Net, trained together to denoise latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from lightning.fabric import Fabric
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from data_prep.pretrain.models import build_scheduler, build_text_encoder, build_tokenizer, build_unet
from data_prep.pretrain.stream import LatentPool, stream_rng
from data_prep.pretrain.trainloop import Stage, train
from slime_bench.data.mini_world.render import vocabulary

LEARNING_RATE = {64: 1e-3, 128: 7e-4}  # per picture side
BATCH = {64: 32, 128: 16}  # of all processes together
CAPTION_DROPOUT = 0.1  # for classifier-free guidance
POOL, FIRST_FILL, REFILL_EVERY, REFILL = 24_576, 3072, 32, 192
EMA_DECAY = 0.999


class Denoiser(nn.Module):
    """Text encoder and U-Net as one trainable module: (noisy latents, t, token ids) -> predicted noise."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """float [B,4,h,w], int64 [B], int64 [B,77] -> float [B,4,h,w]."""
        text = self.text_encoder(token_ids).last_hidden_state
        return self.unet(latents, timesteps, text).sample


def build_denoiser(channels: tuple[int, int, int, int]) -> tuple[Denoiser, CLIPTokenizer]:
    """The module before its training, and the tokenizer of its text encoder."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(vocabulary())
    text_encoder = build_text_encoder(tokenizer)
    return Denoiser(text_encoder, build_unet(channels, text_encoder.config.hidden_size)), tokenizer


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """int64 [B,77]."""
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def latent_encoder(
    vae: AutoencoderKL, device: torch.device
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Pixels in [-1,1] -> mean and std of the *scaled* latents, float32 on the CPU."""
    scale = vae.config.scaling_factor
    vae.to(device, memory_format=torch.channels_last).eval()

    @torch.no_grad()
    def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(device.type, torch.bfloat16):
            posterior = vae.encode(pixels.to(device, memory_format=torch.channels_last)).latent_dist
        return posterior.mean.float().cpu() * scale, posterior.std.float().cpu() * scale

    return encode


def draw_timesteps(rng: np.random.Generator, batch: int) -> torch.Tensor:
    """int64 [batch] in [0, 1000): a quarter uniform, the rest denser around t = 350, where parts are decided."""
    uniform = rng.random(batch)
    middle = 1 / (1 + np.exp(-(rng.standard_normal(batch) * 1.1 - 0.6)))
    return torch.from_numpy(
        np.minimum(999, 1000 * np.where(rng.random(batch) < 0.25, uniform, middle)).astype(np.int64)
    )


def train_unet(
    denoiser: Denoiser, tokenizer: CLIPTokenizer, vae: AutoencoderKL,
    fabric: Fabric, work: Path, images: int, side: int,
) -> None:  # fmt: skip
    """Denoise at one picture side (64 or 128) until so many images were seen, or load what was trained."""
    batch = BATCH[side] // fabric.world_size
    stage = Stage(
        f"unet{side}", images, batch * fabric.world_size, LEARNING_RATE[side],
        decay_from=0.99 if side == 64 else 0.75, averaging=EMA_DECAY,
    )  # fmt: skip
    denoiser.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(denoiser.parameters(), lr=stage.rate, betas=(0.9, 0.99), weight_decay=0.01)
    device, alphas = fabric.device, build_scheduler().alphas_cumprod.to(fabric.device)
    pool: list[LatentPool] = []

    def losses(module: nn.Module, step: int) -> dict[str, torch.Tensor]:
        if not pool:
            # Each rank reads its own stretch of the stream; a resumed run goes on behind what it has already seen.
            start = side * 1_000_000 + fabric.global_rank * 20_000_000 + step // REFILL_EVERY * REFILL
            pool.append(LatentPool(latent_encoder(vae, device), POOL, side, start))
            pool[0].refill(FIRST_FILL)
        if step % REFILL_EVERY == REFILL_EVERY - 1:
            pool[0].refill(REFILL)
        rng, generator = stream_rng(f"unet{side}.{fabric.global_rank}", step)
        latents, captions = pool[0].sample(batch, rng, generator)
        captions = ["" if rng.random() < CAPTION_DROPOUT else caption for caption in captions]
        noise = torch.randn(latents.shape, generator=generator).to(device)
        timesteps = draw_timesteps(rng, batch).to(device)
        keep = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = (keep.sqrt() * latents.to(device) + (1 - keep).sqrt() * noise).to(memory_format=torch.channels_last)
        predicted = module(noisy, timesteps, token_ids(tokenizer, captions).to(device))
        return {"loss": F.mse_loss(predicted.float(), noise)}

    train(fabric, stage, work, denoiser, optimiser, losses)

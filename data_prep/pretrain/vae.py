"""Stage 1 of the mini Stable Diffusion: the autoencoder, 128x128x3 <-> 32x32x4."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from lightning.fabric import Fabric
from torch import nn
from torch.nn import functional as F

from data_prep.pretrain.stream import stream_picture, stream_rng, to_pixels
from data_prep.pretrain.trainloop import Stage, train

CROP, BATCH, LEARNING_RATE = 64, 16, 1.5e-3
KL_WEIGHT = 4e-3  # per latent element against a per-pixel loss; strong enough that latents are centred with unit scale
HELD_OUT = 900_000_000  # first stream index of the held-out pictures; training never comes this far


def training_pixels(step: int, device: torch.device) -> torch.Tensor:
    """float32 [BATCH,3,64,64] in [-1,1]: crops at full size, and every fourth picture whole at half size."""
    rng, _ = stream_rng("vae", step)
    crops = []
    for i, pixels in enumerate(to_pixels([stream_picture(step * BATCH + i).image for i in range(BATCH)])):
        if i % 4 == 0:
            crops.append(F.avg_pool2d(pixels[None], 2)[0])
        else:
            y, x = (int(v) for v in rng.integers(0, pixels.shape[-1] - CROP + 1, size=2))
            crops.append(pixels[:, y : y + CROP, x : x + CROP])
    return torch.stack(crops).to(device, memory_format=torch.channels_last)


class Reconstruction(nn.Module):
    """Pixels float [B,3,H,W] -> what the autoencoder makes of them, and mean and log-variance of the latents."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(
        self, pixels: torch.Tensor, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        posterior = self.vae.encode(pixels).latent_dist
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return self.vae.decode(latents).sample, posterior.mean, posterior.logvar


def vae_losses(model: nn.Module, pixels: torch.Tensor, generator: torch.Generator | None) -> dict[str, torch.Tensor]:
    """`loss`: absolute + squared error + KL_WEIGHT * KL(q(z|x) || N(0, 1)), each a mean over elements."""
    output, mean, logvar = (each.float() for each in model(pixels, generator))
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    mse = F.mse_loss(output, pixels)
    loss = F.l1_loss(output, pixels) + mse + KL_WEIGHT * kl
    return {"loss": loss, "psnr": 10 * torch.log10(4 / mse.detach()), "kl": kl.detach()}


def train_vae(vae: AutoencoderKL, fabric: Fabric, work: Path, images: int) -> None:
    """Train until so many images were seen, or load what was trained."""
    model = Reconstruction(vae).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)

    def losses(module: nn.Module, step: int) -> dict[str, torch.Tensor]:
        generator = stream_rng("vae_noise", step)[1] if fabric.device.type == "cpu" else None
        return vae_losses(module, training_pixels(step, fabric.device), generator)

    train(fabric, Stage("vae", images, BATCH, LEARNING_RATE, warmup=100), work, model, optimiser, losses)


@torch.no_grad()
def measure_vae(vae: AutoencoderKL, device: torch.device, pictures: int = 96) -> dict[str, float]:
    """Held-out PSNR (dB, of [-1,1] images) and the latents' mean and standard deviation; float32."""
    vae.to(device).eval()
    pixels = to_pixels([stream_picture(HELD_OUT + i).image for i in range(pictures)]).to(device)
    latents, errors = [], []
    for chunk in pixels.split(16):
        latent = vae.encode(chunk).latent_dist.mode()
        errors.append(F.mse_loss(vae.decode(latent).sample.clamp(-1, 1), chunk, reduction="none").mean((1, 2, 3)))
        latents.append(latent)
    z = torch.cat(latents)
    psnr = (10 * torch.log10(4 / torch.cat(errors))).mean()
    return {"psnr_db": float(psnr), "latent_mean": float(z.mean()), "latent_std": float(z.std())}

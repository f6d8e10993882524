"""Stage 1 of the mini Stable Diffusion: the autoencoder, 128x128x3 <-> 32x32x4."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from data_prep.pretrain.stream import stream_picture, stream_rng, to_pixels
from data_prep.pretrain.trainloop import Clock, autocast

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


def vae_loss(
    vae: AutoencoderKL, pixels: torch.Tensor, generator: torch.Generator | None
) -> tuple[torch.Tensor, dict[str, float]]:
    """Absolute + squared error + KL_WEIGHT * KL(q(z|x) || N(0, 1)), each a mean over elements."""
    with autocast(pixels.device):
        posterior = vae.encode(pixels).latent_dist
        output = vae.decode(posterior.mode() if generator is None else posterior.sample(generator)).sample
    output, mean, logvar = output.float(), posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    mse = F.mse_loss(output, pixels)
    loss = F.l1_loss(output, pixels) + mse + KL_WEIGHT * kl
    return loss, {"psnr": float(10 * torch.log10(4 / mse.detach())), "kl": float(kl.detach())}


def train_vae(vae: AutoencoderKL, clock: Clock, device: torch.device) -> None:
    """Train until the clock's budget for this stage is used up; resumes from the clock's checkpoint."""
    vae.to(device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    clock.restore({"vae": vae}, optimiser)
    while clock.running():
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * clock.learning_rate_factor(warmup=100)
        loss, facts = vae_loss(
            vae,
            training_pixels(clock.step, device),
            stream_rng("vae_noise", clock.step)[1] if device.type == "cpu" else None,
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        clock.tick({"loss": float(loss.detach()), **facts}, {"vae": vae}, optimiser, images=BATCH)
    clock.save({"vae": vae}, optimiser)


@torch.no_grad()
def measure_vae(vae: AutoencoderKL, device: torch.device, pictures: int = 96) -> dict[str, float]:
    """Held-out PSNR (dB, of [-1,1] images) and the latents' mean and standard deviation; float32."""
    vae.eval()
    pixels = to_pixels([stream_picture(HELD_OUT + i).image for i in range(pictures)]).to(device)
    latents, errors = [], []
    for chunk in pixels.split(16):
        latent = vae.encode(chunk).latent_dist.mode()
        errors.append(F.mse_loss(vae.decode(latent).sample.clamp(-1, 1), chunk, reduction="none").mean((1, 2, 3)))
        latents.append(latent)
    z = torch.cat(latents)
    psnr = (10 * torch.log10(4 / torch.cat(errors))).mean()
    return {"psnr_db": float(psnr), "latent_mean": float(z.mean()), "latent_std": float(z.std())}

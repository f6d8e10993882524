"""The gradient that tells an alpha map what a frozen diffusion model sees in it: score distillation (Poole et al. 2022,
arXiv 2209.14988, Eq. 3), through the autoencoder's encoder and not through the U-Net.

Shapes: R alpha maps, S their side, (h, w) the latent grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from slime_bench.backbones.stable_diffusion import StableDiffusionBackbone
from slime_bench.methods.slime.losses import guided
from slime_bench.places import onto


@dataclass(frozen=True)
class Draws:
    """The random numbers of one gradient.

    Attributes:
        colours: of the backgrounds, float [R,3,1,1] in [0,1]. timesteps: int64 [R].
        posterior, noise: standard normal [R,4,h,w], of the latents and of the diffusion.
    """

    colours: Tensor
    timesteps: Tensor
    posterior: Tensor
    noise: Tensor


def drawn(
    streams: Sequence[torch.Generator], latent: tuple[int, int, int], timesteps: Sequence[int], device: torch.device
) -> Draws:
    """One draw for each map from its own generator.

    Args:
        latent: (4, h, w). timesteps: lowest and highest, both included.
    """
    low, high = timesteps
    rows = [
        (
            torch.rand(3, 1, 1, generator=stream),
            torch.randint(low, high + 1, (), generator=stream),
            torch.randn(latent, generator=stream),
            torch.randn(latent, generator=stream),
        )
        for stream in streams
    ]
    return Draws(*(onto(torch.stack(each), device) for each in zip(*rows, strict=True)))


def composite(images: Tensor, alpha: Tensor, colours: Tensor) -> Tensor:
    """image alpha + colour (1 - alpha): [R,3,S,S], [R,1,S,S], [R,3,1,1] -> [R,3,S,S]."""
    return images * alpha + colours * (1 - alpha)


def latents_of(backbone: StableDiffusionBackbone, pictures: Tensor, posterior: Tensor) -> Tensor:
    """Scaled latents [R,4,h,w] of pictures [R,3,S,S], enlarged to the side that the backbone was trained at."""
    side = (backbone.config.image_size,) * 2
    return backbone.latents(F.interpolate(pictures, size=side, mode="bilinear", align_corners=False), posterior)


@torch.no_grad()
def latent_gradient(
    backbone: StableDiffusionBackbone, latents: Tensor, draws: Draws, text: Tensor, empty: Tensor, guidance: float
) -> Tensor:
    """(1 - abar_t) (e_u + s (e_c - e_u) - e), float32 [R,4,h,w], for noise e and the predictions e_c with the text, e_u
    with the empty one.

    Args:
        latents: float [R,4,h,w]. text: float [R,T,D]. empty: float [1,T,D]. guidance: s.
    """
    noisy = backbone.add_noise(latents, draws.noise, draws.timesteps)
    conditional, unconditional = (backbone.predict_noise(noisy, draws.timesteps, each) for each in (text, empty))
    weight = 1 - backbone.alphas_cumprod[draws.timesteps].view(-1, 1, 1, 1)
    return weight * (guided(conditional, unconditional, guidance) - draws.noise)


def alpha_gradient(
    backbone: StableDiffusionBackbone,
    images: Tensor,
    alpha: Tensor,
    draws: Draws,
    text: Tensor,
    empty: Tensor,
    guidance: float,
) -> Tensor:
    """The gradient of score distillation on the alpha maps, float32 [R,1,S,S]: that of `latent_gradient`, carried back
    through encoder, resize and composite.

    Args:
        images: float [R,3,S,S] in [0,1]. alpha: float [R,1,S,S]; the rest as there.
    """
    alpha = alpha.detach().requires_grad_()
    latents = latents_of(backbone, composite(images, alpha, draws.colours), draws.posterior)
    upstream = latent_gradient(backbone, latents, draws, text, empty, guidance)
    return torch.autograd.grad(latents, alpha, upstream)[0]

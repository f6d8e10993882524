"""GAN inversion: styles with which a frozen generator paints a given picture.

With x the picture, w_l = mean + spread v_l the style at place l, and P_j the mean over blocks of 2^j x 2^j pixels,

    min over v of  mean over j of |P_j G(w) - P_j x|^2 / pixels  +  pull mean(v^2)

from the best of some random styles, by Adam; in the space `w` all v_l are one. The noise is drawn once and is not
optimised, so that the hidden maps stay of the kind that generated pictures have. L styles, D numbers of a style, R side
of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from slime_bench.backbones.stylegan2 import StyleGan2Backbone
from slime_bench.methods.regan.config import Inversion
from slime_bench.seeding import generator

SMALLEST: Final = 8
"""Side of the coarsest picture that is compared."""
BATCH: Final = 8


def distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference, averaged over the sides R, R/2, .. 8: pictures float32 [B,3,R,R] -> [B]."""
    parts = [(found - wanted).square().flatten(1).mean(1)]
    while found.shape[-1] > SMALLEST:
        found, wanted = F.avg_pool2d(found, 2), F.avg_pool2d(wanted, 2)
        parts.append((found - wanted).square().flatten(1).mean(1))
    return torch.stack(parts).mean(0)


def invert(
    backbone: StyleGan2Backbone, picture: Tensor, noises: Sequence[Tensor], config: Inversion, stream: torch.Generator
) -> Tensor:
    """Styles float32 [1,L,D] of a picture float32 [1,3,R,R] in [-1,1]; needs gradients.

    Args:
        noises: of the picture, see `StyleGan2Backbone.noises`. stream: of the random styles.
    """
    with torch.no_grad():
        best, least = backbone.mean_style[None], float("inf")
        latents = torch.randn(config.starts, backbone.sizes.style_dim, generator=stream).to(picture)
        for styles in backbone.styles(latents).split(BATCH):
            apart = distance(backbone.generate(styles, noises).pictures, picture.expand(len(styles), -1, -1, -1))
            if float(apart.min()) < least:
                least, best = float(apart.min()), styles[apart.argmin()][None]
        start = (best - backbone.mean_style) / backbone.spread
    places = backbone.sizes.styles
    offsets = start[:, None].repeat(1, places if config.space == "w_plus" else 1, 1).requires_grad_()
    optimiser = torch.optim.Adam([offsets], lr=config.lr)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    for _ in range(config.steps):
        optimiser.zero_grad()
        styles = backbone.mean_style + backbone.spread * offsets.expand(-1, places, -1)
        found = backbone.generate(styles, noises).pictures
        loss = distance(found, picture).sum() + config.pull * offsets.square().mean()
        loss.backward()
        optimiser.step()
        rate.step()
    return (backbone.mean_style + backbone.spread * offsets.expand(-1, places, -1)).detach()


def stream_of(seed: int, purpose: str, name: str | int) -> torch.Generator:
    """The random numbers of one picture."""
    return generator(seed, f"regan {purpose}", name)

"""What the mini GAN is trained against: a residual discriminator, and both networks' losses.

Shapes: B pictures, R side of a picture.
"""

from __future__ import annotations

import itertools
import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slime_bench.backbones.gan import Architecture
from slime_bench.backbones.stylegan2 import EqualLinear, Generator, activated, blurred

GROUP: Final = 4
"""Pictures that are compared with each other."""


class EqualConv(nn.Module):
    """A convolution with weights of standard deviation 1 at the start, scaled as in `EqualLinear`; then bias and
    activation.

    Args:
        down: blurred and halved.
    """

    def __init__(self, into: int, out: int, kernel: int, down: bool = False, activate: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, into, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out)) if activate else None
        self.scale, self.down = 1 / math.sqrt(into * kernel**2), down

    def forward(self, maps: Tensor) -> Tensor:
        kernel = self.weight.shape[-1]
        if self.down:
            before = (4 - 2) + (kernel - 1)  # as many as blur and convolution take
            maps = blurred(maps, up=1, pad=((before + 1) // 2, before // 2), gain=1)
        maps = F.conv2d(
            maps, self.weight * self.scale, stride=2 if self.down else 1, padding=0 if self.down else kernel // 2
        )
        return maps if self.bias is None else activated(maps, self.bias)


class Block(nn.Module):
    """[B,C,h,w] -> [B,O,h/2,w/2], with a skip connection."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.one, self.two = EqualConv(into, into, 3), EqualConv(into, out, 3, down=True)
        self.skip = EqualConv(into, out, 1, down=True, activate=False)

    def forward(self, maps: Tensor) -> Tensor:
        found: Tensor = (self.two(self.one(maps)) + self.skip(maps)) / math.sqrt(2)
        return found


class Discriminator(nn.Module):
    """Pictures float32 [B,3,R,R] -> logits of being real, float32 [B]."""

    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        widths = [sizes.channels[side] for side in reversed(sizes.sides)]
        self.first = EqualConv(3, widths[0], 1)
        self.blocks = nn.ModuleList(Block(into, out) for into, out in itertools.pairwise(widths))
        last = widths[-1]
        self.last = EqualConv(last + 1, last, 3)
        self.hidden, self.out = EqualLinear(last * 16, last), EqualLinear(last, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        maps = self.first(pictures)
        for block in self.blocks:
            maps = block(maps)
        maps = self.last(torch.cat([maps, deviation(maps)], 1)).flatten(1)
        hidden = activated(self.hidden(maps), maps.new_zeros(self.out.weight.shape[1]))
        found: Tensor = self.out(hidden)[:, 0]
        return found


def deviation(maps: Tensor) -> Tensor:
    """The mean standard deviation over groups of pictures: [B,C,h,w] -> [B,1,h,w], one number for a group, by which a
    generator that paints the same picture again and again is found out."""
    count = len(maps)
    group = GROUP if count % GROUP == 0 else count
    grouped = maps.view(group, -1, *maps.shape[1:])  # every picture with those count/group places further on
    spread = (grouped.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
    return spread.repeat(group)[:, None, None, None].expand(-1, 1, *maps.shape[2:])


class Pair(nn.Module):
    """Generator and discriminator, and what both lower in one step (Goodfellow et al. 2014, non-saturating).

        generator      softplus(-D(G(z)))
        discriminator  softplus(D(G(z))) + softplus(-D(x)) + gamma / 2 |grad_x D(x)|^2   (R1, Mescheder et al. 2018)

    Args:
        gamma: of R1.
    """

    def __init__(self, sizes: Architecture, gamma: float) -> None:
        super().__init__()
        self.generator, self.discriminator, self.gamma = Generator(sizes), Discriminator(sizes), gamma

    def forward(self, real: Tensor, latents: Tensor, noises: list[Tensor], every: int = 0) -> dict[str, Tensor]:
        """The losses, and `loss`, their sum: no term has a gradient in the other network's numbers.

        Args:
            real: float32 [B,3,R,R] in [-1,1]. latents: float32 [B,D]. noises: see `Generator`.
            every: R1 is computed, and counts for so many steps; 0: it is left out.
        """
        fake = self.generator(self.generator.style(latents), noises).pictures
        self.discriminator.requires_grad_(False)
        fooled = F.softplus(-self.discriminator(fake)).mean()
        self.discriminator.requires_grad_(True)
        seen = real.requires_grad_(every > 0)
        found = self.discriminator(seen)
        told = F.softplus(self.discriminator(fake.detach())).mean() + F.softplus(-found).mean()
        losses = {"loss": fooled + told, "generator": fooled, "discriminator": told}
        if every:
            (slope,) = torch.autograd.grad(found.sum(), seen, create_graph=True)
            steep = slope.square().sum((1, 2, 3)).mean()
            losses |= {"loss": losses["loss"] + every * self.gamma / 2 * steep, "r1": steep}
        return losses

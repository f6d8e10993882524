"""StyleGAN2's generator in plain torch, and as a frozen backbone (Karras et al., CVPR 2020, arXiv 1912.04958).

A latent z is mapped to a style w; every convolution scales its input channels by an affine function of a style, keeps
the expected variance (demodulation) and adds noise. Modules have the names of rosinality's stylegan2-pytorch, so that
its checkpoints fit. `convs.0`, `convs.1`, .. are the layers from 8x8 on, two for each side.

Shapes: B pictures, D numbers of a style, L styles of a picture, R side of a picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Final, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from slime_bench.backbones.gan import Architecture, StyleGan2
from slime_bench.backbones.load import guarded
from slime_bench.backbones.weights import WEIGHTS, check_hashes
from slime_bench.seeding import generator

EPS: Final = 1e-8
SLOPE, GAIN = 0.2, math.sqrt(2)  # of the leaky ReLU
SLOW: Final = 0.01
"""Factor of the mapping's learning rate."""
BLUR: Final = (1.0, 3.0, 3.0, 1.0)
AVERAGED: Final = 10_000
"""Styles behind `mean_style`."""


class Generated(NamedTuple):
    """Pictures float32 [B,3,R,R], mostly in [-1,1], and the outputs of `convs.0`, `convs.1`, ..: float32 [B,C,h,h]."""

    pictures: Tensor
    maps: list[Tensor]


def activated(values: Tensor, bias: Tensor) -> Tensor:
    """sqrt(2) leaky_relu(x + b), b [C] along axis 1."""
    return GAIN * F.leaky_relu(values + bias.view(1, -1, *[1] * (values.ndim - 2)), SLOPE)


def blurred(maps: Tensor, up: int, pad: tuple[int, int], gain: float) -> Tensor:
    """The maps [B,C,h,w] with `up` - 1 zeros after each of their pixels, padded by `pad` before and after, along each
    axis, and correlated with the outer product of [1,3,3,1] / 8, times `gain`."""
    if up > 1:
        count, channels, height, width = maps.shape
        spread = maps.new_zeros(count, channels, height, up, width, up)
        spread[:, :, :, 0, :, 0] = maps
        maps = spread.view(count, channels, height * up, width * up)
    line = torch.tensor(BLUR, device=maps.device, dtype=maps.dtype) / sum(BLUR)
    kernel = (gain * torch.outer(line, line)).expand(maps.shape[1], 1, -1, -1)
    return F.conv2d(F.pad(maps, (*pad, *pad)), kernel, groups=maps.shape[1])


class EqualLinear(nn.Module):
    """y = s W x + r b with W of standard deviation 1 / r at the start and s = r / sqrt(in): `rate` r slows Adam down.

    Args:
        bias: at the start.
    """

    def __init__(self, into: int, out: int, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, into) / rate)
        self.bias = nn.Parameter(torch.full((out,), bias))
        self.rate, self.scale = rate, rate / math.sqrt(into)

    def forward(self, values: Tensor) -> Tensor:
        return F.linear(values, self.weight * self.scale, self.bias * self.rate)


class PixelNorm(nn.Module):
    """x / sqrt(mean of x^2 + eps) along axis 1."""

    def forward(self, values: Tensor) -> Tensor:
        return values * (values.square().mean(1, keepdim=True) + EPS).rsqrt()


class MappingLayer(EqualLinear):
    """A linear layer with its activation."""

    def forward(self, values: Tensor) -> Tensor:
        return activated(F.linear(values, self.weight * self.scale), self.bias * self.rate)


class ModulatedConv(nn.Module):
    """A convolution whose input channel i is scaled by s_i = (A w + b)_i; demodulated, output channel o is divided by
    the norm of its scaled weights, sqrt(sum over i and k of (s_i W_oik)^2 + eps).

    Args:
        up: twice as high and wide, by a transposed convolution and a blur.
    """

    def __init__(
        self, into: int, out: int, kernel: int, style_dim: int, up: bool = False, demodulate: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, out, into, kernel, kernel))
        self.modulation = EqualLinear(style_dim, into, bias=1.0)
        self.scale, self.up, self.demodulate = 1 / math.sqrt(into * kernel**2), up, demodulate

    def forward(self, maps: Tensor, style: Tensor) -> Tensor:
        """Maps [B,I,h,w], styles [B,D] -> [B,O,h,w], or twice the side."""
        factors, weight = self.modulation(style), self.weight[0] * self.scale  # [B,I], [O,I,k,k]
        # Scaling the input is scaling the weights of each picture: one convolution serves all pictures.
        maps = maps * factors[:, :, None, None]
        if self.up:
            maps = F.conv_transpose2d(maps, weight.transpose(0, 1), stride=2)
            maps = blurred(maps, up=1, pad=(1, 1), gain=4)
        else:
            maps = F.conv2d(maps, weight, padding=weight.shape[-1] // 2)
        if self.demodulate:
            norms = factors.square() @ weight.square().sum((2, 3)).T  # [B,O]
            maps = maps * (norms + EPS).rsqrt()[:, :, None, None]
        return maps


class Noise(nn.Module):
    """x + weight * noise."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, maps: Tensor, noise: Tensor) -> Tensor:
        return maps + self.weight * noise


class Activation(nn.Module):
    """See `activated`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, maps: Tensor) -> Tensor:
        return activated(maps, self.bias)


class StyledConv(nn.Module):
    """A modulated 3x3 convolution, noise, bias and activation."""

    def __init__(self, into: int, out: int, style_dim: int, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv(into, out, 3, style_dim, up)
        self.noise = Noise()
        self.activate = Activation(out)

    def forward(self, maps: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        return self.activate(self.noise(self.conv(maps, style), noise))


class ToRgb(nn.Module):
    """Maps [B,C,h,w] to a picture [B,3,h,w], added to the smaller picture before it at twice its side."""

    def __init__(self, channels: int, style_dim: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(channels, 3, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, maps: Tensor, style: Tensor, before: Tensor | None = None) -> Tensor:
        picture = self.conv(maps, style) + self.bias
        return picture if before is None else picture + blurred(before, up=2, pad=(2, 1), gain=4)


class Generator(nn.Module):
    """The network; its numbers are those of a start of training."""

    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        self.sizes, width = sizes, sizes.style_dim
        self.style = nn.Sequential(PixelNorm(), *(MappingLayer(width, width, rate=SLOW) for _ in range(sizes.n_mlp)))
        first, *sides = sizes.sides
        start = torch.randn(1, sizes.channels[first], 4, 4)  # the learned maps that every picture starts from
        self.input = nn.ParameterDict({"input": nn.Parameter(start)})
        self.conv1 = StyledConv(sizes.channels[first], sizes.channels[first], width)
        self.to_rgb1 = ToRgb(sizes.channels[first], width)
        self.convs, self.to_rgbs = nn.ModuleList(), nn.ModuleList()
        for side in sides:
            into, out = sizes.channels[side // 2], sizes.channels[side]
            self.convs.append(StyledConv(into, out, width, up=True))
            self.convs.append(StyledConv(out, out, width))
            self.to_rgbs.append(ToRgb(out, width))
        self.noises = nn.Module()
        for place, side in enumerate(self.noise_sides):
            self.noises.register_buffer(f"noise_{place}", torch.randn(1, 1, side, side))

    @property
    def noise_sides(self) -> list[int]:
        """Of the noise of each styled convolution, in running order: 4, 8, 8, 16, 16, .."""
        return [side for side in self.sizes.sides for _ in range(1 if side == 4 else 2)]

    def forward(self, styles: Tensor, noises: Sequence[Tensor]) -> Generated:
        """Pictures of styles float32 [B,D], or [B,L,D] with one for each place.

        Args:
            noises: standard normal, float32 [B,1,h,h] or [1,1,h,h], h as in `noise_sides`.
        """
        places = styles.unbind(1) if styles.ndim == 3 else [styles] * self.sizes.styles
        maps = self.conv1(self.input["input"].expand(len(styles), -1, -1, -1), places[0], noises[0])
        picture, outputs = self.to_rgb1(maps, places[1]), list[Tensor]()
        for level, to_rgb in enumerate(self.to_rgbs):
            # A picture's style is that of the next side's first convolution.
            for place in (2 * level, 2 * level + 1):
                maps = self.convs[place](maps, places[1 + place], noises[1 + place])
                outputs.append(maps)
            picture = to_rgb(maps, places[2 * level + 3], picture)
        return Generated(picture, outputs)


class StyleGan2Backbone(StyleGan2, nn.Module):
    """A trained generator, frozen, in float32.

    Raises:
        BackboneError: weights missing, corrupt or of another architecture.
    """

    implementation: ClassVar[str | None] = None
    mean_style: Tensor
    spread: Tensor

    def __init__(self, config: StyleGan2.Config) -> None:
        super().__init__()
        self.config = config
        folder = self.folder_of(config)
        check_hashes(folder)
        self.sizes = self.read_folder(folder)
        with torch.random.fork_rng(devices=[]):  # a start that is overwritten
            self.network = Generator(self.sizes)
        guarded("network", folder, lambda: self.network.load_state_dict(load_file(folder / WEIGHTS)))
        self.requires_grad_(False).eval()
        draws = torch.randn(AVERAGED, self.sizes.style_dim, generator=generator(0, "stylegan2 mean style"))
        styles = self.styles(draws)
        self.register_buffer("mean_style", styles.mean(0), persistent=False)  # [D]
        self.register_buffer("spread", styles.std(0).square().mean().sqrt(), persistent=False)  # [], of a number of w

    def styles(self, latents: Tensor) -> Tensor:
        """Latents z float32 [B,D], standard normal -> styles w [B,D]."""
        return self.network.style(latents)

    def noises(self, streams: Sequence[torch.Generator]) -> list[Tensor]:
        """Noise of B pictures, each from its own stream: float32 [B,1,h,h] for each styled convolution."""
        every = [[torch.randn(1, h, h, generator=each) for h in self.network.noise_sides] for each in streams]
        return [torch.stack(draws).to(self.mean_style) for draws in zip(*every, strict=True)]

    def generate(self, styles: Tensor, noises: Sequence[Tensor]) -> Generated:
        """See `Generator.forward`."""
        return self.network(styles, noises)

    def numbered(self, number: int) -> Generated:
        """The picture that a number names, B = 1. Its latent is that of ReGAN's authors; the noise, which they draw
        anew in each call, is keyed by the number."""
        latent = numbered_latent(number, self.sizes.style_dim).to(self.mean_style)
        noises = self.noises([generator(0, "stylegan2 numbered", number)])
        return self.generate(self.styles(latent), noises)


def numbered_latent(number: int, width: int) -> Tensor:
    """The latent that ReGAN's authors give a number: float32 [1,D]."""
    return torch.from_numpy(np.random.RandomState(number).randn(1, width).astype(np.float32))


def bytes_of(pictures: Tensor) -> Tensor:
    """Pictures float [B,3,R,R] in [-1,1] -> uint8, cut off at both ends and not rounded, as ReGAN's authors do."""
    return ((pictures + 1) * 127.5).clamp(0, 255).byte()

"""What Peekaboo optimises: alpha maps, as a network on Fourier features or as a free image, and the bilateral blur that
carries them along the edges of an image.

R maps stand side by side and know nothing of each other: maps of several parts and images in one pass.

Shapes: R maps, S side of a map, P = S S pixels, F = 128 frequencies, k side of the blur's window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slime_bench.places import onto

FREQUENCIES: Final = 128
WIDTH: Final = 2 * FREQUENCIES
SPREAD: Final = 10.0
"""Standard deviation of the frequencies, in periods per image."""

WINDOW: Final = 3
SIGMA: Final = 5.0
"""Of the blur's spatial Gaussian, in pixels: within the window nearly flat."""
TOLERANCE: Final = 0.08
"""Of the blur's Gaussian on the distance of two colours in [0,1]^3."""
ITERATIONS: Final = 40


def fourier_features(frequencies: Tensor, side: int) -> Tensor:
    """sin, then cos, of 2 pi (f_1 x + f_2 y) at the pixels (x, y) = (column, row) / S: [R,2,F] -> float32 [R,2F,P]."""
    ticks = torch.arange(side, device=frequencies.device) / side
    rows, columns = torch.meshgrid(ticks, ticks, indexing="ij")
    phases = 2 * math.pi * (torch.stack([columns, rows], dim=-1).view(-1, 2) @ frequencies)  # [R,P,F]
    return torch.cat([phases.sin(), phases.cos()], dim=-1).transpose(1, 2).contiguous()


class FourierAlpha(nn.Module):
    """Per map, three times linear-ReLU-BatchNorm on the pixels' Fourier features, and a linear layer to one number.

    The normalisation is over the pixels of a map, by their own mean and variance, as the authors' network never leaves
    the training mode. Starts are torch's own: uniform within 1 / sqrt(256); scale 1 and shift 0.

    Args:
        streams: a generator for each map. side: S.
    """

    def __init__(self, streams: Sequence[torch.Generator], side: int) -> None:
        super().__init__()
        self.side = side
        frequencies = torch.stack([SPREAD * torch.randn(2, FREQUENCIES, generator=each) for each in streams])
        self.register_buffer("features", fourier_features(frequencies, side))
        outputs, count = (WIDTH, WIDTH, WIDTH, 1), len(streams)

        def start(*shape: int) -> nn.Parameter:
            bound = WIDTH**-0.5
            return nn.Parameter(torch.stack([torch.empty(shape).uniform_(-bound, bound, generator=g) for g in streams]))

        self.weights = nn.ParameterList([start(out, WIDTH) for out in outputs])  # [R,out,256]
        self.biases = nn.ParameterList([start(out, 1) for out in outputs])  # [R,out,1]
        self.scales = nn.ParameterList([torch.ones(count * out) for out in outputs[:-1]])
        self.shifts = nn.ParameterList([torch.zeros(count * out) for out in outputs[:-1]])

    def forward(self) -> Tensor:
        """The maps before the sigmoid, float32 [R,1,S,S]."""
        hidden: Tensor = self.get_buffer("features")
        for weight, bias, scale, shift in zip(self.weights, self.biases, self.scales, self.shifts, strict=False):
            hidden = torch.baddbmm(bias, weight, hidden).relu()
            apart = hidden.flatten(0, 1)[None]  # every channel of every map is a channel of one batch
            hidden = F.batch_norm(apart, None, None, scale, shift, training=True).view_as(hidden)
        return torch.baddbmm(self.biases[-1], self.weights[-1], hidden).unflatten(2, (self.side, self.side))


class RasterAlpha(nn.Module):
    """Per map a free image, standard normal at the start; see `FourierAlpha`."""

    def __init__(self, streams: Sequence[torch.Generator], side: int) -> None:
        super().__init__()
        self.image = nn.Parameter(torch.stack([torch.randn(1, side, side, generator=each) for each in streams]))

    def forward(self) -> Tensor:
        """The maps before the sigmoid, float32 [R,1,S,S]."""
        return self.image


def bilateral_weights(
    images: Tensor, window: int = WINDOW, tolerance: float = TOLERANCE, sigma: float = SIGMA
) -> Tensor:
    """Weights of the neighbours of every pixel, which sum to 1; a neighbour outside the image weighs 0.

    w(p, q) ~ exp(-|p - q|^2 / (2 sigma^2)) exp(-|I(p) - I(q)|^2 / (2 tolerance^2))

    Args:
        images: float [B,3,H,W] in [0,1]. window: k, odd.

    Returns:
        float [B,k*k,H,W], the neighbours row by row.
    """
    count, channels, height, width = images.shape
    near = _neighbours(images, window).view(count, channels, window**2, height, width)
    inside = _neighbours(torch.ones_like(images[:1, :1]), window).view(1, window**2, height, width)
    offsets = torch.arange(window, dtype=torch.float64) - window // 2
    spatial = torch.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * sigma**2))
    spatial = onto(spatial, images).view(1, -1, 1, 1)
    colour = torch.exp(-(near - images[:, :, None]).square().sum(1) / (2 * tolerance**2))
    weights = inside * spatial * colour
    return weights / weights.sum(1, keepdim=True)


def bilateral_blur(maps: Tensor, weights: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Every pixel becomes the weighted mean of its neighbours, `iterations` times over.

    Args:
        maps: float [R,1,H,W]. weights: of `bilateral_weights`, [R,k*k,H,W].
    """
    window = math.isqrt(weights.shape[1])
    for _ in range(iterations):
        maps = (_neighbours(maps, window).view_as(weights) * weights).sum(1, keepdim=True)
    return maps


def _neighbours(maps: Tensor, window: int) -> Tensor:
    """The window around every pixel, 0 outside: [B,C,H,W] -> [B,C*k*k,H*W]."""
    return F.unfold(maps, window, padding=window // 2)


class AlphaMaps(nn.Module):
    """R alpha maps in (0,1), of one kind; see `slime_bench.methods.peekaboo.config.PeekabooConfig`.

    Args:
        kind: of the maps. images: float [R,3,S,S] in [0,1], whose edges a blur follows.
        streams: a generator for each map.
    """

    def __init__(self, kind: str, images: Tensor, streams: Sequence[torch.Generator]) -> None:
        super().__init__()
        maps = RasterAlpha if kind.startswith("raster") else FourierAlpha
        self.maps = maps(streams, images.shape[-1]).to(images.device)
        self.weights = bilateral_weights(images) if kind.endswith("bilateral") else None

    def forward(self) -> Tensor:
        """float32 [R,1,S,S]."""
        maps = self.maps()
        return torch.sigmoid(maps if self.weights is None else bilateral_blur(maps, self.weights))

"""ReGAN's two networks. Shapes: B pictures, K classes, S side of what they see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slime_bench.methods.regan.config import HALVINGS

FIRST: Final = 128
LAYERS: Final = ((64, 2), (64, 4), (64, 8), (64, 1), (64, 2), (64, 4), (32, 8))
"""Channels and dilation of the 3x3 convolutions before the last, which has K channels and dilation 1."""


def resized(maps: Tensor, side: int) -> Tensor:
    """float [B,C,h,h] -> [B,C,S,S]: bilinear with aligned corners where it grows, area otherwise."""
    if maps.shape[-1] < side:
        return F.interpolate(maps, size=(side, side), mode="bilinear", align_corners=True)
    return F.interpolate(maps, size=(side, side), mode="area")


class FewShotNetwork(nn.Module):
    """The labels of a picture from its hypercolumns, the generator's maps resized and stacked: a 1x1 convolution, and
    eight dilated ones with leaky ReLUs (slope 0.01) between (the authors' dilated_CNN_61).

    Args:
        channels: of each map. classes: K. side: S.
    """

    def __init__(self, channels: Sequence[int], classes: int, side: int) -> None:
        super().__init__()
        self.channels, self.side = list(channels), side
        self.first = nn.Conv2d(sum(channels), FIRST, 1)
        layers, into = list[nn.Module](), FIRST
        for out, dilation in (*LAYERS, (classes, 1)):
            layers += [nn.LeakyReLU(), nn.Conv2d(into, out, 3, padding=dilation, dilation=dilation)]
            into = out
        self.rest = nn.Sequential(*layers)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps float32 [B,C_l,h_l,h_l] -> logits float32 [B,K,S,S].

        The stack is never made. Resizing is linear and acts on each channel, so a map smaller than S is multiplied on
        its own grid, and what comes out is resized: W [r(x_1); r(x_2); ..] + b = r(W_1 x_1) + r(W_2 x_2) + .. + b.
        """
        sums = dict[int, Tensor]()
        for each, columns in zip(maps, self.first.weight.split(self.channels, dim=1), strict=True):
            small = each if each.shape[-1] < self.side else resized(each, self.side)
            found, grid = F.conv2d(small, columns), int(small.shape[-1])
            sums[grid] = sums[grid] + found if grid in sums else found
        hidden = sum(each if grid == self.side else resized(each, self.side) for grid, each in sums.items())
        assert self.first.bias is not None  # for mypy
        logits: Tensor = self.rest(hidden + self.first.bias[None, :, None, None])
        return logits


def _double(into: int, out: int, between: int | None = None) -> nn.Sequential:
    layers = list[nn.Module]()
    for one, other in ((into, between or out), (between or out, out)):
        layers += [nn.Conv2d(one, other, 3, padding=1), nn.BatchNorm2d(other), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Pictures float32 [B,3,S,S] in [0,1] -> logits float32 [B,K,S,S]. Four halvings, bilinear on the way back (aligned
    corners); the last, 1x1 convolution is applied, which the authors' release forgets.

    Args:
        width: channels of the first level; the others have 2, 4, 8 and 8 times as many.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        widths = [width * 2 ** min(level, HALVINGS - 1) for level in range(HALVINGS + 1)]
        self.down = nn.ModuleList(_double(into, out) for into, out in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(
            _double(2 * widths[level], widths[max(0, level - 1)], widths[level]) for level in reversed(range(HALVINGS))
        )
        self.last = nn.Conv2d(width, classes, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        levels, maps = list[Tensor](), pictures
        for place, layer in enumerate(self.down):
            maps = layer(F.max_pool2d(maps, 2) if place else maps)
            levels.append(maps)
        for layer, beside in zip(self.up, levels[-2::-1], strict=True):
            larger = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=True)
            maps = layer(torch.cat([beside, larger], dim=1))
        logits: Tensor = self.last(maps)
        return logits

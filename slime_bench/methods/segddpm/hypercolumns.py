"""Hypercolumns of pixels, gathered from maps that stay on their own grids.

All of them at once would be D float32 for each pixel: 2.2 GB for one image of 256 pixels and the published model, which
the maps themselves hold in 0.1 GB.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

Key = tuple[int, str]
"""Timestep and module."""
Shape = tuple[int, int, int]
"""(C, h, w)."""


def bytes_needed(shapes: Mapping[Key, Shape], images: int) -> int:
    """What the float32 maps of so many images take."""
    return 4 * images * sum(prod(shape) for shape in shapes.values())


class Hypercolumns:
    """Maps of several images, and the features of any pixel of a grid that lies over them.

    Args:
        shapes: of the maps, in the order in which their channels stand in a hypercolumn. images: how many.
        grid: (H, W) of the pixels.
    """

    def __init__(self, shapes: Mapping[Key, Shape], images: int, grid: tuple[int, int], device: torch.device) -> None:
        self.shapes, self.grid = dict(shapes), grid
        self._tables = {
            key: torch.empty(images * h * w, channels, device=device) for key, (channels, h, w) in shapes.items()
        }
        self._axes = {side: [_axis(one, two, device) for one, two in zip(side, grid, strict=True)]
                      for side in {(h, w) for _, h, w in shapes.values()}}  # fmt: skip

    @property
    def width(self) -> int:
        """D."""
        return sum(channels for channels, _, _ in self.shapes.values())

    def put(self, first: int, key: Key, maps: Tensor) -> None:
        """Keep the maps of the images from number `first` on, float32 [B,C,h,w]."""
        cells = prod(self.shapes[key][1:])
        self._tables[key][first * cells : (first + len(maps)) * cells] = maps.flatten(2).transpose(1, 2).flatten(0, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Features of pixels, float32 [R,D]: each map resized to the grid, bilinear with half-pixel centres.

        Args:
            pixels: int64 [R], (image * H + y) * W + x.
        """
        height, width = self.grid
        image, y, x = pixels // (height * width), pixels // width % height, pixels % width
        corners: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        for side, ((rows, down), (columns, right)) in self._axes.items():
            cells = (image[:, None, None] * side[0] + rows[y][:, :, None]) * side[1] + columns[x][:, None, :]
            shares = down[y][:, :, None] * right[x][:, None, :]
            corners[side] = cells.flatten(1), shares.flatten(1)
        parts = []
        for key, (_, h, w) in self.shapes.items():
            cells, shares = corners[h, w]
            parts.append(F.embedding_bag(cells, self._tables[key], per_sample_weights=shares, mode="sum"))
        return torch.cat(parts, dim=1)


def _axis(cells: int, pixels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The two cells of an axis that each pixel's centre lies between, int64 [pixels,2], and their shares, float32."""
    centre = ((torch.arange(pixels, dtype=torch.float64) + 0.5) * cells / pixels - 0.5).clamp(min=0)
    low = centre.long()
    share = centre - low
    found = torch.stack([low, (low + 1).clamp(max=cells - 1)], dim=1)
    return found.to(device), torch.stack([1 - share, share], dim=1).float().to(device)

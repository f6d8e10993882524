"""Cells of f x f pixels, between which a CRF exchanges messages. Pure functions and the sizes that they share.

Where the image is no multiple of f, the cells stand over its border by as much on either side, or by a pixel more
before it. Pixels are kept apart by their place in a cell ("phase"): [f*f,B,C,h,w], row by row. So pooling is a sum of
phases and bilinear up-sampling a blend of neighbours: every step is one pass over memory, and none is
non-deterministic on CUDA (the backward passes of `interpolate` and of replicated padding would be).

Shapes: B images, C maps, (H, W) pixels, (h, w) cells, f pixels along a cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Axis:
    """One axis of the image: `pixels` in cells of `blur` pixels."""

    pixels: int
    blur: int

    @property
    def cells(self) -> int:
        return -(-self.pixels // self.blur)

    @property
    def before(self) -> int:
        """Pixels of the first cell that are not in the image."""
        return (-self.pixels % self.blur + 1) // 2

    @property
    def after(self) -> int:
        """Pixels of the last cell that are not in the image."""
        return -self.pixels % self.blur // 2

    def edges(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """First pixel of each cell, and the first behind it: int64 [cells] each."""
        start = torch.arange(self.cells, device=device) * self.blur - self.before
        return start.clamp(min=0), (start + self.blur).clamp(max=self.pixels)


@dataclass(frozen=True)
class Cells:
    """The cells of an image, rows and columns."""

    rows: Axis
    columns: Axis

    @classmethod
    def of(cls, size: tuple[int, int], blur: int) -> Cells:
        """size: (H, W)."""
        return cls(Axis(size[0], blur), Axis(size[1], blur))

    @property
    def blur(self) -> int:
        return self.rows.blur

    @cached_property
    def whole(self) -> bool:
        """Whether all cells lie within the image."""
        return self.rows.pixels % self.blur == 0 and self.columns.pixels % self.blur == 0

    def share(self, like: Tensor) -> Tensor:
        """One over the number of pixels that a cell has in the image: [h,w]."""
        rows, columns = (end - start for start, end in (axis.edges(like.device) for axis in (self.rows, self.columns)))
        return (rows[:, None] * columns).to(like.dtype).reciprocal()

    def inside(self, like: Tensor) -> Tensor:
        """1 where a phase of a cell is a pixel of the image, else 0: [f*f,1,1,h,w]."""
        return split(like.new_ones(1, 1, self.rows.pixels, self.columns.pixels), self)


def split(maps: Tensor, cells: Cells) -> Tensor:
    """Maps by phase: [B,C,H,W] -> [f*f,B,C,h,w], contiguous; 0 where there is no pixel."""
    rows, columns = cells.rows, cells.columns
    padded = F.pad(maps, (columns.before, columns.after, rows.before, rows.after))
    parted = padded.unflatten(3, (columns.cells, cells.blur)).unflatten(2, (rows.cells, cells.blur))  # [B,C,h,f,w,f]
    return parted.permute(3, 5, 0, 1, 2, 4).flatten(0, 1).contiguous()


def join(phases: list[Tensor], cells: Cells) -> Tensor:
    """The pixels in their places again: f*f maps [B,C,h,w] -> [B,C,H,W]."""
    blur, rows, columns = cells.blur, cells.rows, cells.columns
    lines = [torch.stack(phases[row * blur : (row + 1) * blur], dim=-1).flatten(-2) for row in range(blur)]
    phases.clear()  # at full size every copy counts
    joined = torch.stack(lines, dim=-2).flatten(-3, -2)  # [B,C,h*f,w*f]
    return joined.narrow(2, rows.before, rows.pixels).narrow(3, columns.before, columns.pixels).contiguous()


def pool(phases: Tensor, cells: Cells) -> Tensor:
    """Mean over the pixels that a cell has in the image: [f*f,B,C,h,w] (0 where there is none) -> [B,C,h,w]."""
    return phases.sum(dim=0) * cells.share(phases)


class Raised:
    """Maps [B,C,h,w] at the image's size, bilinear with half-pixel centres, one phase at a time."""

    def __init__(self, maps: Tensor, blur: int) -> None:
        self._blur = blur
        grown = _grow(_grow(maps, 2), 3)
        self._rows = [_blend(grown, 2, row, blur) for row in range(blur)]

    def __getitem__(self, phase: int) -> Tensor:
        """[B,C,h,w] of a phase, freshly made."""
        return _blend(self._rows[phase // self._blur], 3, phase % self._blur, self._blur)


def _grow(maps: Tensor, dim: int) -> Tensor:
    """The first and the last cell along `dim` twice: what bilinear interpolation sees beyond the border."""
    return torch.cat([maps.narrow(dim, 0, 1), maps, maps.narrow(dim, maps.shape[dim] - 1, 1)], dim)


def _blend(grown: Tensor, dim: int, phase: int, blur: int) -> Tensor:
    """Values at pixel `phase` of every cell along `dim`, of maps with one more cell on either side."""
    offset = (phase + 0.5) / blur - 0.5  # of the pixel from its cell's centre, in cells
    count = grown.shape[dim] - 2
    return torch.lerp(grown.narrow(dim, 1, count), grown.narrow(dim, 0 if offset < 0 else 2, count), abs(offset))

"""Mean field of a conditional random field with a truncated window, as InfoScore's code runs it (a ConvCRF).

    p = l = log_softmax(unary)
    repeat: p = softmax(unary_weight * l + message_weight * up(sum_j K(i,j) pool(p)_j))
    K(i,j) = position_weight exp(-|x_i - x_j|^2 / 2) + colour_weight exp(-|c_i - c_j|^2 / 2)

over the cells j in a window around cell i, i itself included; nothing outside the image, no normalisation. x are pixel
coordinates over `position_scale`, c colours over `colour_scale`, both averaged over a cell of blur x blur pixels. `up`
is bilinear, with half-pixel centres. Messages attract. Three habits of that code are part of its numbers: the
log-softmax takes probabilities for logits, the first message is made of log-probabilities, and the softmax of the last
round is left out unless asked for.

Messages of all classes share one kernel. It is kept as dense blocks, each from the window around 4 x 8 cells to these
cells: twice as many numbers as there are pairs within a window, but a round of messages is a batch of matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from slime_bench.errors import ConfigError, DataError
from slime_bench.places import exact
from slime_bench.refine.crf_cells import Axis, Cells, Raised, join, pool, split
from slime_bench.refine.crf_config import CrfConfig

__all__ = ["CrfConfig", "CrfKernel", "crf_kernel", "mean_field"]

BLOCK = (4, 8)
"""Cells of a block, rows and columns: fastest of those tried on a CPU."""
CPU_CHUNK, GPU_CHUNK = 2**18, 2**26
"""Numbers worked on at a time: on a CPU they fit the second-level cache, on a GPU they bound the memory."""

_KERNEL_SETTINGS = ("window", "blur", "position_scale", "position_weight", "colour_scale", "colour_weight")


@dataclass(frozen=True, eq=False)
class CrfKernel:
    """The kernel of B images, for any number of mean fields.

    Attributes:
        blocks: float [B,ny,nx,T,S]: weights of the S cells around the block (y, x) for its T cells; without meaning
            where a cell is outside the image.
        size: (H, W) of the images, pixels.
        settings: the values of the configuration that it was made with.
    """

    blocks: Tensor
    size: tuple[int, int]
    settings: tuple[float, ...]


@dataclass(frozen=True)
class _Side:
    """Blocks along one axis: of `block` cells, that hear from `radius` cells more on either side."""

    axis: Axis
    block: int
    radius: int

    @property
    def blocks(self) -> int:
        return -(-self.axis.cells // self.block)

    @property
    def span(self) -> int:
        """Cells of the window around a block."""
        return self.block + 2 * self.radius

    @property
    def margins(self) -> tuple[int, int]:
        """Cells to add before and after, so that every block has its window."""
        return self.radius, self.radius + self.blocks * self.block - self.axis.cells

    def tables(self, scale: float, like: Tensor) -> tuple[Tensor, Tensor]:
        """The position kernel along this axis, and 1 within the window around a target: [blocks, block, span] each."""
        device = exact(like.device)
        first = torch.arange(self.blocks, device=device)[:, None] * self.block
        target = (first + torch.arange(self.block, device=device))[:, :, None]
        source = (first + torch.arange(self.span, device=device) - self.radius)[:, None]
        last = self.axis.cells - 1
        # Sources outside the image need no rule: their maps are 0.
        counts = (target - source).abs() <= self.radius
        start, end = self.axis.edges(device)
        centre = (start + end - 1).double() / 2
        distance = (centre[target.clamp(0, last)] - centre[source.clamp(0, last)]) / scale
        return (torch.exp(-(distance**2) / 2) * counts).to(like.dtype).to(like.device), counts.to(like)


@dataclass(frozen=True)
class _Blocks:
    """The blocks of an image."""

    rows: _Side
    columns: _Side

    @classmethod
    def of(cls, cells: Cells, config: CrfConfig) -> _Blocks:
        # Nothing is heard from beyond the image, however large the window.
        sides = zip((cells.rows, cells.columns), BLOCK, strict=True)
        return cls(*(_Side(axis, block, min(config.window // 2, axis.cells - 1)) for axis, block in sides))

    def windows(self, maps: Tensor) -> Tensor:
        """The window around each block, 0 outside the image: [B,C,h,w] -> view [B,ny,nx,C,rows,columns]."""
        padded = F.pad(maps, (*self.columns.margins, *self.rows.margins))
        parted = padded.unfold(2, self.rows.span, self.rows.block).unfold(3, self.columns.span, self.columns.block)
        return parted.permute(0, 2, 3, 1, 4, 5)

    def centres(self, windows: Tensor) -> Tensor:
        """The blocks within their windows: [..., rows, columns] -> [..., T]."""
        rows, columns = self.rows, self.columns
        return windows.narrow(-2, rows.radius, rows.block).narrow(-1, columns.radius, columns.block).flatten(-2)

    def assemble(self, blocks: Tensor) -> Tensor:
        """[B,ny,nx,C,T] -> [B,C,h,w]."""
        tiles = blocks.unflatten(-1, (self.rows.block, self.columns.block)).permute(0, 3, 1, 4, 2, 5)
        return tiles.flatten(4, 5).flatten(2, 3)[..., : self.rows.axis.cells, : self.columns.axis.cells]


def crf_kernel(image: Tensor, config: CrfConfig) -> CrfKernel:
    """The kernel of a batch of images; computed once, it serves every set of class maps of these images.

    Args:
        image: float [B,3,H,W], the network input (for InfoScore: ImageNet-normalised, padding included). float32 and
            float64 keep their type, others become float32.

    Returns:
        The kernel on the image's device; at 512 pixels and the default settings 24.8 MiB per image in float32.

    Raises:
        DataError: not such an image.
    """
    if image.dim() != 4 or image.shape[1] != 3 or not image.is_floating_point() or not image.numel():
        raise DataError(
            "the CRF cannot compare the colours of this image", found=f"{image.dtype} {tuple(image.shape)}",
            expected="floating-point numbers [B,3,H,W]", remedy="pass the normalised network input",
        )  # fmt: skip
    size = (image.shape[-2], image.shape[-1])
    cells = Cells.of(size, config.blur)
    blocks = _Blocks.of(cells, config)
    windows = blocks.windows(pool(split(_full(image) / config.colour_scale, cells), cells))
    rows, columns = (side.tables(config.position_scale, windows) for side in (blocks.rows, blocks.columns))
    parts = []
    for some in _chunks(blocks.rows.blocks, windows[:, 0, :, 0].numel() * BLOCK[0] * BLOCK[1], image.device):
        position, inside = (_outer(row[some], column) for row, column in zip(rows, columns, strict=True))
        colour = _colour_kernel(windows[:, some], blocks)
        parts.append(config.colour_weight * colour * inside + config.position_weight * position)
    return CrfKernel(torch.cat(parts, dim=1), size, _settings(config))


def mean_field(unary: Tensor, kernel: CrfKernel, config: CrfConfig) -> Tensor:
    """Class maps after `config.iterations` rounds of messages; differentiable.

    Args:
        unary: probabilities, float [B,C,H,W]. float32 and float64 keep their type, others become float32.
        kernel: of the same images, made with the same settings as far as they concern it.

    Returns:
        float [B,C,H,W] on the same device: probabilities with `final_softmax`, else scores, whose size grows with the
        kernel's sum. Without a round: the log-softmax of `unary`, also with `final_softmax`.

    Raises:
        DataError: maps of another shape, type or device than the kernel needs.
        ConfigError: a kernel of other settings.
    """
    _check(unary, kernel, config)
    with torch.autocast(unary.device.type, enabled=False):  # it would make the messages in half precision
        log_p = _full(unary).log_softmax(dim=1)
        if config.iterations == 0:
            return log_p
        cells = Cells.of(kernel.size, config.blur)
        phases = split(log_p, cells)
        del log_p
        pooled = pool(phases, cells)
        # Without gradients nobody else needs the phases, and at full size a second copy counts.
        phases = phases * config.unary_weight if phases.requires_grad else phases.mul_(config.unary_weight)
        share, inside = cells.share(phases), None if cells.whole else cells.inside(phases)
        blocks = _Blocks.of(cells, config)
        for _ in range(config.iterations - 1):
            raised = Raised(config.message_weight * _messages(pooled, kernel.blocks, blocks), config.blur)
            pooled = _summed_softmax(raised, phases, inside) * share
        raised = Raised(config.message_weight * _messages(pooled, kernel.blocks, blocks), config.blur)
        scores = join([raised[each] + phase for each, phase in enumerate(phases)], cells)
        return scores.softmax(dim=1) if config.final_softmax else scores


def _messages(pooled: Tensor, kernel: Tensor, blocks: _Blocks) -> Tensor:
    """sum_j K(i,j) pooled_j: [B,C,h,w] -> [B,C,h,w]."""
    windows = blocks.windows(pooled.to(kernel.dtype))  # [B,ny,nx,C,rows,columns]
    parts = []
    for some in _chunks(windows.shape[1], windows[:, 0].numel(), pooled.device):
        heard = windows[:, some].flatten(4)  # a copy: [B,y,nx,C,S]
        weights = kernel[:, some].transpose(-1, -2)  # [B,y,nx,S,T]
        parts.append(torch.bmm(heard.flatten(0, 2), weights.flatten(0, 2)).unflatten(0, heard.shape[:3]))
    return blocks.assemble(torch.cat(parts, dim=1)).to(pooled.dtype)


def _summed_softmax(raised: Raised, phases: Tensor, inside: Tensor | None) -> Tensor:
    """Sum over the pixels of each cell of the softmax of `raised + phases`: [f*f,B,C,h,w] -> [B,C,h,w].

    Phase by phase, but all at once where they are small: then calls cost more than what they do.
    """
    total = torch.zeros_like(phases[0])
    step = len(phases) if phases.numel() <= _chunk(phases.device) else 1
    for start in range(0, len(phases), step):
        group = [raised[each] for each in range(start, start + step)]
        found = (torch.stack(group) if step > 1 else group[0][None]).add_(phases[start : start + step]).softmax(dim=2)
        if inside is not None:
            found = found * inside[start : start + step]
        total = total + (found.sum(dim=0) if step > 1 else found[0])
    return total


def _colour_kernel(windows: Tensor, blocks: _Blocks) -> Tensor:
    """exp(-|c_i - c_j|^2 / 2): [B,y,nx,3,rows,columns] -> [B,y,nx,T,S]."""
    sources, targets = windows.flatten(-2).unbind(3), blocks.centres(windows).unbind(3)
    squares = windows.new_zeros(())
    # Differences: the expanded square would lose the digits that decide. Channel by channel, to need less memory.
    for source, target in zip(sources, targets, strict=True):
        squares = squares + (target[..., None] - source[..., None, :]) ** 2
    return torch.exp(squares * -0.5)


def _outer(rows: Tensor, columns: Tensor) -> Tensor:
    """[y,t,s], [nx,t',s'] -> [y,nx,t*t',s*s']."""
    product = rows[:, None, :, None, :, None] * columns[None, :, None, :, None, :]
    return product.flatten(4, 5).flatten(2, 3)


def _chunk(device: torch.device) -> int:
    return CPU_CHUNK if device.type == "cpu" else GPU_CHUNK


def _chunks(count: int, each: int, device: torch.device) -> Iterator[slice]:
    """Slices of `count` things of `each` numbers: as many as are worked on at a time, at least one."""
    step = max(1, _chunk(device) // each)
    return (slice(start, start + step) for start in range(0, count, step))


def _full(values: Tensor) -> Tensor:
    """At least float32."""
    return values if values.dtype == torch.float64 else values.float()


def _settings(config: CrfConfig) -> tuple[float, ...]:
    return tuple(float(getattr(config, name)) for name in _KERNEL_SETTINGS)


def _check(unary: Tensor, kernel: CrfKernel, config: CrfConfig) -> None:
    """Raise DataError or ConfigError where `mean_field` cannot work."""
    batch = len(kernel.blocks)
    fits = unary.dim() == 4 and len(unary) == batch and tuple(unary.shape[-2:]) == kernel.size and unary.shape[1] > 0
    if not fits or not unary.is_floating_point() or unary.device != kernel.blocks.device:
        raise DataError(
            "the CRF's class maps do not belong to its images",
            found=f"{unary.dtype} {tuple(unary.shape)} on {unary.device}",
            expected=f"floating-point numbers [{batch},C,{kernel.size[0]},{kernel.size[1]}] on {kernel.blocks.device}",
            remedy="pass probabilities at the size of the images that the kernel was made of",
        )
    if kernel.settings != _settings(config):
        raise ConfigError(
            "the CRF's kernel was made with other settings", path="refine",
            found=dict(zip(_KERNEL_SETTINGS, kernel.settings, strict=True)),
            expected=dict(zip(_KERNEL_SETTINGS, _settings(config), strict=True)), remedy="make the kernel again",
        )  # fmt: skip

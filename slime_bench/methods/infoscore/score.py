"""InfoScore: which layers' image-text attention segments well, told without labels ("Segmentation From Attention",
arXiv 2503.10779, as its code computes it).

A layer scores high when each image is about few prompts, the images together about many, and every prompt's share
varies from image to image.

Shapes: N images, B images of a batch, L layers, P prompts, C columns (prompts, or classes where the caller hands class
maps in place of prompt maps).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from slime_bench.attention.image_text import Size, to_image
from slime_bench.errors import BackboneError, ConfigError, DataError
from slime_bench.places import double

FLOOR = 1e-6
"""Least sum that a pixel is divided by, least share of a column in a pixel, least argument of the logarithm."""

MIN_IMAGES = 2
"""Of one image nothing varies: every layer would score 0."""


@torch.no_grad()
def pixel_shares(prompt_maps: Tensor, grid: Size, size: Size, align_corners: bool = True) -> Tensor:
    """Share of each column in each pixel: v_p(x) = max(u_p(x) / max(sum_p u_p(x), 1e-6), 1e-6), u the resized maps.

    Args:
        prompt_maps: float [B,P,h*w], not negative. grid: (h, w). size: (H, W) in pixels, padding included.

    Returns:
        float [B,P,H,W] in 1e-6..1; not divided once more after the floor, so the sum may be above 1 by P * 1e-6. No
        gradients.
    """
    maps = to_image(prompt_maps, grid, size, align_corners)  # a new tensor, so it may be worked on in place
    return maps.div_(maps.sum(1, keepdim=True).clamp_(min=FLOOR)).clamp_(min=FLOOR)


def info_marginal(prompt_maps: Tensor, grid: Size, size: Size, align_corners: bool = True) -> Tensor:
    """m_p: mean over all pixels of `pixel_shares`, whose arguments it has; float [B,P] in 1e-6..1.

    Images go one by one: the memory is that of one image's resized maps, whatever B is.
    """
    rows = [pixel_shares(maps[None], grid, size, align_corners).mean((2, 3)) for maps in prompt_maps]
    return torch.cat(rows) if rows else prompt_maps.new_zeros(prompt_maps.shape[:2])


def entropy(marginal: Tensor) -> Tensor:
    """H(m) = -sum_p m_p ln(max(m_p, 1e-6)) over the last axis, in nats: float [...,C] -> [...]."""
    return -(marginal * marginal.clamp(min=FLOOR).log()).sum(-1)


def moments(images: Tensor, total: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation from sums over images, of m and of m^2, each float [...,L,C].

    The variance is a difference of sums; around 0 and not another point, so that the error of std / mean, which counts
    as much for small columns as for large ones, is below about 1e-8 for every column (in float64).
    """
    mean = total / images
    return mean, (squares / images - mean.square()).clamp(min=0).sqrt()


def scores(images: Tensor, entropies: Tensor, total: Tensor, squares: Tensor) -> Tensor:
    """The five numbers of `Ranking`, in its order, from sums over images: float [5,...,L].

    Args:
        images: N, float []. entropies: sum of H(m_n), float [...,L]. total, squares: as in `moments`, float [...,L,C].
    """
    mean, std = moments(images, total, squares)
    image_entropy, all_entropy = entropies / images, entropy(mean)
    ratio, cov = all_entropy / image_entropy, (std / mean).sum(-1)
    return torch.stack([image_entropy, all_entropy, ratio, cov, ratio * cov])


class Ranking(NamedTuple):
    """InfoScore of L layers and what it is made of; tuples in running order of the layers.

    Attributes:
        layers: names.
        mean_image_entropy: mean over images of H(m_n), nats.
        dataset_entropy: H of the mean marginal, H(mean_n m_n), nats.
        entropy_ratio: dataset_entropy / mean_image_entropy; at least 1 but for rounding.
        cov: sum over columns of std_n(m_p) / mean_n(m_p), population standard deviation; at least 0.
        score: entropy_ratio * cov.
        images: N.
    """

    layers: tuple[str, ...]
    mean_image_entropy: tuple[float, ...]
    dataset_entropy: tuple[float, ...]
    entropy_ratio: tuple[float, ...]
    cov: tuple[float, ...]
    score: tuple[float, ...]
    images: int

    def order(self) -> tuple[str, ...]:
        """The layers' names, highest score first; among equals the one that runs first."""
        places = sorted(range(len(self.layers)), key=lambda index: -self.score[index])  # sorting is stable
        return tuple(self.layers[index] for index in places)

    def top(self, k: int) -> tuple[str, ...]:
        """The first `k` of `order`.

        Raises:
            ConfigError: fewer than one layer or more than there are.
        """
        if not 1 <= k <= len(self.layers):
            raise ConfigError(
                "the ranking cannot give so many layers", path="method.top", found=k,
                expected=f"1..{len(self.layers)}, the layers that were ranked",
            )  # fmt: skip
        return self.order()[:k]


class InfoScoreMetric(Metric):
    """InfoScore of every layer from a stream of images, in memory of L * C numbers however many images there are.

    Its states are sums over images in float64. So they can be added over processes, and neither the batches nor the
    order of the images change more than the last digits.

    Args:
        layers: names of the L layers, in running order. columns: C.

    Raises:
        ConfigError: no layer, a name twice, or fewer than two columns.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    images: Tensor  # float64 []
    entropies: Tensor  # float64 [L], sum of H(m_n)
    total: Tensor  # float64 [L,C], sum of m_n
    squares: Tensor  # float64 [L,C], sum of m_n^2

    def __init__(self, layers: Sequence[str], columns: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layers, self.columns = tuple(layers), int(columns)
        if not self.layers or len(set(self.layers)) < len(self.layers) or self.columns < 2:
            raise ConfigError(
                "InfoScore cannot rank this", found=f"layers {list(self.layers)}, {self.columns} columns",
                expected="at least one layer, none twice, and at least two prompts or classes",
            )  # fmt: skip
        shape = (len(self.layers), self.columns)
        for name, size in {"images": (), "entropies": shape[:1], "total": shape, "squares": shape}.items():
            self.add_state(name, default=torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, marginals: Tensor) -> None:
        """Add B images.

        Args:
            marginals: of `info_marginal`, float [B,L,C].

        Raises:
            ConfigError: another number of layers or columns than declared.
        """
        if marginals.ndim != 3 or marginals.shape[1:] != self.total.shape:
            raise ConfigError(
                "the marginals are not those of the ranked layers", found=list(marginals.shape),
                expected=f"[images, {len(self.layers)} layers, {self.columns} prompts or classes]",
            )  # fmt: skip
        marginals = double(marginals.detach()).to(self.total)
        self.images += len(marginals)
        self.entropies += entropy(marginals).sum(0)
        self.total += marginals.sum(0)
        self.squares += marginals.square().sum(0)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and population standard deviation over the images so far of this process, each float64 [L,C]."""
        return moments(self.images, self.total, self.squares)

    def compute(self) -> Ranking:
        """The scores of all images, those of other processes included.

        Raises:
            DataError: fewer than two images. BackboneError: a marginal was NaN or infinite.
        """
        images = round(float(self.images))
        if images < MIN_IMAGES:
            raise DataError(
                "InfoScore needs several images: it measures how they differ", found=f"{images} image(s)",
                expected=f"at least {MIN_IMAGES}",
                remedy="rank on more images, or name the layers in the configuration",
            )  # fmt: skip
        values = scores(self.images, self.entropies, self.total, self.squares)
        finite = values.isfinite().all(0).tolist()
        if not all(finite):
            raise BackboneError(
                "the attention of a layer is not finite, so it cannot be ranked",
                path=", ".join(name for name, fine in zip(self.layers, finite, strict=True) if not fine),
                found="NaN or infinity in its maps", remedy="use trainer.precision=bf16 or fp32",
            )  # fmt: skip
        rows = [tuple(row) for row in values.tolist()]
        return Ranking(self.layers, rows[0], rows[1], rows[2], rows[3], rows[4], images)

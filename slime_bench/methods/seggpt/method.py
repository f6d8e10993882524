"""SegGPT, Segmenting Everything In Context (Wang et al., ICCV 2023, arXiv 2304.03284): the support images with their
masks, painted in colours, are prompts; the network paints the mask of every test image. Nothing is learned.

With m_k(x) in [0,255] the mean of the three channels that a binary prompt of class k has painted at pixel x, t the
threshold:

    argmax               s_k = m_k / 255, s_background = t / 255
    painted              the same, and s_k(x) = 0 where m_j(x) > t for a class j after k
    background_prompt    s_k = m_k / 255 for all classes
    one prompt in colour s_k = -|c(x) - palette_k|^2 / (3 * 255^2), c(x) what was painted

and the label of a pixel is the argmax of its scores, the first of equal ones.

Shapes: B images, K classes, k support images, P prompts of a class, R side of what the network sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from slime_bench.backbones.seggpt import SegGptBackbone
from slime_bench.methods.features import Annotated, FittedMethod
from slime_bench.methods.seggpt.config import SegGptConfig, SegGptDescription
from slime_bench.places import onto


class SegGptMethod(SegGptDescription, FittedMethod):
    """The method as a Lightning module.

    Args:
        config: see `SegGptConfig`. protocol: without switches. backbone: frozen.
        classes: K names, `background` first. seed: of the trial; nothing is random.
    """

    implementation = None  # a subclass computes by itself

    def __init__(
        self, config: SegGptConfig, protocol: Any, backbone: SegGptBackbone, classes: Sequence[str], seed: int,
        keep_maps: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(backbone, classes, seed, keep_maps)
        self.config = config

    def fit(self, support: Annotated) -> dict[str, Tensor]:
        """The prompts: `pictures` float32 [k,3,R,R], normalised, and `labels` int64 [k,R,R]."""
        return {"pictures": self.backbone.pictures(support.images), "labels": self.backbone.labels(support.labels)}

    @torch.no_grad()
    def scores(self, images: Tensor, ids: Sequence[str]) -> Tensor:
        """Scores float32 [B,K,H,W], as the module's docstring says; made at R x R, and resized to the images by the
        nearest pixel, as the authors resize what was painted. A class that no support image shows is never predicted.
        """
        queries = self.backbone.pictures(images)
        found = self._by_colour(queries) if self.config.prompting == "colour" else self._by_class(queries)
        return self.without_absent(F.interpolate(found, size=tuple(images.shape[-2:]), mode="nearest"))

    def _by_class(self, queries: Tensor) -> Tensor:
        """Scores float32 [B,K,R,R] from a binary prompt for each class, of the support images that show it."""
        threshold, labels = self.config.threshold / 255, self._learned["labels"]
        classes = torch.arange(len(self.classes), device=labels.device)[:, None, None]
        shows = torch.stack([(each == classes).flatten(1).any(1) for each in labels], dim=1).cpu()  # [K,P]
        white = torch.tensor([[0, 0, 0], [255, 255, 255]], dtype=torch.uint8)
        means = queries.new_full((len(queries), len(self.classes), *queries.shape[-2:]), threshold)
        for k in range(0 if self.config.merge == "background_prompt" else 1, len(self.classes)):
            shown = onto(shows[k].nonzero()[:, 0], labels.device)
            if len(shown):
                masks = self.backbone.painted((labels[shown] == k).long(), white)
                means[:, k] = self._painted(queries, self._learned["pictures"][shown], masks).mean(1) / 255
        if self.config.merge == "painted":
            above = (means[:, 1:] > threshold).int()
            later = above.flip(1).cumsum(1).flip(1) - above  # classes after this one that cover the pixel
            means[:, 1:] = means[:, 1:].masked_fill(later > 0, 0.0)
        return means

    def _by_colour(self, queries: Tensor) -> Tensor:
        """Scores float32 [B,K,R,R] from one prompt that shows every class in its colour."""
        colours = palette(len(self.classes) - 1)
        masks = self.backbone.painted(self._learned["labels"], colours)
        found = self._painted(queries, self._learned["pictures"], masks)
        table = colours.to(found)[None, :, :, None, None]  # [1,K,3,1,1]
        return -torch.stack([(found - table[:, k]).square().sum(1) for k in range(table.shape[1])], 1) / (3 * 255**2)

    def _painted(self, queries: Tensor, pictures: Tensor, masks: Tensor) -> Tensor:
        """What is painted on the queries, float32 [B,3,R,R] in [0,255], prompted with P pictures and masks."""
        parts = []
        for some in queries.split(self.backbone.queries_per_call(len(pictures))):
            shape = (len(some), *pictures.shape)
            prompts = (pictures.expand(shape), masks.expand(shape))
            parts.append(self.backbone.paint(some, *prompts, self.config.ensemble, self.config.type_embedding))
        return torch.cat(parts)


def palette(labels: int) -> Tensor:
    """Colours of the background, black, and of `labels` classes after it, uint8 [1 + labels, 3]: the library's
    (transformers, models/seggpt), 255 minus multiples of one step, blue fastest; a single class is white."""
    from transformers.models.seggpt.image_processing_pil_seggpt import build_palette

    return torch.tensor(build_palette(labels), dtype=torch.uint8)

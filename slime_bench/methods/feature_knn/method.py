"""Training-free label propagation by dense nearest neighbours (OIParts, ACM MM 2024, arXiv 2503.01144), on the features
of Stable Diffusion alone: the paper adds DINOv2's, and ends with a bilateral solver, for which there is `refine`.

Every part c has channels S_c of its own, on which cells are compared by their cosine:

    score_c(q) = sum over the nearest support cells x of softmax(cos_{S_c}(q, x) / temperature) M_c(x)

with M_c the part's share of a cell, and background where no score reaches `threshold`.

Shapes: B images, K classes, N support cells, D channels, (h, w) cells of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from slime_bench.backbones.diffusion import transformers
from slime_bench.backbones.stable_diffusion import StableDiffusionBackbone
from slime_bench.methods.feature_knn.config import FeatureKnnConfig, FeatureKnnDescription
from slime_bench.methods.feature_probe.ridge import cell_labels, resized, retrieve
from slime_bench.methods.features import Annotated, FeatureMethod, Size
from slime_bench.places import onto


class FeatureKnn(FeatureKnnDescription, FeatureMethod):
    """The method as a Lightning module.

    Args:
        config: see `FeatureKnnConfig`. protocol: without switches. backbone: frozen.
        classes: K names, `background` first. seed: of the trial.

    Raises:
        BackboneError: a layer that the backbone does not have.
    """

    implementation = None  # a subclass computes by itself

    def __init__(
        self,
        config: FeatureKnnConfig,
        protocol: Any,
        backbone: StableDiffusionBackbone,
        classes: Sequence[str],
        seed: int,
        keep_maps: int = 0,
    ) -> None:
        super().__init__(backbone, classes, seed, keep_maps)
        self.config = config
        layers = type(backbone).describe(backbone.config).layers
        self._layers = transformers(layers, config.layers, "method.layers")

    def fit(self, support: Annotated) -> dict[str, Tensor]:
        """Features and labels of all support cells, and the channels of each part."""
        shares, labelled = cell_labels(support.labels, len(self.classes), self._grid(support.images))
        inside = (labelled.flatten() > 0).to(self.device)
        masks = shares.float().to(self.device).flatten(2).transpose(1, 2).flatten(0, 1)[inside]  # [N,K]
        bank = torch.cat([self._cells(support.part(here), "fit").flatten(0, 1) for here in self.calls(support)])[inside]
        channels = [
            kept_channels(bank, masks[:, k] >= 0.5, self.config.least_channels) for k in range(len(self.classes))
        ]
        return {"bank": bank, "masks": masks, "channels": torch.stack(channels)}

    @torch.no_grad()
    def scores(self, images: Tensor, ids: Sequence[str]) -> Tensor:
        """The parts' scores in [0,1] at the images' size, float32 [B,K,H,W]; the background's is `threshold`."""
        size, grid = (int(images.shape[-2]), int(images.shape[-1])), self._grid(images)
        cells = self._cells(Annotated(images, images[:, 0].long(), list(ids)), "test")
        bank, masks = self._learned["bank"], self._learned["masks"]
        channels = [onto(each.nonzero()[:, 0], images.device) for each in self._learned["channels"].cpu()]
        found = images.new_full((len(images), len(self.classes), *grid), self.config.threshold)
        for k in range(1, len(self.classes)):
            rows = F.normalize(bank[:, channels[k]], dim=1)
            for image, each in enumerate(cells):
                queries = F.normalize(each[:, channels[k]], dim=1)
                near = retrieve(queries, rows, masks[:, k : k + 1], self.config.neighbours, self.config.temperature)
                found[image, k] = near.view(grid)
        return self.without_absent(resized(found, size))

    def _grid(self, images: Tensor) -> Size:
        return self.latent(images) if self.config.grid is None else (self.config.grid, self.config.grid)

    def _cells(self, seen: Annotated, purpose: str) -> Tensor:
        """Features of unit length, float32 [B,h*w,D]."""
        maps = self.mean_hidden(seen, self.config.t, purpose, self.config.draws, self._layers).values()
        columns = torch.cat([resized(each, self._grid(seen.images)) for each in maps], dim=1)
        return F.normalize(columns, dim=1).flatten(2).transpose(1, 2)


def kept_channels(features: Tensor, part: Tensor, least: float) -> Tensor:
    """The channels on which a part is told best from the rest by two prototypes, the means of either.

    Channels are ordered by their variance within the part and within the rest, on average; of the prefixes that hold
    `least` of them or more, a hundredth apart, the first with the best IoU is kept.

    Args:
        features: float [N,D]. part: bool [N]; all channels are kept where it is everywhere or nowhere.

    Returns:
        bool [D].
    """
    width = features.shape[1]
    kept = torch.ones(width, dtype=torch.bool, device=features.device)
    if not bool(part.any()) or bool(part.all()):
        return kept
    sides = [features[part], features[~part]]
    order = torch.stack([each.var(0, correction=0) for each in sides]).mean(0).argsort(stable=True)
    best = -1.0
    for count in dict.fromkeys(round(width * percent / 100) for percent in range(round(100 * least), 101)):
        chosen = order[: max(1, count)]
        own, rest = (F.normalize(each[:, chosen].mean(0), dim=0) for each in sides)
        guess = F.normalize(features[:, chosen], dim=1) @ (own - rest) > 0
        score = float((guess & part).sum() / (guess | part).sum())
        if score > best:
            best, kept = score, torch.zeros_like(kept).index_fill(0, chosen, True)
    return kept

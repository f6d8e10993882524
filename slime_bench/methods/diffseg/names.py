"""Names for clusters: by the test labels (an oracle), by prototypes of the support images, by nouns. Pure functions.

Shapes: n clusters, K classes, C channels, (H, W) the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from slime_bench.metrics.iou import IGNORE, IouMetric, confusion, from_confusion
from slime_bench.places import double, onto


def named_scores(clusters: Tensor, names: Tensor, num_names: int) -> Tensor:
    """Score maps of names: the share of the strongest cluster of a name in the sum over all clusters.

        score_k(p) = max_{m: name(m) = k} A_m(p) / sum_m A_m(p), and 0 where no cluster has the name

    The argmax over k is the name of the cluster that is strongest at p, as in the authors' argmax over clusters.

    Args:
        clusters: A, float [n,H,W], not negative. names: int64 [n], 0..num_names-1.

    Returns:
        float32 [num_names,H,W] in [0,1].
    """
    shares = (clusters / clusters.sum(dim=0).clamp(min=torch.finfo(clusters.dtype).tiny)).float()
    found = shares.new_zeros(num_names, *shares.shape[1:])
    own = names.cpu()
    for name in own.unique().tolist():
        found[name] = shares[onto((own == name).nonzero()[:, 0], shares.device)].amax(dim=0)
    return found


# The oracle


def matched_names(clusters: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """The authors' names: clusters matched to classes one to one, so that most labelled pixels are right.

    Args:
        clusters: int64 [H,W], 0..n-1. label: int64 [H,W], 0..K-1 or 255, which does not count.

    Returns:
        int64 [n]: a class, or K for a cluster that is left over. A class that the image lacks takes one too.
    """
    seen = label != IGNORE
    count = int(clusters.max()) + 1
    width = max(count, num_classes)
    cells = (label[seen] * width + clusters[seen]).cpu()
    table = torch.bincount(cells, minlength=num_classes * width).view(num_classes, width)
    classes, matched = linear_sum_assignment(table.numpy(), maximize=True)
    names = torch.full((width,), num_classes)
    names[torch.from_numpy(matched)] = torch.from_numpy(classes)
    return names[:count].to(clusters.device)


class MatchedIou(IouMetric):
    """`IouMetric` for predictions that may also be K, no class: such a pixel is missing from its true class and is no
    false alarm of any other, as the authors count clusters that are left over."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds a batch: prediction int64 [B,H,W] in 0..K, target as in `IouMetric`."""
        classes = self.num_classes
        pixels = confusion(prediction, target, classes + 1, self.ignore_index)
        self.confusion = self.confusion + pixels[:, :classes, :classes].sum(dim=0).to(self.confusion.device)
        counts = from_confusion(pixels)
        for name in ("intersection", "union", "present"):
            getattr(self, name).append(getattr(counts, name)[:, :classes])


# Prototypes


def region_features(maps: Sequence[Tensor], regions: Tensor) -> Tensor:
    """Hidden features of regions of an image, float [R,sum of C].

        f_r = (1 / n_l) sum_q s_r(q) f_l(q) / |f_l(q)|, one layer l after the other

    with s_r(q) the region's share of the cell q, of n_l of the layer. Those of several images may be added up: only
    their direction is compared.

    Args:
        maps: hidden states of the layers, float [C,h,w] each. regions: bool [R,H,W].
    """
    found = []
    for features in maps:
        grid = (int(features.shape[-2]), int(features.shape[-1]))
        shares = F.adaptive_avg_pool2d(regions.to(features.dtype), grid).flatten(1)
        found.append(shares @ F.normalize(features.flatten(1), dim=0).T / shares.shape[1])
    return torch.cat(found, dim=1)


def nearest_names(features: Tensor, prototypes: Tensor) -> Tensor:
    """The class whose prototype points most nearly in a cluster's direction, argmax_k cos(f_m, f_k): int64 [n].

    Args:
        features: float [n,C]. prototypes: float [K,C]; those of absent classes are zero and are never the nearest.
    """
    cosines = F.normalize(features, dim=1) @ F.normalize(prototypes, dim=1).T
    return cosines.masked_fill(~prototypes.any(dim=1), -2).argmax(dim=1)


# Nouns


def noun_of_clusters(maps: Tensor, clusters: Tensor, vote: str) -> Tensor:
    """Which noun each cluster gets, int64 [n].

    Args:
        maps: float [W,H,W'], cross-attention of W nouns, see `slime_bench.methods.diffseg.aggregate.token_maps`; each
            is divided by its L2 norm over the image. clusters: int64 [H,W'], 0..n-1, all of them somewhere.
        vote: `mean`: the noun with the largest mean in the cluster. `median`: the median of the numbers of the nouns
            that are strongest at its pixels, what the authors' code calls "majority".
    """
    maps = maps / maps.flatten(1).norm(dim=1).clamp(min=torch.finfo(maps.dtype).tiny)[:, None, None]
    strongest, found = maps.argmax(dim=0), []
    for cluster in range(int(clusters.max()) + 1):
        inside = clusters == cluster
        if vote == "mean":
            found.append(maps[:, inside].mean(dim=1).argmax())
        else:
            found.append(double(strongest[inside]).quantile(0.5).long().to(strongest.device))
    return torch.stack(found)


def word_tokens(tokenizer: object, words: Sequence[str]) -> list[list[int]]:
    """Positions of each word's tokens in the prompt of these words with blanks between them, from 1 on: 0 starts it."""
    found, start = [], 1
    for word in words:
        count = len(tokenizer(word, add_special_tokens=False).input_ids)  # type: ignore[operator]
        found.append(list(range(start, start + count)))
        start += count
    return found

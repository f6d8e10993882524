"""The three losses of SLiMe as pure functions. B images, K classes, (h, w) the training map's size."""

from __future__ import annotations

import torch
from torch.nn import functional as F

IGNORE = 255


def class_weights(label: torch.Tensor, num_classes: int, rule: str) -> torch.Tensor:
    """Weights of the cross-entropy from one batch's label maps, float [K].

    Args:
        label: int64 [B,h,w], 255 = ignore.
        rule: `foreground`: foreground pixels / class pixels, background 1 (authors' code); `all`: all pixels / class
            pixels (paper). A class that is absent has weight 0.
    """
    # Without bincount, whose size a GPU would have to tell first.
    classes = torch.arange(num_classes, device=label.device)[:, None]
    counts = (label.flatten() == classes).sum(dim=1).float()
    total = counts[1:].sum() if rule == "foreground" else counts.sum()
    weights = torch.where(counts > 0, total / counts.clamp(min=1), torch.zeros_like(counts))
    if rule == "foreground":
        weights[0] = 1.0
    return weights


def cross_entropy(values: torch.Tensor, label: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted cross-entropy of softmax(values) (Eq. 4), divided by the sum of the weights of the pixels.

    Written with gather: CUDA's fused kernel for maps is not deterministic.

    Args:
        values: float [B,K,h,w], logits or whatever takes their place. label: int64 [B,h,w]. weights: float [K].
    """
    valid = label != IGNORE
    safe = label.masked_fill(~valid, 0)
    log_p = values.log_softmax(dim=1).gather(1, safe[:, None])[:, 0]
    pixel_weights = weights[safe] * valid
    # Where nothing is labelled the loss is 0, not NaN, which Adam would never recover from.
    return -(pixel_weights * log_p).sum() / pixel_weights.sum().clamp(min=torch.finfo(log_p.dtype).tiny)


def was_error(was: torch.Tensor, label: torch.Tensor, reduction: str) -> torch.Tensor:
    """Squared distance of WAS maps from the one-hot label map (second term of Eq. 8).

    Args:
        was: float [B,K,h,w]. label: int64 [B,h,w].
        reduction: `mean`: mean over pixels and classes, times K (authors' code); `sum`: over both, mean over images.
    """
    valid = (label != IGNORE)[:, None]
    target = F.one_hot(label.masked_fill(label == IGNORE, 0), was.shape[1]).permute(0, 3, 1, 2).to(was.dtype)
    squares = ((was - target) ** 2) * valid
    if reduction == "sum":
        return squares.sum() / len(was)
    return squares.sum() / valid.sum().clamp(min=1)


def guided(conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance: u + scale * (c - u), float [B,4,h,w]."""
    return unconditional + scale * (conditional - unconditional)


def mean_iou(prediction: torch.Tensor, label: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Mean over the images of the mean IoU of the classes that the label map shows, float [] in [0,1]; an image without
    a labelled pixel counts 0. For a curve: on a GPU nothing waits for it, unlike `slime_bench.metrics`.

    Args:
        prediction, label: int64 [B,h,w]; the label's 255 = ignore.
    """
    valid = (label != IGNORE).flatten(1)[:, None]  # [B,1,h*w]
    classes = torch.arange(num_classes, device=label.device)[None, :, None]
    found, wanted = ((each.flatten(1)[:, None] == classes) & valid for each in (prediction, label))  # [B,K,h*w]
    union, present = (found | wanted).sum(2), wanted.any(2)
    iou = (found & wanted).sum(2) / union.clamp(min=1) * present
    return (iou.sum(1) / present.sum(1).clamp(min=1)).mean()

"""Class maps from the image-text attention of a vision-language model. Pure functions, differentiable.

The steps are those of "Segmentation From Attention" (arXiv 2503.10779) as its code does them; the first choice of every
switch is the code's. Steps 1-2 `token_maps`, 3 `match_scores`, 4 `prompt_maps`, 5 `class_maps`, 6 `ensemble`.

Shapes: B images, P prompts, H heads, T tokens of a prompt, M keys = prefix + N, N = h*w patches row by row, K classes.
Everything is float32 on the inputs' device (float64 stays float64).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]
Span = tuple[int, int]

FLOOR = 1e-12
"""Least sum over classes that a pixel is divided by."""


def token_maps(
    scores: Tensor, mask: Tensor, *, prefix: int, attention: str = "scores", heads: str = "max", tokens: str = "sum"
) -> Tensor:
    """Steps 1-2, one map per prompt: a_p(k) = sum_t mask_p(t) max_h s_p(h,t,k), keys of the prefix left out.

    Args:
        scores: q.k / sqrt(d) before the softmax, float [B,P,H,T,M].
        mask: bool [P,T], True for the tokens that count. Padding must not; whether [CLS] and [SEP] do is the caller's
            choice. A prompt of which no token counts gets zeros.
        prefix: keys before the patches, 1 for the image's [CLS].
        attention: `scores` as they are, or `probabilities`: their softmax over all M keys, the prefix included.
        heads: `max` or `mean` over heads.
        tokens: `sum` or `mean` over the tokens that count. By the sum longer prompts have larger maps.

    Returns:
        float [B,P,N]; any real number, in 0..T for probabilities.
    """
    if attention == "probabilities":
        scores = scores.softmax(-1)
    scores = scores[..., prefix:]
    maps = _max(scores, 2) if heads == "max" else scores.mean(2)  # [B,P,T,N]
    summed = maps.masked_fill(~mask[:, :, None], 0).sum(2)
    return summed if tokens == "sum" else summed / mask.sum(1).clamp(min=1)[:, None]


def match_scores(match: Tensor, mask: Tensor, how: str = "all") -> Tensor:
    """Step 3, one matching score per image and prompt.

    Args:
        match: match probability read at every position, float [B,P,T] in [0,1]; [B,P,1] where there is one per prompt,
            which then is the score in every way but `none`.
        mask: bool [P,T], True for a token, False for padding.
        how: `all`: largest of all positions, padding included, so that the score can depend on how far the list was
            padded; `tokens`: largest of the positions in `mask`; `cls`: the first position; `none`: 1.

    Returns:
        float [B,P] in [0,1].
    """
    if how == "none":
        return torch.ones_like(match[..., 0])
    if how == "cls" or match.shape[-1] == 1:
        return match[..., 0]
    return _max(match if how == "all" else match.masked_fill(~mask, 0), -1)  # probabilities: 0 never wins


def prompt_maps(token_maps: Tensor, match: Tensor, over: str = "prompts") -> Tensor:
    """Step 4: w_p(k) = r_p softmax_p(a(k))_p.

    Args:
        token_maps: a, float [B,P,N]. match: r, float [B,P].
        over: softmax over the `prompts` at every patch, or over the `patches` of every prompt.

    Returns:
        float [B,P,N] in [0,1].
    """
    return token_maps.softmax(1 if over == "prompts" else 2) * match[:, :, None]


def class_maps(prompt_maps: Tensor, spans: Sequence[Span], background: str = "sum", foreground: str = "max") -> Tensor:
    """Step 5, one map per class.

    Args:
        prompt_maps: float [B,P,N]. spans: [start, end) of the prompts of each class, class 0 first.
        background: `sum` or `max` over the prompts of class 0. foreground: the same for the other classes.

    Returns:
        float [B,K,N].
    """
    maps = []
    for index, (start, end) in enumerate(spans):
        own = prompt_maps[:, start:end]
        maps.append(own.sum(1) if (foreground if index else background) == "sum" else _max(own, 1))
    return torch.stack(maps, 1)


def to_image(maps: Tensor, grid: Size, size: Size, align_corners: bool = True) -> Tensor:
    """Step 6, first half: bilinear resize of maps on patches to pixels.

    Args:
        maps: float [B,C,N]. grid: (h, w) with h * w = N. size: (H, W) in pixels.
        align_corners: the centres of the corner patches lie on the centres of the corner pixels; otherwise a patch
            covers its own pixels (half-pixel centres).

    Returns:
        float [B,C,H,W].
    """
    return F.interpolate(maps.unflatten(-1, grid), size=size, mode="bilinear", align_corners=align_corners)


def ensemble(
    layers: Sequence[Tensor], grid: Size, size: Size, align_corners: bool = True, normalise: str = "after"
) -> Tensor:
    """Step 6: class probabilities of one or more layers, u_c = v_c / max(sum_c v_c, 1e-12).

    Resize and mean are linear, so the layers are averaged on patches and resized once, where that is the same.

    Args:
        layers: class maps of the chosen layers, each float [B,K,N]. grid: (h, w). size: (H, W) in pixels.
        align_corners: as in `to_image`.
        normalise: `after`: v is the mean over layers of the resized maps, so that a layer counts by its magnitude;
            `per_layer`: each layer is resized and divided, then averaged; `before_resize`: the mean over layers is
            divided on patches, then resized.

    Returns:
        float [B,K,H,W] in [0,1]; sums to 1 over K, but for pixels where no class has anything (0).
    """
    if normalise == "per_layer":
        return _mean([_to_sum_one(to_image(maps, grid, size, align_corners)) for maps in layers])
    mean = _mean(layers)
    if normalise == "before_resize":
        return to_image(_to_sum_one(mean), grid, size, align_corners)
    return _to_sum_one(to_image(mean, grid, size, align_corners))


def _mean(maps: Sequence[Tensor]) -> Tensor:
    return maps[0] if len(maps) == 1 else torch.stack(list(maps)).mean(0)


def _to_sum_one(maps: Tensor) -> Tensor:
    """Divided by the sum over classes (axis 1), which is taken as at least `FLOOR`."""
    return maps / maps.sum(1, keepdim=True).clamp(min=FLOOR)


def _max(values: Tensor, dim: int) -> Tensor:
    """Maximum over one axis. Its gradient goes to a single place, also among equals, as in the authors' code.

    `max` keeps the places for that, `amax` would keep the values (H times as much) and share the gradient out; without
    gradient `amax` is several times faster.
    """
    tracked = values.requires_grad and torch.is_grad_enabled()
    return values.max(dim).values if tracked else values.amax(dim)

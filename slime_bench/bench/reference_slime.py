"""SLiMe written out plainly: every N x N map of both guidance halves is stored, as the authors' code stores them.

Tests take it for an oracle of the memory-linear path, and the speed bench for the authors' way of computing. Written
from the equations of the paper and from a description of the authors' golden numbers; it imports nothing else of
`slime_bench`, so that a mistake there cannot be here as well.

Shapes: B images, K classes, H heads, N query positions, M keys, T text tokens, (h, w) a layer's grid. The first axis of
everything stored has 2B rows: B of the empty prompt, then B of the text, as the authors' guidance batch has.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Size = tuple[int, int]


@dataclass(frozen=True)
class Stored:
    """One attention layer: scores q.k / sqrt(head width) before the softmax, float [2B,H,N,M]; N = h * w of `grid`."""

    scores: Tensor
    grid: Size

    @property
    def conditional(self) -> Tensor:
        """The text's half of the scores, float [B,H,N,M]."""
        return self.scores[len(self.scores) // 2 :]


def resize(maps: Tensor, size: Size) -> Tensor:
    """Bilinear resize of float [...,h,w] with half-pixel centres, as a product with two weight matrices."""
    sides = zip(maps.shape[-2:], size, strict=True)
    rows, columns = (_bilinear(old, new, maps.dtype, maps.device) for old, new in sides)
    return rows @ maps @ columns.T


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # kept for whoever comes next, perhaps with gradients
def _bilinear(old: int, new: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Weights [new, old] of the old samples in each new one."""
    weights = torch.zeros(new, old, dtype=torch.float64)
    for index in range(new):
        at = max((index + 0.5) * old / new - 0.5, 0.0)
        low = min(int(at), old - 1)
        weights[index, low] += 1 - (at - low)
        weights[index, min(low + 1, old - 1)] += at - low
    return weights.to(device, dtype)


def cross_maps(layers: Sequence[Stored], num_classes: int, size: Size, *, softmax: bool) -> Tensor:
    """Cross maps of the text's half, float [B,K,*size]: softmax over all T tokens per head, or none; then the class
    tokens, the resize, the mean over heads, the mean over layers."""
    total = []
    for layer in layers:
        scores = layer.conditional.softmax(-1) if softmax else layer.conditional
        maps = scores[..., :num_classes].transpose(-1, -2).unflatten(-1, layer.grid)  # [B,H,K,h,w]
        total.append(resize(maps, size).mean(1))
    return torch.stack(total).mean(0)


def self_attention(layers: Sequence[Stored]) -> Tensor:
    """A(q, p): softmax over keys p, mean over heads and layers; float [B,N,N]."""
    return torch.stack([layer.conditional.softmax(-1).mean(1) for layer in layers]).mean(0)


def was(attention: Tensor, maps: Tensor) -> Tensor:
    """WAS_k(q) = sum_p A(q, p) R_k(p) (Eq. 6): float [B,N,N], float [B,K,h,w] -> float [B,K,h,w].

    As the authors' code forms it: all K N N products in memory at once, then their sum over the keys.
    """
    products = attention.mT[:, None] * maps.flatten(2)[..., None]  # [B,K,key,query]
    return products.sum(2).view_as(maps)


@dataclass(frozen=True)
class Losses:
    """The terms of Eq. 8 as the authors' code computes them, and their weighted sum."""

    cross_entropy: Tensor
    was: Tensor
    diffusion: Tensor
    total: Tensor


def losses(
    cross: Sequence[Stored],
    self_: Sequence[Stored],
    predicted: Tensor,
    noise: Tensor,
    label: Tensor,
    num_classes: int,
    *,
    guidance: float,
    alpha: float,
    beta: float,
) -> Losses:
    """The three losses of one guidance batch.

    Args:
        cross, self_: the stored layers. predicted: noise predictions [2B,4,h,w]. noise: what was added, [B,4,h,w].
        label: int64 [B,S,S] at the size of the training maps.
    """
    size = (int(label.shape[-2]), int(label.shape[-1]))
    weights = [1.0]
    foreground = sum(int((label == c).sum()) for c in range(1, num_classes))
    for c in range(1, num_classes):
        pixels = int((label == c).sum())
        weights.append(foreground / (pixels + 1e-6) if pixels else 0.0)
    logits = cross_maps(cross, num_classes, size, softmax=False)
    first = torch.nn.functional.cross_entropy(logits, label, weight=torch.tensor(weights).to(logits))
    probabilities = cross_maps(cross, num_classes, self_[0].grid, softmax=False).softmax(1)
    accumulated = resize(was(self_attention(self_), probabilities), size)
    one_hot = torch.stack([(label == c) for c in range(num_classes)], 1).to(accumulated)
    second = num_classes * ((accumulated - one_hot) ** 2).mean()
    empty, text = predicted.chunk(2)
    third = ((empty + guidance * (text - empty) - noise) ** 2).mean()
    return Losses(first, second, third, first + alpha * second + beta * third)


def predict(
    maps: Tensor,
    attention: Tensor,
    boxes: Sequence[Sequence[int]],
    frame: int,
    size: int,
    threshold: float,
) -> Tensor:
    """Patched prediction before the argmax, float [K,size,size].

    Args:
        maps: P of each patch, float [P,K,h,w]. attention: A of each patch, float [P,N,N].
        boxes: (y0, y1, x0, x1) of each patch in a frame of `frame` x `frame` pixels. threshold: of the token gate.
    """
    factor = frame // size
    total = maps.new_zeros(maps.shape[1], size, size)
    counter = torch.zeros_like(total) + 1e-7
    for patch, matrix, box in zip(maps, attention, boxes, strict=True):
        y0, y1, x0, x1 = (edge // factor for edge in box)
        extent = ((box[1] - box[0]) // factor, (box[3] - box[2]) // factor)
        first = True
        for k in range(len(patch)):
            low, high = patch[k].min(), patch[k].max()
            if high < threshold:
                continue
            used = torch.where(patch[k] > patch[k].mean(), patch[k], 0.0) if first else patch[k]
            first = False
            spread = resize(was(matrix[None], used[None, None])[0, 0], extent)
            stretch = (spread.max() - spread.min()) / (high - low)
            if stretch == 0 or torch.isnan(stretch):
                stretch = torch.full_like(stretch, 1e-7)
            total[k, y0:y1, x0:x1] += spread / stretch + (low - spread.min() / stretch)
            counter[k, y0:y1, x0:x1] += 1
    return total / counter


class _StoringProcessor:
    """Attention of a diffusers layer with the score matrix formed and kept: the "classic" one, by baddbmm and bmm."""

    def __init__(self, name: str, kept: dict[str, Tensor]) -> None:
        self._name, self._kept = name, kept

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """hidden_states [2B,N,C], encoder_hidden_states [2B,M,E] or None -> [2B,N,C]."""
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            linear(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2).flatten(0, 1)
            for linear, x in ((attn.to_q, hidden_states), (attn.to_k, source), (attn.to_v, source))
        )
        empty = query.new_empty(len(query), query.shape[1], key.shape[1])
        scores = torch.baddbmm(empty, query, key.mT, beta=0, alpha=query.shape[-1] ** -0.5)
        self._kept[self._name] = scores.unflatten(0, (-1, attn.heads))
        mixed = torch.bmm(scores.softmax(-1), value).unflatten(0, (-1, attn.heads))
        return attn.to_out[0](mixed.transpose(1, 2).flatten(2))


@contextmanager
def storing(unet: Any, names: Sequence[str]) -> Iterator[Mapping[str, Tensor]]:
    """Keep the score matrices [2B,H,N,M] of the named layers of every pass in the block; others stay as they are."""
    kept: dict[str, Tensor] = {}
    layers = {name: unet.get_submodule(name) for name in names}
    before = {name: layer.processor for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.set_processor(_StoringProcessor(name, kept))
        yield kept
    finally:
        for name, layer in layers.items():
            layer.set_processor(before[name])


@dataclass(frozen=True)
class Pass:
    """One pass of the guidance batch: stored layers, and the predicted noise [2B,4,h,w]."""

    cross: list[Stored]
    self_: list[Stored]
    noise: Tensor


def both_halves(
    unet: Any,
    cross_names: Sequence[str],
    self_names: Sequence[str],
    noisy: Tensor,
    timesteps: Tensor,
    empty: Tensor,
    text: Tensor,
) -> Pass:
    """The guidance batch through a diffusers U-Net: noisy [B,4,h,w], timesteps int64 [B], empty and text [1,T,E].

    Every square layer is taken to lie on a grid that has the latent's proportions.
    """
    count = len(noisy)
    prompts = torch.cat([empty.expand(count, -1, -1), text.expand(count, -1, -1)])
    with storing(unet, [*cross_names, *self_names]) as kept:
        noise = unet(torch.cat([noisy, noisy]), torch.cat([timesteps, timesteps]), prompts).sample
    height, width = int(noisy.shape[-2]), int(noisy.shape[-1])

    def stored(name: str) -> Stored:
        scores = kept[name]
        part = round((height * width / scores.shape[2]) ** 0.5)
        return Stored(scores, (height // part, width // part))

    return Pass([stored(name) for name in cross_names], [stored(name) for name in self_names], noise)

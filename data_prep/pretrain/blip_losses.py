"""What the mini BLIP is trained with: matching, contrast, and a pull that keeps attention scores comparable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertTokenizer, BlipForImageTextRetrieval

from data_prep.pretrain.blip_captions import GRIDS, TILES, Caption
from slime_bench.backbones.base import IMAGENET


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [B,H,W,3] -> float32 [B,3,H,W]."""
    values = pixels.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(each, device=pixels.device)[:, None, None] for each in IMAGENET)
    return (values - mean) / std


@dataclass
class Packed:
    """The captions of B images, those of one image one after another in one sequence, so that the image's keys and
    values are computed once.

    Attributes:
        ids, positions: int64 [B,S]; positions start again at every caption. mask: float32 [B,1,S,S], 0 within a caption
            and very negative between captions.
        segment: int64 [B,S]: number of the caption, counted over all images; -1 for padding.
        image, start: int64 [N]: of every caption its image and the place of its first token. match: bool [N].
        weight: float32 [N], of its losses.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    segment: torch.Tensor
    image: torch.Tensor
    start: torch.Tensor
    match: torch.Tensor
    weight: torch.Tensor
    tiles: torch.Tensor
    tile_weight: torch.Tensor
    grid: torch.Tensor

    def to(self, device: torch.device) -> Packed:
        return Packed(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def read(self, model: BlipForImageTextRetrieval, states: torch.Tensor | None = None) -> torch.Tensor:
        """The text encoder's states of the captions, float [B,S,D], with the image's `states` [B,1+N,D] or without."""
        return model.text_encoder(
            input_ids=self.ids, position_ids=self.positions, attention_mask=self.mask, encoder_hidden_states=states
        ).last_hidden_state

    def of_captions(self, values: torch.Tensor) -> torch.Tensor:
        """Means over the tokens of each caption: float [B,S,N] -> [captions,N]."""
        valid = self.segment >= 0
        segment = self.segment[valid]
        sums = values.new_zeros(len(self.match), values.shape[-1]).index_add(0, segment, values[valid])
        return sums / torch.bincount(segment, minlength=len(self.match))[:, None]


def pack(tokenizer: BertTokenizer, captions: Sequence[Sequence[Caption]]) -> Packed:
    """Tokenise and pack the captions of each image."""
    tokens = [[tokenizer(caption.text).input_ids for caption in each] for each in captions]
    length = max(sum(map(len, each)) for each in tokens)
    ids = torch.full((len(tokens), length), int(tokenizer.pad_token_id or 0))
    positions, segment = torch.zeros_like(ids), torch.full_like(ids, -1)
    image: list[int] = []
    start: list[int] = []
    for row, each in enumerate(tokens):
        at = 0
        for piece in each:
            ids[row, at : at + len(piece)] = torch.tensor(piece)
            positions[row, at : at + len(piece)] = torch.arange(len(piece))
            segment[row, at : at + len(piece)] = len(image)
            image.append(row)
            start.append(at)
            at += len(piece)
    apart = segment[:, :, None] != segment[:, None, :]
    every = [caption for each in captions for caption in each]
    tiles = [[truth is True for truth in each.tiles] or [each.truth] for each in every]
    weights = [each.tile_weights or (each.weight,) for each in every]
    mask = apart.float().masked_fill(apart, -1e4)[:, None]
    return Packed(
        ids=ids,
        positions=positions,
        mask=mask,
        segment=segment,
        image=torch.tensor(image),
        start=torch.tensor(start),
        match=torch.tensor([each.truth for each in every]),
        weight=torch.tensor([each.weight for each in every]),
        tiles=torch.tensor([[*each, *[False] * (TILES - len(each))] for each in tiles]),
        tile_weight=torch.tensor([[*each, *[0.0] * (TILES - len(each))] for each in weights]),
        grid=torch.tensor([each.grid for each in every]),
    )


def pack_texts(tokenizer: BertTokenizer, captions: Sequence[Sequence[Caption]]) -> tuple[Packed, torch.Tensor]:
    """The different captions of several images, in as many rows, and the place of every caption among them, int64 [N]:
    most captions of a batch are the same few words."""
    every = [caption for each in captions for caption in each]
    places: dict[str, int] = {}
    of = [places.setdefault(caption.text, len(places)) for caption in every]
    some = [Caption(text, True) for text in places]
    size = -(-len(some) // len(captions))
    rows = [some[at : at + size] for at in range(0, len(some), size)]
    return pack(tokenizer, rows), torch.tensor(of)


@dataclass
class Scores:
    """Cross-attention queries and keys of some layers, while `recorded` is open."""

    queries: list[torch.Tensor] = field(default_factory=list)
    keys: list[torch.Tensor] = field(default_factory=list)


@contextmanager
def recorded(model: BlipForImageTextRetrieval, layers: Iterable[int]) -> Iterator[Scores]:
    """Keep what the named layers' cross-attention projects."""
    scores, handles = Scores(), []
    for index in layers:
        inner = model.text_encoder.encoder.layer[index].crossattention.self
        handles.append(inner.query.register_forward_hook(lambda m, i, out: scores.queries.append(out)))
        handles.append(inner.key.register_forward_hook(lambda m, i, out: scores.keys.append(out)))
    try:
        yield scores
    finally:
        for handle in handles:
            handle.remove()


def attention_losses(
    scores: Scores, heads: int, packed: Packed, gain: nn.Parameter, grounded: int
) -> dict[str, torch.Tensor]:
    """Two losses on the cross-attention's scores before the softmax, means over layers.

    `level`: mean of logsumexp(scores)^2 over the tokens: zero where every row of scores holds log-probabilities. A
    softmax over patches ignores a constant that is added to a row; the method compares rows of different prompts. Of
    all recorded layers.

    `evidence`: binary cross-entropy of whether a caption is true, from its scores: the largest over heads, the mean
    over its tokens, the log-sum-exp over patches, tile by tile of a mosaic. So the scores of a false caption are low
    everywhere; where those of a true one are high, nobody says. Of the first `grounded` of them.

    Args:
        gain: log of the scale, and offset, of the evidence's logits, float [2].
    """
    valid = packed.segment >= 0
    zero = torch.zeros((), device=packed.ids.device)
    found = {"level": zero, "evidence": zero}
    for number, (query, key) in enumerate(zip(scores.queries, scores.keys, strict=True)):
        q, k = (each.float().unflatten(-1, (heads, -1)).transpose(1, 2) for each in (query, key))  # [B,heads,S,d]
        raw = (q / q.shape[-1] ** 0.5) @ k.transpose(-1, -2)  # [B,heads,S,1+N]
        level = torch.logsumexp(raw, dim=-1).square().transpose(1, 2)[valid].mean()
        found["level"] = found["level"] + level / len(scores.queries)
        if number < grounded:
            maps = packed.of_captions(raw[..., 1:].amax(1))
            logits = by_tile(maps, packed.grid, torch.logsumexp) * gain[0].exp() + gain[1]
            evidence = told_apart(logits, packed.tiles, packed.tile_weight)
            found["evidence"] = found["evidence"] + evidence / grounded
    return found


@dataclass
class Texts:
    """The different captions of a batch, read once without any image.

    Attributes:
        first: states of their first tokens, float [U,D].
        mean: normalised projections of their tokens, the mean over each caption's, float [U,D'].
        of: int64 [N], the place here of every caption of the batch.
    """

    first: torch.Tensor
    mean: torch.Tensor
    of: torch.Tensor


def read_texts(model: BlipForImageTextRetrieval, alone: Packed, of: torch.Tensor) -> Texts:
    """Args:
    alone: the different captions, packed as if each row were an image.
    """
    states = alone.read(model)
    tokens = F.normalize(model.text_proj(states).float(), dim=-1)
    return Texts(states[alone.image, alone.start], alone.of_captions(tokens), of)


def contrast(
    model: BlipForImageTextRetrieval, image: torch.Tensor, text: torch.Tensor, scale: nn.Parameter
) -> torch.Tensor:
    """Symmetric contrastive loss of B images and their captions.

    Args:
        image: class tokens float [B,D]. text: first tokens of the captions alone, float [B,D].
    """
    left, right = F.normalize(model.vision_proj(image), dim=-1), F.normalize(model.text_proj(text), dim=-1)
    logits = left @ right.T * scale.exp().clamp(max=100)
    if not len(logits):
        return (image.sum() + scale) * 0  # every process has to have the same gradients
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def fine_contrast(
    model: BlipForImageTextRetrieval, states: torch.Tensor, texts: Texts, packed: Packed, gain: nn.Parameter
) -> torch.Tensor:
    """Binary cross-entropy of whether a caption is true, from how similar its tokens and the patches are: the mean over
    tokens, the largest over patches, tile by tile of a mosaic (after FILIP, arXiv 2111.07783).

    Args:
        states: float [B,1+N,D]. gain: scale and offset of the logits, float [2].
    """
    patches = F.normalize(model.vision_proj(states[:, 1:]).float(), dim=-1)
    maps = torch.einsum("cd,cnd->cn", texts.mean[texts.of], patches[packed.image])
    logits = by_tile(maps, packed.grid, torch.amax) * gain[0].exp() + gain[1]
    return told_apart(logits, packed.tiles, packed.tile_weight)


def by_tile(maps: torch.Tensor, grid: torch.Tensor, reduce: Callable[..., torch.Tensor]) -> torch.Tensor:
    """`reduce` (amax or logsumexp) of maps on patches over each tile: float [N,h*w] -> [N,TILES].

    Args:
        grid: int64 [N], tiles along a side, 1 or one of `GRIDS`. With fewer than `TILES` the last columns hold 0.
    """
    side = round(maps.shape[1] ** 0.5)
    left, found = maps.unflatten(1, (side, side)), maps.new_zeros(len(maps), TILES)
    for tiles in sorted((1, *GRIDS), reverse=True):
        side = left.shape[1] // tiles
        left = reduce(left.unflatten(1, (tiles, side)).unflatten(3, (tiles, side)), dim=(2, 4))  # [N,tiles,tiles]
        values = F.pad(left.flatten(1), (0, TILES - tiles * tiles))
        found = torch.where((grid == tiles)[:, None], values, found)
    return found


def told_apart(logits: torch.Tensor, truth: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy, weighted mean; all of one shape."""
    losses = F.binary_cross_entropy_with_logits(logits, truth.float(), reduction="none")
    return (losses * weights).sum() / weights.sum().clamp(min=1.0)

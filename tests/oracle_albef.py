"""A small ALBEF in plain torch and float64, written from its description alone: names as in the released checkpoints.

Source: golden/infoscore/README.md, section 9: a pre-norm vision transformer (layer norm 1e-6), a post-norm BERT (1e-12)
with token types, of which the first layers see text alone and the later ones look at the image between self-attention
and feed-forward. No module of the library or of the bench is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

VISION_WIDTH, TEXT_WIDTH, HEAD = 24, 32, 8
PATCH, SIDE, POSITIONS = 8, 4, 24


def shapes(words: int, layers: int = 4, fusion: int = 2, blocks: int = 2) -> dict[str, tuple[int, ...]]:
    """What the pre-training script stores: both towers, the head of language modelling, momentum copies, queues."""
    v, t = VISION_WIDTH, TEXT_WIDTH
    vision: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, v), "pos_embed": (1, 1 + SIDE**2, v)}
    vision |= _linear("patch_embed.proj", v, 3, PATCH, PATCH) | _pair("norm", v)
    for index in range(blocks):
        block = f"blocks.{index}."
        vision |= _pair(f"{block}norm1", v) | _pair(f"{block}norm2", v) | _linear(f"{block}attn.qkv", 3 * v, v)
        vision |= _linear(f"{block}attn.proj", v, v) | _linear(f"{block}mlp.fc1", 2 * v, v)
        vision |= _linear(f"{block}mlp.fc2", v, 2 * v)
    text: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (words, t),
        "embeddings.position_embeddings.weight": (POSITIONS, t),
        "embeddings.token_type_embeddings.weight": (2, t),
    } | _pair("embeddings.LayerNorm", t)
    for index in range(layers):
        layer = f"encoder.layer.{index}."
        for name, width in [("attention", t), *([("crossattention", v)] if index >= fusion else [])]:
            text |= _linear(f"{layer}{name}.self.query", t, t) | _linear(f"{layer}{name}.self.key", t, width)
            text |= _linear(f"{layer}{name}.self.value", t, width) | _linear(f"{layer}{name}.output.dense", t, t)
            text |= _pair(f"{layer}{name}.output.LayerNorm", t)
        text |= _linear(f"{layer}intermediate.dense", 3 * t, t) | _linear(f"{layer}output.dense", t, 3 * t)
        text |= _pair(f"{layer}output.LayerNorm", t)
    made = {f"visual_encoder.{name}": shape for name, shape in vision.items()}
    made |= {f"text_encoder.bert.{name}": shape for name, shape in text.items()}
    made |= {f"visual_encoder_m.{name}": shape for name, shape in vision.items()}
    made |= {f"text_encoder_m.bert.{name}": shape for name, shape in text.items()}
    head = _linear("transform.dense", t, t) | _pair("transform.LayerNorm", t) | _linear("decoder", words, t)
    made |= {f"text_encoder.cls.predictions.{name}": shape for name, shape in {"bias": (words,), **head}.items()}
    for name, width in (("vision_proj", v), ("text_proj", t)):
        made |= _linear(name, 16, width) | _linear(f"{name}_m", 16, width)
    return made | _linear("itm_head", 2, t) | {"temp": (), "image_queue": (16, 8), "text_queue": (16, 8)}


def _linear(name: str, rows: int, *columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, *columns), f"{name}.bias": (rows,)}


def _pair(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


@dataclass
class Fused:
    """hidden [P,T,D] of the last layer; scores [P,H,T,M] before the softmax, by layer index; match [P,T]."""

    hidden: Tensor
    scores: dict[int, Tensor]
    match: Tensor


class Albef:
    """Runs on a state dict with the pre-training script's names (`text_encoder.bert.`)."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = {name: value.double() for name, value in state.items()}

    def look(self, images: Tensor) -> Tensor:
        """Normalised images [B,3,H,W] -> [B,1+N,D]."""
        at = "visual_encoder."
        x = F.conv2d(
            images.double(), self[f"{at}patch_embed.proj.weight"], self[f"{at}patch_embed.proj.bias"], stride=PATCH
        )
        grid, table = x.shape[-2:], self[f"{at}pos_embed"]
        places = table[:, 1:].reshape(1, SIDE, SIDE, -1).permute(0, 3, 1, 2)
        if tuple(grid) != (SIDE, SIDE):
            places = F.interpolate(places, size=grid, mode="bicubic", align_corners=False)
        places = torch.cat([table[:, :1], places.flatten(2).transpose(1, 2)], 1)
        x = torch.cat([self[f"{at}cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1) + places
        for index in range(sum(name.endswith("attn.qkv.weight") and name.startswith(at) for name in self.state)):
            block = f"{at}blocks.{index}."
            query, key, value = self._linear(f"{block}attn.qkv", self._norm(f"{block}norm1", x, 1e-6)).chunk(3, -1)
            weights = (_heads(query) @ _heads(key).mT * HEAD**-0.5).softmax(-1)
            x = x + self._linear(f"{block}attn.proj", _join(weights @ _heads(value)))
            inner = F.gelu(self._linear(f"{block}mlp.fc1", self._norm(f"{block}norm2", x, 1e-6)))
            x = x + self._linear(f"{block}mlp.fc2", inner)
        return self._norm(f"{at}norm", x, 1e-6)

    def fuse(self, ids: Tensor, mask: Tensor, image: Tensor) -> Fused:
        """ids [P,T], mask bool [P,T], one image's states [1,M,D]."""
        at = "text_encoder.bert."
        x = self[f"{at}embeddings.word_embeddings.weight"][ids]
        x = x + self[f"{at}embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = x + self[f"{at}embeddings.token_type_embeddings.weight"][torch.zeros_like(ids)]
        x = self._norm(f"{at}embeddings.LayerNorm", x, 1e-12)
        bias = (1 - mask.double())[:, None, None] * -10000.0
        scores: dict[int, Tensor] = {}
        index = 0
        while f"{at}encoder.layer.{index}.attention.self.query.weight" in self.state:
            layer = f"{at}encoder.layer.{index}."
            x, _ = self._attend(f"{layer}attention", x, x, bias)
            if f"{layer}crossattention.self.query.weight" in self.state:
                x, scores[index] = self._attend(f"{layer}crossattention", x, image.expand(len(x), -1, -1), 0)
            inner = self._linear(f"{layer}output.dense", F.gelu(self._linear(f"{layer}intermediate.dense", x)))
            x = self._norm(f"{layer}output.LayerNorm", inner + x, 1e-12)
            index += 1
        return Fused(x, scores, self._linear("itm_head", x).softmax(-1)[..., 1])

    def _attend(self, name: str, x: Tensor, source: Tensor, bias: Tensor | int) -> tuple[Tensor, Tensor]:
        query = _heads(self._linear(f"{name}.self.query", x))
        key, value = (_heads(self._linear(f"{name}.self.{part}", source)) for part in ("key", "value"))
        scores = query @ key.mT / HEAD**0.5
        mixed = self._linear(f"{name}.output.dense", _join((scores + bias).softmax(-1) @ value))
        return self._norm(f"{name}.output.LayerNorm", mixed + x, 1e-12), scores

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self[f"{name}.weight"].mT + self[f"{name}.bias"]

    def _norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        spread = x.var(-1, correction=0, keepdim=True)
        return (x - x.mean(-1, keepdim=True)) / (spread + eps).sqrt() * self[f"{name}.weight"] + self[f"{name}.bias"]

    def __getitem__(self, name: str) -> Tensor:
        return self.state[name]


def _heads(x: Tensor) -> Tensor:
    """[B,N,D] -> [B,D/HEAD,N,HEAD]."""
    return x.unflatten(-1, (-1, HEAD)).transpose(1, 2)


def _join(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(-2)

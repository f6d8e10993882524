"""BLIP and ALBEF as frozen backbones, in the library's own modules.

Scores come from hooks on the queries and keys of `text_encoder.encoder.layer.N.crossattention`. What ALBEF's text-only
layers make of a list of prompts is kept for its next image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from slime_bench.attention.attend import full
from slime_bench.backbones.base import CLIP, IMAGENET, Size, channels, chosen_layers, patch_grid
from slime_bench.backbones.blip_text import ImageFreeCache, captured, fuse, image_free, scores
from slime_bench.backbones.load import DTYPES, blip_class, load_blip_tokenizer, load_network
from slime_bench.backbones.vision_language import Albef, Blip
from slime_bench.backbones.vlm import (
    ImageText,
    Prompts,
    Reduce,
    VlmBackbone,
    check_finite,
    check_prompts,
    finite_sum,
    wrong_length,
)
from slime_bench.backbones.weights import PREPROCESSOR, check_hashes, read_json


class BlipBackbone(Blip, VlmBackbone):
    """A vision tower and a text tower that looks at it; see `VlmBackbone` for what it offers.

    Its parameters have the library's names, without a prefix, so that what is tuned fits the stock model.

    Raises:
        BackboneError: weights missing, corrupt or of another architecture, or an image size that the patches do not
            divide.
    """

    implementation: ClassVar[str | None] = None
    num_prefix_keys = 1
    mean: Tensor
    std: Tensor

    def __init__(self, config: Blip.Config) -> None:
        super().__init__()
        self.config = config
        folder = self.folder_of(config)
        check_hashes(folder)
        architecture, self.facts = self.read_folder(folder, config.image_size)
        self.layers = self.facts.layers
        self._first = _index(self.layers[0])
        kind = blip_class(self._first if self.fusion else None)
        network = load_network(kind, folder, DTYPES[config.dtype], config=architecture)
        self.tokenizer = load_blip_tokenizer(folder, int(architecture.text_config.vocab_size))
        self.vision_model, self.text_encoder = network.vision_model, network.text_encoder
        self.itm_head = network.itm_head
        statistics, stated = IMAGENET, folder / PREPROCESSOR
        if config.statistics == "own":
            statistics = channels(stated, read_json(stated) if stated.is_file() else {}, CLIP)
        for name, values in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self._image_free = ImageFreeCache() if self._first else image_free
        self.requires_grad_(False).eval()

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.itm_head.weight.dtype

    def grid(self, size: Size) -> Size:
        return patch_grid(size, self.facts.patch)

    def tokenize(self, prompts: Sequence[str]) -> Prompts:
        texts = check_prompts(prompts)
        found = self.tokenizer(
            list(texts), padding=True, return_special_tokens_mask=True, return_tensors="pt", verbose=False
        )
        mask = found["attention_mask"].bool()
        special = found["special_tokens_mask"].bool() & mask
        for text, length, own in zip(texts, mask.sum(1).tolist(), (mask & ~special).sum(1).tolist(), strict=True):
            if length > self.facts.num_tokens or not own:
                raise wrong_length(text, length, self.facts.num_tokens)
        device = self.itm_head.weight.device
        with torch.inference_mode(False):  # plain tensors: a later pass with gradients may meet them
            return Prompts(texts, *(each.clone().to(device) for each in (found["input_ids"], mask, special)))

    def encode_images(self, images: Tensor) -> Tensor:
        self.grid((images.shape[-2], images.shape[-1]))
        with torch.inference_mode(False), torch.no_grad():
            pixels = (images.float() - self.mean) / self.std
            return self.vision_model(pixels.to(self.dtype), interpolate_pos_encoding=True).last_hidden_state

    def read(self, states: Tensor, prompts: Prompts, reduce: Reduce, layers: Sequence[str] | None = None) -> ImageText:
        chosen = {name: self._cross(name).self for name in chosen_layers(self.layers, layers)}
        ids, mask = prompts.ids.to(states.device), prompts.mask.to(states.device)
        heads = int(self.text_encoder.config.num_attention_heads)
        maps: dict[str, Any] = {}
        sums: dict[str, Tensor] = {}

        def take(name: str, query: Tensor, key: Tensor) -> None:
            found = scores(query, key, heads, prompts=len(ids))
            sums[name] = finite_sum(found)
            maps[name] = reduce(found)

        with captured(chosen, take):
            attended = self._image_free(self.text_encoder, ids, mask, self._first)
            hidden = fuse(self.text_encoder, attended, mask, states, self._first)
        match = full(self.itm_head(hidden)).softmax(-1)[..., 1]
        check_finite({**sums, "match": finite_sum(match)}, self.dtype)
        return ImageText(maps, match)

    def tuned(self, layers: Sequence[str]) -> dict[str, nn.Parameter]:
        """Word embeddings and all of `crossattention` of these layers."""
        words = "text_encoder.embeddings.word_embeddings.weight"
        found = {words: self.text_encoder.embeddings.word_embeddings.weight}
        for name in chosen_layers(self.layers, layers):
            prefix = f"text_encoder.encoder.{name}.crossattention."
            found |= {prefix + key: value for key, value in self._cross(name).named_parameters()}
        return found

    def _cross(self, name: str) -> Any:
        return self.text_encoder.encoder.layer[_index(name)].crossattention


class AlbefBackbone(Albef, BlipBackbone):
    """Frozen ALBEF; see `BlipBackbone`."""

    implementation = None


def _index(name: str) -> int:
    return int(name.removeprefix("layer."))

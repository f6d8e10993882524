"""SegGPT as a frozen backbone, in the library's own modules: shown a picture with its mask painted in colours, it
paints the mask of another picture in the same colours.

    [prompt picture; query picture]  and  [prompt mask; mask token]   two streams of patches, averaged after layer m
    -> [.; painted mask of the query]

Pre- and post-processing are those of the authors' `run_one_image`: resized by Pillow without keeping the aspect (images
bicubic, masks by the nearest pixel), ImageNet's statistics for images and masks alike.

Shapes: N queries, P prompts of each, R side of the pictures that the network sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from slime_bench.backbones.base import IMAGENET
from slime_bench.backbones.in_context import SegGpt
from slime_bench.backbones.load import DTYPES, load_network
from slime_bench.backbones.weights import check_hashes
from slime_bench.places import double, onto

Ensemble = Literal["authors", "transformers"]
TypeEmbedding = Literal["instance", "semantic"]
BICUBIC = Image.Resampling.BICUBIC
ATTENTION_MAPS = 4
"""Attention maps of all heads that a layer holds at its peak: products, relative positions added, softmax, and its copy
in the precision of the weights."""


class SegGptBackbone(SegGpt, nn.Module):
    """The network; see `paint`.

    Raises:
        BackboneError: weights missing, corrupt or of another architecture.
    """

    implementation: ClassVar[str | None] = None
    mean: Tensor
    std: Tensor

    def __init__(self, config: SegGpt.Config) -> None:
        from transformers import SegGptForImageSegmentation as Network

        super().__init__()
        self.config = config
        folder = self.folder_of(config)
        check_hashes(folder)
        architecture, self.facts = self.read_folder(folder)
        self.network = load_network(Network, folder, DTYPES[config.dtype], config=architecture)
        for name, values in zip(("mean", "std"), IMAGENET, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> SegGptBackbone:
        """Stays in evaluation mode: no dropped paths, whatever the trainer asks for."""
        return super().train(False)

    def pictures(self, images: Tensor) -> Tensor:
        """Images float [B,3,H,W] in [0,1] -> float32 [B,3,R,R], normalised; resized in 8 bits, as Pillow does."""
        side = self.facts.side
        if images.shape[-2:] != (side, side):
            bytes_ = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            resized = [np.asarray(Image.fromarray(each).resize((side, side), BICUBIC)) for each in bytes_]
            images = onto(torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2), images.device) / 255
        return (images.float() - self.mean) / self.std

    def labels(self, labels: Tensor) -> Tensor:
        """Label maps int64 [B,H,W] -> [B,R,R], by the nearest pixel in Pillow's sense."""
        side = (self.facts.side, self.facts.side)
        return F.interpolate(double(labels[:, None]), size=side, mode="nearest-exact")[:, 0].long().to(labels.device)

    def painted(self, labels: Tensor, colours: Tensor) -> Tensor:
        """Label maps int64 [B,R,R] as masks float32 [B,3,R,R], normalised.

        Args:
            colours: uint8 [C,3], of the labels 0 to C-1, in 0..255; a mask of 0 and 1 would be black to the network.
                Other labels (255 = ignore) are black.
        """
        table = torch.zeros(256, 3, device=labels.device)
        table[: len(colours)] = onto(colours, table) / 255
        return (table[labels].permute(0, 3, 1, 2) - self.mean) / self.std

    def queries_per_call(self, prompts: int) -> int:
        """N that `memory_gb` holds, at least 1: two streams of P prompts, `ATTENTION_MAPS` maps of (2 R^2 / p^2)^2
        float32 for each head."""
        tokens = 2 * (self.facts.side // self.facts.patch) ** 2
        each = 2 * prompts * ATTENTION_MAPS * self.facts.heads * tokens**2 * 4
        return max(1, int(self.config.memory_gb * 1e9 // each))

    @torch.no_grad()
    def paint(
        self, queries: Tensor, prompts: Tensor, masks: Tensor, ensemble: Ensemble = "authors",
        type_embedding: TypeEmbedding = "instance",
    ) -> Tensor:  # fmt: skip
        """The masks of the queries, in the colours of their prompts: float32 [N,3,R,R] in [0,255].

        With P > 1 the attention's output on the query's half is averaged over the prompts in every layer: image and
        mask streams apart as long as they are two.

        Args:
            queries: float32 [N,3,R,R], of `pictures`. prompts: float32 [N,P,3,R,R], pictures too.
            masks: float32 [N,P,3,R,R], of `painted`.
            ensemble: `authors` is as above; `transformers` averages over both streams too in the layer after which they
                are merged, as the library does. Equal for P = 1.
            type_embedding: what is added to every token.
        """
        count, side = prompts.shape[1], self.facts.side
        if count == 1:
            return self._call(queries, prompts[:, 0], masks[:, 0], type_embedding)
        with self._ensemble(ensemble):  # the library averages over the batch: one query at a time
            rows = [
                self._call(query.expand(count, 3, side, side), shown, mask, type_embedding, feature_ensemble=True)[:1]
                for query, shown, mask in zip(queries, prompts, masks, strict=True)
            ]
        return torch.cat(rows)

    def _call(
        self, queries: Tensor, prompts: Tensor, masks: Tensor, type_embedding: TypeEmbedding, **settings: Any
    ) -> Tensor:
        dtype = self.network.dtype
        found = self.network(
            pixel_values=queries.to(dtype), prompt_pixel_values=prompts.to(dtype), prompt_masks=masks.to(dtype),
            embedding_type=type_embedding, **settings,
        ).pred_masks  # fmt: skip
        return ((found[:, :, self.facts.side :].float() * self.std + self.mean) * 255).clamp(0, 255)

    @contextmanager
    def _ensemble(self, kind: Ensemble) -> Iterator[None]:
        """The library's layers are told how many streams to average apart; the authors say two up to and including the
        layer after which they are merged, the library says one there."""
        if kind == "transformers":
            yield
            return
        encoder = self.network.model.encoder
        last = encoder.layers[self.network.config.merge_index]
        handle = last.register_forward_pre_hook(lambda _, given: (given[0], 2, *given[2:]))
        try:
            yield
        finally:
            handle.remove()

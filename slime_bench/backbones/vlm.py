"""What every vision-language backbone offers: images to states, prompts to tokens, both to attention scores per layer.

A backbone knows no method. It hands the raw scores of one layer after the other to a function of the caller (`Reduce`),
which keeps what it wants of them, so that no more than one layer's scores exist at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from slime_bench.backbones.base import Size, VisionLanguage
from slime_bench.errors import BackboneError

Reduce = Callable[[Tensor], Any]
"""Of float32 scores [B,P,H,T,M] (images, prompts, heads, tokens, keys) of one layer, what is to be kept."""


@dataclass(frozen=True)
class Prompts:
    """A tokenised list of P prompts, padded to the longest, T tokens.

    Attributes:
        texts: as they were given.
        ids: int64 [P,T].
        mask: bool [P,T], True for a token, False for padding.
        special: bool [P,T], True for a token that stands for no text, such as [CLS] and [SEP].
    """

    texts: tuple[str, ...]
    ids: Tensor
    mask: Tensor
    special: Tensor


@dataclass(frozen=True)
class ImageText:
    """One pass over B images and P prompts.

    Attributes:
        maps: by the layer's name, in running order, what `reduce` made of its scores.
        match: probability that image and text match, read at every position, padding included: float32 [B,P,T] in
            [0,1]; [B,P,1] where the model has one per prompt.
    """

    maps: dict[str, Any]
    match: Tensor


class VlmBackbone(VisionLanguage, nn.Module, ABC):
    """A frozen vision-language model. Parameters require gradients only when someone switches that on, see `tuned`.

    Attributes:
        layers: names of the layers that give maps, in running order.
        num_prefix_keys: keys before those of the patches, 1 for the image's [CLS]. The caller drops them.
    """

    implementation: ClassVar[str | None] = None
    layers: tuple[str, ...]
    num_prefix_keys: int

    def train(self, mode: bool = True) -> VlmBackbone:
        """Stays in evaluation mode: no dropout, whatever the trainer asks for, also while parts of it are tuned."""
        return super().train(False)

    @abstractmethod
    def grid(self, size: Size) -> Size:
        """Patches (h, w) of an image of `size` = (H, W) pixels; see `patch_grid`.

        Raises:
            BackboneError: an image of a size that the model cannot take.
        """

    @abstractmethod
    def tokenize(self, prompts: Sequence[str]) -> Prompts:
        """Token ids of prompts, on the device of the backbone.

        Raises:
            BackboneError: no prompt, an empty one, or one of too many tokens.
        """

    @abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """States of images; never with gradients.

        Args:
            images: float32 [B,3,H,W], RGB in [0,1]; normalised inside.

        Returns:
            float [B,prefix+h*w,D], in the precision of the weights.

        Raises:
            BackboneError: as `grid`.
        """

    @abstractmethod
    def read(self, states: Tensor, prompts: Prompts, reduce: Reduce, layers: Sequence[str] | None = None) -> ImageText:
        """Show every prompt every image; gradients flow where they are enabled.

        Args:
            states: [B,...], as `encode_images` gives them.
            reduce: called once per chosen layer, in running order, with its scores q.k / sqrt(d) before the softmax,
                float32 [B,P,H,T,M] whatever the precision of the weights.
            layers: names of the layers to be read; None for all.

        Raises:
            BackboneError: a layer that is not there or named twice, an empty list of layers, or numbers that are not
                finite.
        """

    @abstractmethod
    def tuned(self, layers: Sequence[str]) -> dict[str, nn.Parameter]:
        """The parameters that one-shot tuning of these layers optimises, by their names in the state dict.

        Raises:
            BackboneError: as `read`.
        """


def check_prompts(prompts: Sequence[str]) -> tuple[str, ...]:
    """The prompts, each with at least one character.

    Raises:
        BackboneError: no prompt at all, or one that is empty or blank.
    """
    if not prompts or not all(text.strip() for text in prompts):
        raise BackboneError(
            "there is no prompt, or one is empty", path="prompts", found=list(prompts),
            expected="texts of at least one character", remedy="see conf/prompts",
        )  # fmt: skip
    return tuple(prompts)


def wrong_length(text: str, found: int, allowed: int) -> BackboneError:
    """The error for a prompt of `found` tokens where the model takes `allowed`, or where none of them is a word's."""
    return BackboneError(
        "a prompt is longer than the model's text limit, or holds no word that it knows", path=f"prompt {text[:60]!r}",
        found=f"{found} tokens, special ones included", expected=f"words, at most {allowed} tokens",
        remedy="give a class name or a few words",
    )  # fmt: skip


def finite_sum(values: Tensor) -> Tensor:
    """One number, 0-d, that is finite if and only if all of `values` are (short of sums beyond float32's range).

    Nothing is waited for: on a GPU the number is looked at later, see `check_finite`.
    """
    return values.detach().sum(dtype=torch.float32)


def check_finite(sums: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Refuse a pass in which numbers left the range of their type.

    Args:
        sums: `finite_sum` of every layer's scores and of the match probabilities, by a name for the message.
        dtype: precision of the weights.

    Raises:
        BackboneError: one of them is NaN or infinite.
    """
    finite = torch.isfinite(torch.stack(list(sums.values()))).tolist()
    first = next((name for name, fine in zip(sums, finite, strict=True) if not fine), None)
    if first is not None:
        raise BackboneError(
            "the backbone's attention scores are not finite", path=first,
            found=f"NaN or infinity, with weights in {str(dtype).removeprefix('torch.')}",
            expected="finite numbers (float16 ends at 65504)",
            remedy="trainer.precision=bf16 or fp32 instead of fp16; else check the images and the weights, and retrain "
            "with a lower learning rate if these weights were tuned",
        )  # fmt: skip

"""What all backbones share before weights are loaded, and what every vision-language model is asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal

from slime_bench.backbones.weights import unusable
from slime_bench.config.parts import Part
from slime_bench.errors import BackboneError

Precision = Literal["fp32", "bf16", "fp16"]
"""What frozen weights may be read into."""

Size = tuple[int, int]
"""(height, width)."""

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of the three channels of pixels in [0,1]."""

IMAGENET: Final[Statistics] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""What the second paper's code normalises with."""

CLIP: Final[Statistics] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""CLIP's statistics, which BLIP and ALBEF were trained with."""


@dataclass(frozen=True)
class VlmFacts:
    """What a method may ask before weights are loaded.

    Attributes:
        layers: names of the layers that give maps, in running order, such as `layer.0`.
        patch: pixels per patch along a side.
        num_tokens: tokens that a prompt may have, special ones included.
        image_size: side in pixels that is fixed for good; None for any multiple of the patch.
    """

    layers: tuple[str, ...]
    patch: int
    num_tokens: int
    image_size: int | None = None


class VisionLanguage(Part, ABC):
    """A vision-language model, which `slime_bench.backbones.vlm.VlmBackbone` computes."""

    @classmethod
    @abstractmethod
    def content_hash_of(cls, config: Any) -> str:
        """sha256 of the weights and configuration files that `config` points to; nothing is loaded."""

    @classmethod
    @abstractmethod
    def describe(cls, config: Any) -> VlmFacts:
        """What can be known from the JSON files alone.

        Raises:
            BackboneError: files that are missing or of another kind.
        """


def chosen_layers(available: Sequence[str], layers: Sequence[str] | None) -> tuple[str, ...]:
    """The chosen ones of the available layers, in running order; all of them for None.

    Raises:
        BackboneError: an empty list, an unknown name or a name twice.
    """
    if layers is None:
        return tuple(available)
    if isinstance(layers, str):
        layers = [layers]
    if not layers:
        raise BackboneError(
            "no layer is named", path="method.layers", found="an empty list",
            expected=f"at least one of {', '.join(available)}", remedy=f"e.g. method.layers=[{available[-1]}]",
        )  # fmt: skip
    for name in layers:
        if name not in available:
            close = get_close_matches(str(name), available, n=3, cutoff=0.6)
            raise BackboneError(
                "the backbone has no layer of this name", path="method.layers", found=name,
                expected=f"one of {', '.join(available)}",
                remedy=f"did you mean {' or '.join(close)}?" if close else "name one of these layers",
            )  # fmt: skip
    twice = sorted({name for name in layers if list(layers).count(name) > 1})
    if twice:
        raise BackboneError(
            "a layer is named twice", path="method.layers", found=twice[0], expected="each name once",
            remedy="leave one out",
        )  # fmt: skip
    return tuple(name for name in available if name in layers)


def patch_grid(size: Size, patch: int, image_size: int | None = None) -> Size:
    """Patches (h, w) of an image of `size` = (H, W) pixels.

    Args:
        patch: side of a patch in pixels. image_size: side that the model is fixed to; None for any multiple of `patch`.

    Raises:
        BackboneError: a side shorter than a patch, or no multiple of it, or another one than the fixed one.
    """
    height, width = int(size[0]), int(size[1])
    expected = None
    if min(height, width) < patch:
        summary, expected = "the image is smaller than a patch", f"sides of at least {patch} pixels"
    elif height % patch or width % patch:
        summary, expected = "the image cannot be cut into patches", f"sides that are multiples of {patch} pixels"
    elif image_size is not None and (height, width) != (image_size, image_size):
        summary, expected = "the model takes images of one size only", f"{image_size}x{image_size} pixels"
    if expected is not None:
        side = image_size or max(patch, patch * round(max(height, width) / patch))
        raise BackboneError(
            summary, path="backbone.image_size", found=f"{height}x{width} pixels (height x width)", expected=expected,
            remedy=f"resize or pad the images, e.g. backbone.image_size={side}",
        )  # fmt: skip
    return height // patch, width // patch


def channels(path: Path, mean: Any, deviation: Any) -> Statistics:
    """Pixel statistics, as the file at `path` states them.

    Raises:
        BackboneError: not three numbers each, or deviations that are not above 0.
    """
    for values in (mean, deviation):
        numbers = [each for each in values if type(each) in (int, float)] if isinstance(values, list | tuple) else []
        if len(numbers) != 3 or len(values) != 3 or (values is deviation and min(numbers) <= 0):
            raise unusable(
                path, f"image_mean {mean}, image_std {deviation}", "three numbers each, those of image_std above 0"
            )
    return tuple(map(float, mean)), tuple(map(float, deviation))

"""What all backbones share before weights are loaded, and what every vision-language model is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from slime_bench.backbones.weights import Layout, find, unusable
from slime_bench.config.parts import Part
from slime_bench.errors import BackboneError
from slime_bench.imagenet import IMAGENET as IMAGENET

Precision = Literal["fp32", "bf16", "fp16"]
"""What frozen weights may be read into."""

Size = tuple[int, int]
"""(height, width)."""

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of the three channels of pixels in [0,1]."""

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


class DiffusionModel(Part):
    """A diffusion model whose network's hidden states can be read. What computes has `alphas_cumprod` float32 [T] and

    latent_shape(size) -> (c, h, w) of the noise for one image of `size` = (H, W) pixels
    features(images, timesteps, draws, layers, text=None) -> name -> float32 [B,C,h_l,w_l]
    feature_shapes(size, layers) -> name -> (C, h_l, w_l), without a pass
    unet, the network that `layers` name modules of
    """


class InFolder(Part):
    """A model that is found as a folder.

    Attributes:
        layout: the files that it consists of.
    """

    layout: ClassVar[Layout]

    @classmethod
    def layout_of(cls, config: Any) -> Layout:
        """The files that `config` needs."""
        return cls.layout

    @classmethod
    def folder_of(cls, config: Any) -> Path:
        """Where the model of `config` lies; everything that it needs is there.

        Raises:
            BackboneError: see `slime_bench.backbones.weights.find`.
        """
        return find(config.weights, getattr(config, "revision", None), cls.layout_of(config))

    @classmethod
    def content_hash_of(cls, config: Any) -> str:
        """sha256 of the weights and configuration files that `config` points to; nothing is loaded."""
        return cls.layout_of(config).fingerprint(cls.folder_of(config))


class VisionLanguage(Part):
    """A vision-language model, which `slime_bench.backbones.vlm.VlmBackbone` computes. Before it is loaded it has

    content_hash_of(config) -> sha256 of the weights and configuration files that `config` points to
    describe(config) -> `VlmFacts`, from the JSON files alone
    """


def check_names(key: str, names: Sequence[str], available: Iterable[str]) -> None:
    """Refuse a list of layers that is empty, or names one that is not there or one twice.

    Args:
        key: of the configuration.

    Raises:
        BackboneError: it says which names there are, and the nearest ones.
    """
    there = list(available)
    wrong = [name for name in names if name not in there or list(names).count(name) > 1]
    if names and not wrong:
        return
    close = get_close_matches(str(wrong[0]), there, n=3, cutoff=0.5) if wrong else there[-1:]
    raise BackboneError(
        "the backbone has no layer of this name, or it is named twice" if wrong else "no layer is named", path=key,
        found=wrong[0] if wrong else "an empty list", expected=f"at least one of {', '.join(there)}, each once",
        remedy=f"did you mean {' or '.join(close)}?" if close else "name one of these layers",
    )  # fmt: skip


def chosen_layers(available: Sequence[str], layers: Sequence[str] | None) -> tuple[str, ...]:
    """The chosen ones of the available layers, in running order; all of them for None.

    Raises:
        BackboneError: an empty list, an unknown name or a name twice.
    """
    if layers is None:
        return tuple(available)
    check_names("method.layers", layers, available)
    return tuple(name for name in available if name in layers)


def patch_grid(size: Size, patch: int) -> Size:
    """Patches (h, w) of an image of `size` = (H, W) pixels, `patch` pixels along a side each.

    Raises:
        BackboneError: a side shorter than a patch, or no multiple of it.
    """
    height, width = int(size[0]), int(size[1])
    if min(height, width) < patch or height % patch or width % patch:
        raise BackboneError(
            "the image cannot be cut into patches", path="backbone.image_size",
            found=f"{height}x{width} pixels (height x width)",
            expected=f"sides that are multiples of {patch} pixels, and at least that",
            remedy=f"resize or pad the images, e.g. backbone.image_size={patch * max(1, round(max(size) / patch))}",
        )  # fmt: skip
    return height // patch, width // patch


def channels(path: Path, content: Mapping[str, Any], default: Statistics | None = None) -> Statistics:
    """Pixel statistics that the file at `path` states in its `content`; those of `default` that it leaves out.

    Raises:
        BackboneError: not three numbers each, or deviations that are not above 0.
    """
    mean, deviation = default or (None, None)
    mean, deviation = content.get("image_mean", mean), content.get("image_std", deviation)
    try:
        found = tuple(map(float, mean)), tuple(map(float, deviation))
    except (TypeError, ValueError):
        found = (), ()
    if len(found[0]) != 3 or len(found[1]) != 3 or min(found[1]) <= 0:
        raise unusable(
            path, f"image_mean {mean}, image_std {deviation}", "three numbers each, those of image_std above 0"
        )
    return found

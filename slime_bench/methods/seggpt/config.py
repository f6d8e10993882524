"""Settings of the SegGPT method, and all that is known of it before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from slime_bench.backbones.in_context import SegGpt
from slime_bench.errors import ConfigError
from slime_bench.methods.description import MethodDescription, NoSwitches


@dataclass
class SegGptConfig:
    """Settings of `SegGptMethod`. SLiMe's paper says that a single region is segmented, given a binary mask; how its
    authors merged the parts is not stated anywhere.

    Args:
        name: in tables and folder names.
        prompting: `binary` prompts once for each part, in white on black, `colour` once for all parts, each in a colour
            of the library's palette.
        merge: how the answers to binary prompts become one label map: `argmax` of the channel means, background where
            none is above `threshold`; `painted`: in the order of the classes, each where it is above `threshold`, later
            ones over earlier ones; `background_prompt`: the background is one more prompt, and the argmax decides.
        threshold: of the mean of the three channels, in 0..255 (the authors' video tool has 128).
        ensemble: what several prompts share; see `slime_bench.backbones.seggpt.SegGptBackbone.paint`.
        type_embedding: what is added to every token; the authors' tools take `instance`.
    """

    name: str = "seggpt"
    prompting: Literal["binary", "colour"] = "binary"
    merge: Literal["argmax", "painted", "background_prompt"] = "argmax"
    threshold: Annotated[float, Field(ge=0, lt=255)] = 128.0
    ensemble: Literal["authors", "transformers"] = "authors"
    type_embedding: Literal["instance", "semantic"] = "instance"


class SegGptDescription(MethodDescription):
    """SegGPT without its computation."""

    implementation: ClassVar[str | None] = "slime_bench.methods.seggpt.method.SegGptMethod"
    Config = SegGptConfig
    Protocol = NoSwitches
    Backbone = SegGpt
    table_order = 5

    @classmethod
    def check(
        cls, config: SegGptConfig, backbone: Any, classes: Sequence[str], image_size: int, shots: int = 1
    ) -> None:
        """Images with room for a patch, and no merging where nothing is merged.

        Args:
            backbone: facts with `patch`.

        Raises:
            ConfigError: images smaller than a patch, or a rule of merging with one prompt for all parts.
        """
        if config.prompting == "colour" and config.merge != "argmax":
            raise ConfigError(
                "one prompt for all parts leaves nothing to merge", path="method.merge", found=config.merge,
                expected="argmax: a pixel belongs to the nearest colour of the palette",
                remedy="method.prompting=binary, or leave method.merge away",
            )  # fmt: skip
        if backbone is not None and image_size < backbone.patch:
            raise ConfigError(
                "the images are smaller than a patch", path="data.image_size", found=image_size,
                expected=f"at least {backbone.patch} pixels", remedy=f"backbone.image_size={backbone.side}",
            )  # fmt: skip

    @classmethod
    def label(cls, config: SegGptConfig, shots: int) -> str:
        """`SegGPT`; the name where a file of one's own gives another."""
        return "SegGPT" if config.name == "seggpt" else config.name

    @classmethod
    def stated(cls, config: SegGptConfig) -> dict[str, str]:
        """`prompts`, which the paper does not fix, and the ensemble where it is not the authors'."""
        merged = config.merge.replace("_", " ")
        if config.merge != "background_prompt":
            merged += f", background up to {config.threshold:g}"
        said = {"prompts": f"binary, merged by {merged}" if config.prompting == "binary" else "one, in colours"}
        return said | ({"ensemble": "as in transformers"} if config.ensemble == "transformers" else {})

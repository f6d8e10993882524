"""What is known of SegGPT before its weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from slime_bench.backbones.base import InFolder, Precision
from slime_bench.backbones.weights import CONFIG, VlmLayout, read_json, unusable
from slime_bench.config.parts import NO_NUMBERS, located

BUNDLED = "mini_seggpt"


@dataclass(frozen=True)
class SegGptFacts:
    """What a method may ask of the backbone before it is loaded.

    Attributes:
        side: R, pixels along a side of the pictures that the network sees. patch: pixels of a patch along a side.
        heads, width: of attention, channels of a token.
    """

    side: int
    patch: int
    heads: int
    width: int


class SegGpt(InFolder):
    """SegGPT (Wang et al., ICCV 2023) in the library's layout: `BAAI/seggpt-vit-large`, `mini_seggpt`, a folder of
    one's own."""

    implementation: ClassVar[str | None] = "slime_bench.backbones.seggpt.SegGptBackbone"
    layout = VlmLayout(vocabularies=(), kind="a SegGPT")

    @dataclass
    class Config:
        """Settings of a SegGPT.

        Args:
            name: in tables and result files.
            weights: bundled name, folder, or hub id.
            revision: commit of a hub id; null for its main branch.
            image_size: side of the images that the data set hands out, pixels; the backbone resizes what differs from
                its own R.
            dtype: precision of the frozen weights.
            memory_gb: what the attention of one call may take, in 10^9 bytes.
        """

        name: str = BUNDLED
        weights: str = field(default=BUNDLED, metadata=located("backbone"))
        revision: str | None = field(default=None, metadata=NO_NUMBERS)
        image_size: Annotated[int, Field(ge=1)] = 128
        dtype: Precision = "fp32"
        memory_gb: Annotated[float, Field(gt=0)] = field(default=4.0, metadata=NO_NUMBERS)

    @classmethod
    def describe(cls, config: Config) -> SegGptFacts:
        """What can be known from `config.json` alone.

        Raises:
            BackboneError: files that are missing or of another kind, or an architecture that does not stack two square
                pictures of whole patches.
        """
        return cls.read_folder(cls.folder_of(config))[1]

    @classmethod
    def read_folder(cls, folder: Path) -> tuple[Any, SegGptFacts]:
        """The library's `SegGptConfig` of a folder, and the facts of `describe`.

        Raises:
            BackboneError: as `describe`.
        """
        from transformers import SegGptConfig

        from slime_bench.backbones.load import guarded

        path = folder / CONFIG
        content = read_json(path)
        if content.get("model_type") != "seggpt":
            raise unusable(path, f"model_type {content.get('model_type')!r}", "seggpt")
        architecture = guarded("configuration", path, lambda: SegGptConfig.from_dict(content))
        sides, patch = architecture.image_size, architecture.patch_size
        if not isinstance(patch, int) or not isinstance(sides, list | tuple) or sides[0] != 2 * sides[1]:
            raise unusable(path, f"image_size {sides}, patch_size {patch}", "[2 R, R], and one patch size")
        if sides[1] % patch:
            raise unusable(path, f"image_size {sides}, patch_size {patch}", "patches that divide R")
        return architecture, SegGptFacts(
            side=sides[1], patch=patch, heads=architecture.num_attention_heads, width=architecture.hidden_size
        )

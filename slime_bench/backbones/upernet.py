"""What is known of a UPerNet before it is built: a segmentation network that a method trains, from an encoder's weights
or from none (Xiao et al., ECCV 2018, arXiv 1807.10221), as the library `transformers` has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Final

from pydantic import Field

from slime_bench.backbones.base import InFolder
from slime_bench.backbones.weights import CONFIG, VlmLayout, read_json
from slime_bench.config.parts import NO_NUMBERS, located
from slime_bench.errors import BackboneError

STRIDE: Final = 32
"""Pixels along a side of a cell of a ResNet's last stage."""
KIND: Final = "resnet"


@dataclass(frozen=True)
class UperNetFacts:
    """What a method may ask of the network before it is built.

    Attributes:
        image_size: side in pixels of the images that it sees.
    """

    image_size: int


class UperNet(InFolder):
    """A UPerNet on a ResNet. Its object holds no weights that are frozen: it makes networks to be trained."""

    implementation: ClassVar[str | None] = "slime_bench.backbones.upernet_network.UperNetStart"

    @dataclass
    class Config:
        """Settings of a UPerNet.

        Args:
            name: in tables and result files.
            weights: of the encoder: bundled name, folder, or hub id of a ResNet.
            revision: commit of a hub id; null for its main branch.
            pretrained: start from the encoder's weights; false: its architecture alone, with random numbers.
            image_size: side of the images that the network sees; others are resized.
            head_width: channels of the head.
            pools: cells along a side of the pooled maps in the head's pyramid. Sides of the last stage (a 32nd of the
                image's) that they divide keep a training on CUDA reproducible.
        """

        name: str = "mini_upernet"
        weights: str = field(default="mini_resnet", metadata=located("backbone"))
        revision: str | None = field(default=None, metadata=NO_NUMBERS)
        pretrained: bool = False
        image_size: Annotated[int, Field(ge=STRIDE)] = 128
        head_width: Annotated[int, Field(ge=1)] = 32
        pools: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = field(default_factory=lambda: [2, 4])

    @classmethod
    def layout_of(cls, config: Config) -> VlmLayout:
        """The encoder's configuration and, where they are used, weights."""
        return VlmLayout(vocabularies=(), kind="a ResNet", weights=config.pretrained)

    @classmethod
    def describe(cls, config: Config) -> UperNetFacts:
        """Facts of the network; no weights are read.

        Raises:
            BackboneError: the encoder is not there, or no ResNet.
        """
        path = cls.folder_of(config) / CONFIG
        found = read_json(path).get("model_type")
        if found != KIND:
            raise BackboneError(
                "the encoder is of another kind", path=path, found=f"model_type {found}", expected=KIND,
                remedy="name a ResNet, e.g. backbone.weights=microsoft/resnet-50",
            )  # fmt: skip
        return UperNetFacts(config.image_size)

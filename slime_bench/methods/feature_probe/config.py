"""Settings of the hypercolumn probe, and all that is known of it before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from slime_bench.backbones.diffusion import BackboneFacts, StableDiffusion, check_timesteps, transformers
from slime_bench.config.parts import NO_NUMBERS
from slime_bench.config.schema import Natural, Positive
from slime_bench.methods.description import MethodDescription, NoSwitches

Strength = Annotated[float, Field(gt=0)]
Names = Annotated[list[str], Field(min_length=1)]


@dataclass
class SemanticPart:
    """Part A: coarse layers of a strongly noised image, which generalise from a single example.

    Args:
        t: timestep. layers: blocks of the U-Net, of which every transformer's output is taken.
        strength: lambda of the ridge regression. gamma: exponent of the labels' tilt towards rare classes.
        retrieval: share of the retrieval in the part's scores; 0 for the ridge regression alone, 1 for retrieval alone.
        retrieval_layers: blocks whose features are compared. neighbours: rows that a cell hears from.
        temperature: of the softmax over their similarities. bank: at most so many rows are kept, drawn with the seed.
        flip: whether the mirrored support images are rows too.
    """

    t: Natural = 450
    layers: Names = field(default_factory=lambda: ["up_blocks.1", "up_blocks.2"])
    strength: Strength = 1.0
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.5
    retrieval: Annotated[float, Field(ge=0, le=1)] = 0.5
    retrieval_layers: Names = field(default_factory=lambda: ["up_blocks.2"])
    neighbours: Positive = 20
    temperature: Strength = 0.1
    bank: Positive = 4096
    flip: bool = True


@dataclass
class DetailPart:
    """Part B: fine layers of slightly noised images and of the autoencoder's encoder, which need several examples.

    Args:
        t: timesteps, whose features stand side by side. layers: blocks of the U-Net, as in `SemanticPart`.
        encoder_layers: modules of the autoencoder's encoder; negative places count from the end.
        strength, strength_few: lambda of the ridge regression, the second for fewer than `few` support images.
        gamma: as in `SemanticPart`.
    """

    t: Annotated[list[Natural], Field(min_length=1)] = field(default_factory=lambda: [100, 300])
    layers: Names = field(default_factory=lambda: ["up_blocks.2", "up_blocks.3"])
    encoder_layers: list[str] = field(default_factory=lambda: ["down_blocks.-2.resnets.-1", "mid_block.resnets.-1"])
    strength: Strength = 0.02
    strength_few: Strength = 0.1
    few: Positive = 4
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.0


@dataclass
class FeatureProbeConfig:
    """Settings of `FeatureProbe`.

    Args:
        name: in tables and folder names.
        parts: `both`: (1 - w) A + w B with w = (k - 1) / (k + 3) for k support images, so that one image is A alone; or
            one part by itself.
        a, b: the parts.
        choose_strength: `fixed`: the lambda of the parts; `leave_one_out`: of `strengths` the one with the best mean
            IoU on each support image in turn, fitted on the others; with one support image `fixed`.
        strengths: to choose from.
        draws, test_draws: noises of a support image and of a test image at each timestep.
        memory_gb: what the fit may take beside the backbone, in 10^9 bytes.
    """

    name: str = "feature_probe"
    parts: Literal["both", "a", "b"] = "both"
    a: SemanticPart = field(default_factory=SemanticPart)
    b: DetailPart = field(default_factory=DetailPart)
    choose_strength: Literal["fixed", "leave_one_out"] = "leave_one_out"
    strengths: Annotated[list[Strength], Field(min_length=1)] = field(
        default_factory=lambda: [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0]
    )
    draws: Positive = 4
    test_draws: Positive = 2
    memory_gb: Strength = field(default=12.0, metadata=NO_NUMBERS)


class FeatureProbeDescription(MethodDescription):
    """The probe without its computation."""

    implementation: ClassVar[str | None] = "slime_bench.methods.feature_probe.method.FeatureProbe"
    Config = FeatureProbeConfig
    Protocol = NoSwitches
    Backbone = StableDiffusion
    table_order = 3

    @classmethod
    def check(
        cls,
        config: FeatureProbeConfig,
        backbone: BackboneFacts | None,
        classes: Sequence[str],
        image_size: int,
        shots: int = 1,
    ) -> None:
        """Timesteps within the schedule, and blocks that the backbone has.

        Raises:
            ConfigError: a timestep outside the schedule. BackboneError: a block without transformers, or no such block.
        """
        if backbone is None:
            return
        check_timesteps(backbone.num_timesteps, {"method.a.t": [config.a.t], "method.b.t": config.b.t})
        for key, blocks in (
            ("method.a.layers", config.a.layers),
            ("method.a.retrieval_layers", config.a.retrieval_layers),
            ("method.b.layers", config.b.layers),
        ):
            transformers(backbone.layers, blocks, key)

    @classmethod
    def label(cls, config: FeatureProbeConfig, shots: int) -> str:
        """`feature probe`; the name where a file of one's own gives another."""
        return "feature probe" if config.name == "feature_probe" else config.name

    @classmethod
    def stated(cls, config: FeatureProbeConfig) -> dict[str, str]:
        """`probe`: its parts, where not both."""
        return {} if config.parts == "both" else {"probe": f"part {config.parts.upper()} alone"}

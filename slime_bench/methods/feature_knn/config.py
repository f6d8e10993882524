"""Settings of the label propagation, and all that is known of it before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import Field

from slime_bench.backbones.diffusion import BackboneFacts, StableDiffusion, check_timesteps, transformers
from slime_bench.config.schema import Natural, Positive
from slime_bench.methods.description import MethodDescription, NoSwitches


@dataclass
class FeatureKnnConfig:
    """Settings of `FeatureKnn`; defaults are those of OIParts, where its description has them.

    Args:
        name: in tables and folder names.
        t: timestep. draws: noises, over which features are averaged.
        layers: blocks of the U-Net, of which every transformer's output is taken. (Not stated; here the blocks from
            which others copy labels of parts.)
        grid: cells along a side of the image; null for the latent's. (OIParts: 60 for 512 pixels.)
        least_channels: share of the channels that are kept at least, those of the least variance within a class first.
        neighbours: support cells that a cell hears from. temperature: of the softmax over their similarities.
        threshold: of the best part's score, below which a cell is background.
    """

    name: str = "feature_knn"
    t: Natural = 100
    draws: Positive = 1
    layers: Annotated[list[str], Field(min_length=1)] = field(default_factory=lambda: ["up_blocks.1", "up_blocks.2"])
    grid: Positive | None = None
    least_channels: Annotated[float, Field(gt=0, le=1)] = 0.85
    neighbours: Positive = 9
    temperature: Annotated[float, Field(gt=0)] = 0.1
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.1


class FeatureKnnDescription(MethodDescription):
    """The label propagation without its computation."""

    implementation: ClassVar[str | None] = "slime_bench.methods.feature_knn.method.FeatureKnn"
    Config = FeatureKnnConfig
    Protocol = NoSwitches
    Backbone = StableDiffusion
    table_order = 2

    @classmethod
    def check(
        cls,
        config: FeatureKnnConfig,
        backbone: BackboneFacts | None,
        classes: Sequence[str],
        image_size: int,
        shots: int = 1,
    ) -> None:
        """A timestep within the schedule, and blocks that the backbone has; see `check_timesteps`, `transformers`."""
        if backbone is not None:
            check_timesteps(backbone.num_timesteps, {"method.t": [config.t]})
            transformers(backbone.layers, config.layers, "method.layers")

    @classmethod
    def label(cls, config: FeatureKnnConfig, shots: int) -> str:
        """`feature kNN`; the name where a file of one's own gives another."""
        return "feature kNN" if config.name == "feature_knn" else config.name

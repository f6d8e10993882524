"""Settings of SegDDPM, and all that is known of it before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from slime_bench.backbones.base import DiffusionModel
from slime_bench.backbones.diffusion import check_timesteps
from slime_bench.config.parts import NO_NUMBERS
from slime_bench.config.schema import Natural, Positive
from slime_bench.errors import ConfigError
from slime_bench.methods.description import MethodDescription, NoSwitches


@dataclass
class SegDdpmConfig:
    """Settings of `SegDdpm`; the defaults are the authors'.

    Args:
        name: in tables and folder names.
        timesteps: of the noised images whose hidden states are read, on the linear schedule of 1000 steps.
        noise_level: `as_is` takes these timesteps on the backbone's own schedule, `matched` those whose abar_t is
            nearest to the linear schedule's at them.
        layers: modules of the U-Net whose outputs are read.
        size: side in pixels of the grid that is trained and predicted on; null for that of the images. Label maps are
            resized to it and predictions from it by the nearest pixel.
        networks: members of the ensemble.
        training: `in_turn` trains them one after another on one random stream, as the authors do; `joint` trains them
            at once, each on its own stream. The two differ in their random numbers alone.
        memory_gb: what the activations of the support images may take, in 10^9 bytes.
    """

    name: str = "segddpm"
    timesteps: Annotated[list[Natural], Field(min_length=1)] = field(default_factory=lambda: [50, 150, 250])
    noise_level: Literal["as_is", "matched"] = "as_is"
    layers: Annotated[list[str], Field(min_length=1)] = field(default_factory=list)
    size: Annotated[int, Field(ge=8)] | None = None
    networks: Positive = 10
    training: Literal["joint", "in_turn"] = "joint"
    memory_gb: Annotated[float, Field(gt=0)] = field(default=8.0, metadata=NO_NUMBERS)


class SegDdpmDescription(MethodDescription):
    """SegDDPM without its computation."""

    implementation: ClassVar[str | None] = "slime_bench.methods.segddpm.method.SegDdpm"
    Config = SegDdpmConfig
    Protocol = NoSwitches
    Backbone = DiffusionModel
    table_order = 4

    @classmethod
    def check(
        cls, config: SegDdpmConfig, backbone: Any, classes: Sequence[str], image_size: int, shots: int = 1
    ) -> None:
        """Timesteps within the schedule, no layer twice.

        Args:
            backbone: facts with `num_timesteps`.

        Raises:
            ConfigError: a timestep outside the schedule, or a layer that is named twice.
        """
        steps = 1000 if backbone is None or config.noise_level == "matched" else backbone.num_timesteps
        check_timesteps(steps, {"method.timesteps": config.timesteps})
        for key, values in (("method.timesteps", config.timesteps), ("method.layers", config.layers)):
            if len(set(values)) < len(values):
                raise ConfigError(
                    "something is named twice", path=key, found=", ".join(map(str, values)),
                    expected="each once: a copy of the same numbers tells nothing new", remedy="remove the copies",
                )  # fmt: skip

    @classmethod
    def label(cls, config: SegDdpmConfig, shots: int) -> str:
        """`SegDDPM`; the name where a file of one's own gives another."""
        return "SegDDPM" if config.name == "segddpm" else config.name

    @classmethod
    def stated(cls, config: SegDdpmConfig) -> dict[str, str]:
        """`noise level` and `networks`, where they are not the authors'."""
        said = {"noise level": "matched to the linear schedule"} if config.noise_level == "matched" else {}
        return said | ({"networks": str(config.networks)} if config.networks != 10 else {})

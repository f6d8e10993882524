"""The CRF's settings, and what they may be. Defaults are those of InfoScore's code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from slime_bench.errors import ConfigError

Weight = Annotated[float, Field(ge=0)]
Scale = Annotated[float, Field(gt=0)]


@dataclass
class CrfConfig:
    """Settings of the mean field.

    Args:
        window: side of the square of cells that a cell hears from, itself included; odd.
        blur: pixels per side of a cell, on whose grid messages are exchanged; 1 for every pixel.
        iterations: rounds of messages; 0 leaves the log-softmax of the input.
        unary_weight: of the input in each round.
        message_weight: of the messages in each round.
        position_scale: standard deviation of the position kernel, pixels.
        position_weight: its height; 0 leaves this kernel out.
        colour_scale: standard deviation of the colour kernel, in units of the image's values.
        colour_weight: its height; 0 leaves this kernel out.
        final_softmax: end with probabilities, else with the scores before the last softmax.

    Raises:
        ConfigError: an even window.
    """

    window: Annotated[int, Field(ge=1)] = 15
    blur: Annotated[int, Field(ge=1)] = 4
    iterations: Annotated[int, Field(ge=0)] = 20
    unary_weight: Weight = 0.8
    message_weight: Weight = 0.2
    position_scale: Scale = 3.0
    position_weight: Weight = 3.0
    colour_scale: Scale = 0.1
    colour_weight: Weight = 10.0
    final_softmax: bool = False

    def __post_init__(self) -> None:
        if self.window % 2 == 0:
            raise ConfigError(
                "`refine.window` has a value that it cannot have", path="refine.window", found=self.window,
                expected="an odd number: as many cells on either side of the centre",
                remedy="e.g. refine.window=15, as InfoScore's code has it",
            )  # fmt: skip

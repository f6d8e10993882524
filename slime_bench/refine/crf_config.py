"""The CRF's settings, and what they may be. Defaults are those of InfoScore's code."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from slime_bench.errors import ConfigError


@dataclass
class CrfConfig:
    """Settings of the mean field.

    Args:
        enabled: whether a method refines its maps at all; for the method to ask, the functions here do not.
        window: side of the square of cells that a cell hears from, itself included; odd.
        blur: pixels per side of a cell, on whose grid messages are exchanged; 1 for every pixel.
        iterations: rounds of messages; 0 leaves the log-softmax of the input.
        unary_weight: of the input in each round.
        message_weight: of the messages in each round.
        position_scale: standard deviation of the position kernel, pixels.
        position_weight: its height.
        colour_scale: standard deviation of the colour kernel, in units of the image's values.
        colour_weight: its height.
        final_softmax: end with probabilities, else with the scores before the last softmax.

    Raises:
        ConfigError: a value out of its range, an even window, a kernel without width.
    """

    enabled: bool = True
    window: int = field(default=15, metadata={"min": 1})
    blur: int = field(default=4, metadata={"min": 1})
    iterations: int = field(default=20, metadata={"min": 0})
    unary_weight: float = field(default=0.8, metadata={"min": 0})
    message_weight: float = field(default=0.2, metadata={"min": 0})
    position_scale: float = field(default=3.0, metadata={"min": 0})
    position_weight: float = field(default=3.0, metadata={"min": 0})
    colour_scale: float = field(default=0.1, metadata={"min": 0})
    colour_weight: float = field(default=10.0, metadata={"min": 0})
    final_softmax: bool = False

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            value, least = getattr(self, each.name), each.metadata.get("min", 0)
            if each.type == "bool" and not isinstance(value, bool):
                raise _bad(each.name, value, "true or false")
            if each.type == "int" and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise _bad(each.name, value, f"a whole number of at least {least}")
            if each.type == "float" and not (_is_number(value) and least <= value < float("inf")):
                raise _bad(each.name, value, f"a number of at least {least}")
        if self.window % 2 == 0:
            raise _bad("window", self.window, "an odd number: as many cells on either side of the centre")
        for name in ("position_scale", "colour_scale"):
            if getattr(self, name) == 0:
                weight = name.replace("scale", "weight")
                raise _bad(name, getattr(self, name), f"more than 0; method.crf.{weight}=0 leaves this kernel out")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bad(name: str, value: object, expected: str) -> ConfigError:
    path = f"method.crf.{name}"
    default = {each.name: each.default for each in dataclasses.fields(CrfConfig)}[name]
    return ConfigError(
        f"`{path}` has a value that it cannot have", path=path, found=value, expected=expected,
        remedy=f"e.g. {path}={str(default).lower()}, as InfoScore's code has it",
    )  # fmt: skip

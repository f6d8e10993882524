"""Settings of the supervised network, and all that is known of it before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from slime_bench.backbones.upernet import UperNet
from slime_bench.config.schema import NotNegative, Positive
from slime_bench.methods.description import MethodDescription, NoSwitches


@dataclass
class SupervisedConfig:
    """Settings of `Supervised`.

    Args:
        name: in tables and folder names.
        steps: of the training, whatever the number of images.
        batch: augmented images per step; takes the place of `data.train_batch_size`.
        lr: highest learning rate; it rises to it over the first tenth and falls to 0 by a cosine.
        weight_decay: of AdamW.
    """

    name: str = "supervised"
    steps: Annotated[int, Field(ge=2)] = 1000
    batch: Positive = 8
    lr: Annotated[float, Field(gt=0)] = 1e-2
    weight_decay: NotNegative = 0.01


class SupervisedDescription(MethodDescription):
    """The supervised network without its computation."""

    implementation: ClassVar[str | None] = "slime_bench.methods.supervised.method.Supervised"
    Config = SupervisedConfig
    Protocol = NoSwitches
    Backbone = UperNet
    whole_set = True
    table_order = 6

    @classmethod
    def label(cls, config: SupervisedConfig, shots: int) -> str:
        """`supervised UPerNet`; the name where a file of one's own gives another."""
        return "supervised UPerNet" if config.name == "supervised" else config.name

    @classmethod
    def stated(cls, config: SupervisedConfig) -> dict[str, str]:
        """The length of the training, which decides what a number of images is worth."""
        return {"training": f"{config.steps} steps of {config.batch} images"}

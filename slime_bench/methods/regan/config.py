"""Settings of ReGAN, and all that is known of it before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from slime_bench.backbones.gan import StyleGan2
from slime_bench.backbones.hashes import digest
from slime_bench.config.parts import NO_NUMBERS, located
from slime_bench.config.schema import NotNegative, Positive
from slime_bench.errors import ConfigError, DataError
from slime_bench.methods.description import MethodDescription, NoSwitches
from slime_bench.paths import user_path

HALVINGS: Final = 4
"""Of the U-Net."""
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass
class Inversion:
    """How a support picture is found among the generator's.

    Args:
        space: `w_plus` finds a style for each place of the generator, `w` one for all, as generated pictures have: what
            it finds looks less like the support, and its hidden maps more like those that are labelled later.
        starts: random styles of which the best is the start.
        steps: of Adam. lr: its highest rate; it falls to 0 by a cosine.
        pull: weight of the squared distance of the styles from their mean.
    """

    space: Literal["w", "w_plus"] = "w_plus"
    starts: Positive = 500
    steps: Positive = 1000
    lr: Rate = 0.05
    pull: NotNegative = 1e-3


@dataclass
class FewShot:
    """Training of the few-shot network, one picture a step.

    Args:
        epochs: passes over the labelled pictures. max_steps: ends them early.
        lr, weight_decay: of Adam, the decay added to the gradient.
        decay, every: the rate is multiplied by `decay` after every `every` passes.
    """

    epochs: Positive = 1000
    max_steps: Positive | None = None
    lr: Rate = 1e-3
    weight_decay: NotNegative = 1e-3
    decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    every: Positive = 50


@dataclass
class AutoShot:
    """Training of the U-Net on generated pictures.

    Args:
        pairs: pictures that are generated and labelled. validation: share of them that only the rate depends on.
        epochs: passes over the others. batch: pictures of a step.
        lr, weight_decay: of Adam.
        patience: passes that do not lower the validation's loss, after which the rate is divided by 10.
        clip: bound of each number of the gradient. width: channels of the U-Net's first level.
    """

    pairs: Annotated[int, Field(ge=2)] = 5000
    validation: Share = 0.005
    epochs: Positive = 1000
    batch: Annotated[int, Field(ge=1)] = 32
    lr: Rate = 1e-3
    weight_decay: NotNegative = 1e-3
    patience: Positive = 20
    clip: Rate = 0.1
    width: Positive = 64


@dataclass
class ReganConfig:
    """Settings of `Regan`; the defaults are the authors', but for the inversion, which is ours.

    Args:
        name: in tables and folder names.
        labels: what the few-shot network learns from: `inverted`, pictures that the generator is made to paint like the
            support images, with the support's label maps; `folder`, generated pictures that a person has labelled.
        labelled: for `folder`: where the label maps lie, `<seed>.png` each.
        size: side in pixels of what both networks see and predict.
        memory_gb: what the generated pictures and their labels may take, in 10^9 bytes.
    """

    name: str = "regan"
    labels: Literal["inverted", "folder"] = "inverted"
    labelled: str | None = field(default=None, metadata=located("labelled"))
    size: Annotated[int, Field(ge=2**HALVINGS, multiple_of=2**HALVINGS)] = 512
    inversion: Inversion = field(default_factory=Inversion)
    few_shot: FewShot = field(default_factory=FewShot)
    auto_shot: AutoShot = field(default_factory=AutoShot)
    memory_gb: Annotated[float, Field(gt=0)] = field(default=32.0, metadata=NO_NUMBERS)

    def label_files(self) -> dict[int, Path]:
        """The label maps of `labelled`, by the number of their picture; none for `inverted`.

        Raises:
            ConfigError: no folder is named, or one for `inverted`. DataError: it is not there, or has no label map or a
                file of another name.
        """
        if (self.labels == "folder") != (self.labelled is not None):
            raise ConfigError(
                "labelled pictures are named where they are used, and only there", path="method.labelled",
                found=self.labelled or "null", expected=f"method.labels={self.labels}",
                remedy="method.labels=folder method.labelled=<folder>, or neither of them",
            )  # fmt: skip
        if self.labelled is None:
            return {}
        folder = user_path(self.labelled)
        files = sorted(folder.glob("*.png"))
        strange = [path.name for path in files if not path.stem.isdecimal()]
        if strange or not files:
            raise DataError(
                "these are no label maps of generated pictures", path=folder,
                found=", ".join(strange[:3]) or ("no *.png" if folder.is_dir() else "no such folder"),
                expected="<seed>.png for each labelled picture, e.g. 0.png",
                remedy="python -m data_prep.gan_pictures writes pictures of these names",
            )  # fmt: skip
        return {int(path.stem): path for path in files}


class ReganDescription(MethodDescription):
    """ReGAN without its computation."""

    implementation: ClassVar[str | None] = "slime_bench.methods.regan.method.Regan"
    Config = ReganConfig
    Protocol = NoSwitches
    Backbone = StyleGan2
    table_order = 7

    @classmethod
    def check(cls, config: ReganConfig, backbone: Any, classes: Sequence[str], image_size: int, shots: int = 1) -> None:
        """As many labelled pictures as shots, and room for the generated ones.

        Raises:
            ConfigError, DataError: see `ReganConfig.label_files`; or another number of them; or too little memory.
        """
        files = config.label_files()
        if files and len(files) != shots:
            raise ConfigError(
                "the labelled pictures are the shots of the trial", path="shots", found=shots,
                expected=f"{len(files)}, the label maps in {config.labelled}", remedy=f"shots={len(files)}",
            )  # fmt: skip
        needed = bytes_of_pairs(config.auto_shot.pairs, config.size, len(classes)) / 1e9
        if needed > config.memory_gb:
            raise ConfigError(
                "the generated pictures do not fit the memory that they may take", path="method.memory_gb",
                found=f"{config.memory_gb} GB", expected=f"{needed:.2f} GB for {config.auto_shot.pairs} pictures",
                remedy=f"method.memory_gb={needed + 0.1:.1f} where the machine has so much,"
                " or a smaller method.auto_shot.pairs",
            )  # fmt: skip

    @classmethod
    def fingerprints(cls, config: ReganConfig) -> dict[str, str]:
        """`labelled`: of the label maps."""
        files = config.label_files()
        return {"labelled": digest({path.name: path for path in files.values()})} if files else {}

    @classmethod
    def label(cls, config: ReganConfig, shots: int) -> str:
        """`ReGAN`; the name where a file of one's own gives another."""
        return "ReGAN" if config.name == "regan" else config.name

    @classmethod
    def stated(cls, config: ReganConfig) -> dict[str, str]:
        """Where the labels are from, which is not the paper's way for `inverted`; and the number of pictures."""
        source = "the support's, by inversion" if config.labels == "inverted" else "of generated pictures"
        return {"labels": source, "generated pictures": str(config.auto_shot.pairs)}


def bytes_of_pairs(pairs: int, size: int, classes: int) -> int:
    """Pictures in 8 bits and logits in half precision."""
    return pairs * size**2 * (3 + 2 * classes)

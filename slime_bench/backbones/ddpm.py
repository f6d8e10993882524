"""What is known of a pixel-space diffusion model before its weights are loaded: the ADM of Dhariwal and Nichol (2021),
in checkpoints such as SegDDPM reads (Baranchuk et al., ICLR 2022)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import Field

from slime_bench.backbones.base import DiffusionModel, Precision
from slime_bench.backbones.hashes import sha256
from slime_bench.config.parts import NO_NUMBERS, located
from slime_bench.errors import BackboneError
from slime_bench.paths import user_path

SUFFIXES: Final = (".pt", ".pth", ".safetensors")
NUM_TIMESTEPS: Final = 1000
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class DdpmFacts:
    """What a method may ask of the backbone before it is loaded.

    Attributes:
        num_timesteps: of the noise schedule.
    """

    num_timesteps: int = NUM_TIMESTEPS


class Ddpm(DiffusionModel):
    """An unconditional ADM: a state dict of guided-diffusion's U-Net with scale-shift normalisation, residual up- and
    downsampling and learned variances, as a `.pt` pickle of tensors alone or as `.safetensors`."""

    implementation: ClassVar[str | None] = "slime_bench.backbones.ddpm_unet.DdpmBackbone"

    @dataclass
    class Config:
        """Settings of an ADM; the defaults are those of the published models at 256 pixels.

        Args:
            name: in tables and result files.
            weights: path of the checkpoint.
            download: where it is published, for the message when it is not here.
            image_size: side of the images that the network sees; others are resized.
            dtype: precision of the frozen weights.
            width: channels of the first level. multipliers: of each level, in `width`.
            blocks: residual blocks of a level. attention_levels: levels with attention, 0 = the image's own grid.
            head_width: channels of an attention head.
            layer_groups: lists of modules by name, for a method's layers.
            memory_gb: what one call may take beside the weights, in 10^9 bytes.
        """

        name: str = "ddpm"
        weights: str = field(default="ddpm.pt", metadata=located("backbone"))
        download: str | None = field(default=None, metadata=NO_NUMBERS)
        image_size: Annotated[int, Field(ge=8)] = 256
        dtype: Precision = "fp32"
        width: Count = 256
        multipliers: Annotated[list[Count], Field(min_length=1)] = field(default_factory=lambda: [1, 1, 2, 2, 4, 4])
        blocks: Count = 2
        attention_levels: list[Annotated[int, Field(ge=0)]] = field(default_factory=lambda: [3, 4, 5])
        head_width: Count = 64
        layer_groups: dict[str, list[str]] = field(default_factory=dict, metadata=NO_NUMBERS)
        memory_gb: Annotated[float, Field(ge=0)] = field(default=4.0, metadata=NO_NUMBERS)

    @classmethod
    def content_hash_of(cls, config: Config) -> str:
        """sha256 of the checkpoint; nothing is loaded."""
        return sha256(checkpoint(config))

    @classmethod
    def describe(cls, config: Config) -> DdpmFacts:
        """Facts of the model; no weights are read.

        Raises:
            BackboneError: the checkpoint is not there, or an image side that cannot be halved often enough.
        """
        checkpoint(config)
        factor = 2 ** (len(config.multipliers) - 1)
        if config.image_size % factor:
            raise BackboneError(
                "the network cannot halve its images so often", path="backbone.image_size", found=config.image_size,
                expected=f"a multiple of {factor}: {len(config.multipliers)} levels",
                remedy=f"e.g. backbone.image_size={max(1, round(config.image_size / factor)) * factor}",
            )  # fmt: skip
        return DdpmFacts()


def checkpoint(config: Ddpm.Config) -> Path:
    """The file of the weights.

    Raises:
        BackboneError: it is not there, or of another kind.
    """
    path = user_path(config.weights)
    if path.is_file() and path.suffix in SUFFIXES:
        return path.resolve()
    name = Path(config.weights).name or "<file>"
    absent, found = not path.exists(), "a folder" if path.is_dir() else f"the suffix {path.suffix or '(none)'}"
    raise BackboneError(
        "the checkpoint of the diffusion model is not here" if absent else "this is no checkpoint",
        path=config.weights or "backbone.weights", found=None if absent else found,
        expected=f"a file {' or '.join(SUFFIXES)}",
        remedy=(f"download {config.download} (about 2.2 GB)" if config.download else "download it")
        + f" and set backbone.weights=<folder>/{name}",
    )  # fmt: skip

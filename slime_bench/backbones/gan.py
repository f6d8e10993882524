"""What is known of a StyleGAN2 before its weights are loaded (Karras et al., CVPR 2020, arXiv 1912.04958)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, TypeAdapter, ValidationError

from slime_bench.backbones.base import InFolder
from slime_bench.backbones.weights import CONFIG, VlmLayout, read_json, unusable
from slime_bench.config.parts import located

BUNDLED = "mini_gan"
KIND = "stylegan2"
CONVERT = "python -m data_prep.convert_stylegan2 --checkpoint <file>.pt --out <folder>"
Count = Annotated[int, Field(ge=1, strict=True)]


@dataclass(frozen=True)
class Architecture:
    """Sizes of a generator, as `config.json` states them.

    Attributes:
        size: R, pixels along a side of a picture; a power of two from 8 on.
        style_dim: numbers of a latent and of a style. n_mlp: layers of the mapping from one to the other.
        channels: of the maps, by their side: 4, 8, .. R.
    """

    size: Count
    style_dim: Count
    n_mlp: Count
    channels: dict[int, Count]

    @property
    def sides(self) -> list[int]:
        """4, 8, .. R."""
        return [2**power for power in range(2, self.size.bit_length())]

    @property
    def styles(self) -> int:
        """L, styles that a picture can have: one for each convolution, and one for the last picture."""
        return 2 * len(self.sides)


class StyleGan2(InFolder):
    """A StyleGAN2 generator: a folder of `config.json` and `model.safetensors`, whose tensors have the names of
    rosinality's stylegan2-pytorch."""

    implementation: ClassVar[str | None] = "slime_bench.backbones.stylegan2.StyleGan2Backbone"
    layout = VlmLayout(
        f"convert a checkpoint, {CONVERT}, and set backbone.weights=<folder>", vocabularies=(), kind="a StyleGAN2"
    )

    @dataclass
    class Config:
        """Settings of a StyleGAN2.

        Args:
            name: in tables and result files.
            weights: bundled name or folder.
            image_size: side of the images that the data set hands out, pixels; the method resizes what differs from its
                own.
        """

        name: str = BUNDLED
        weights: str = field(default=BUNDLED, metadata=located("backbone"))
        image_size: Annotated[int, Field(ge=1)] = 128

    @classmethod
    def describe(cls, config: Config) -> Architecture:
        """What can be known from `config.json` alone.

        Raises:
            BackboneError: files that are missing or of another kind.
        """
        return cls.read_folder(cls.folder_of(config))

    @classmethod
    def read_folder(cls, folder: Path) -> Architecture:
        """As `describe`, of a folder."""
        path = folder / CONFIG
        content = read_json(path)
        if content.pop("model_type", None) != KIND:
            raise unusable(path, "another model_type", KIND)
        try:
            found = TypeAdapter(Architecture).validate_python(content)
        except ValidationError as error:
            first = error.errors()[0]
            raise unusable(
                path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}", "sizes of a generator"
            ) from error
        if found.size < 8 or list(found.channels) != found.sides or found.sides[-1] != found.size:
            raise unusable(
                path, f"size {found.size}, channels of the sides {', '.join(map(str, found.channels))}",
                "a size that is a power of two from 8 on, and channels for 4, 8, .. up to it",
            )  # fmt: skip
        return found

"""The files of a LLaVA: which are loaded, which are missing, and what the JSON ones say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from slime_bench.backbones.blip_files import (
    CONFIG,
    INDEX,
    PREPROCESSOR,
    TOKENIZER,
    Settings,
    find_folder,
    read_json,
    weight_files,
)
from slime_bench.backbones.files import RESTORE
from slime_bench.backbones.hashes import digest
from slime_bench.backbones.vlm import Size
from slime_bench.errors import BackboneError

_PROCESSORS: Final = (PREPROCESSOR, "processor_config.json")  # newer libraries write the second alone
_TOKENIZER: Final = "tokenizer.json"
_LOADED: Final = (CONFIG, INDEX, *_PROCESSORS, *TOKENIZER)


@dataclass(frozen=True)
class Geometry:
    """What the configuration files fix.

    Attributes:
        side: of the square image that the vision tower takes, pixels. patch: side of a patch, pixels.
        prefix: image tokens before those of the patches: 1 where the vision tower's [CLS] is kept, otherwise 0.
        layers: of the language model. positions: tokens that a conversation may have, those of the image included.
        image_token: id of the token that stands for the image.
        mean, std: of the colour channels in [0,1], red first.
    """

    side: int
    patch: int
    prefix: int
    layers: int
    positions: int
    image_token: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def grid(self) -> Size:
        return self.side // self.patch, self.side // self.patch

    @property
    def image_tokens(self) -> int:
        return self.prefix + self.grid[0] * self.grid[1]


def folder_of(settings: Settings) -> Path:
    """The folder of a configuration's LLaVA; everything that it needs is there.

    Raises:
        BackboneError: nothing of that name here, a file or a shard of the weights is missing, or the hub does not
            answer.
    """
    folder = find_folder(settings)
    if not (folder / _TOKENIZER).is_file():
        # A vocabulary alone does not say where in a text a token lies.
        raise _missing(folder, f"no {_TOKENIZER}", _TOKENIZER)
    if not any((folder / name).is_file() for name in _PROCESSORS):
        raise _missing(folder, "no description of the image processor", " or ".join(_PROCESSORS))
    return folder


def model_files(folder: Path) -> list[Path]:
    """Every file of the folder that is loaded, all shards included; others beside them decide nothing."""
    described = [folder / name for name in _LOADED if (folder / name).is_file()]
    return sorted([*described, *weight_files(folder)])


def fingerprint(folder: Path) -> str:
    """sha256 over the names and contents of `model_files`; large ones are remembered, see `hashes`."""
    return digest({path.name: path for path in model_files(folder)})


def read_geometry(folder: Path) -> Geometry:
    """What the JSON files of a folder fix; no weights are read.

    A key that is not written down has the library's default: the published LLaVA 1.5 does not write its number of
    layers.

    Raises:
        BackboneError: a file that is no JSON, of another model, or with values that do not fit together.
    """
    from transformers import LlavaConfig

    path = folder / CONFIG
    content = read_json(path)
    if content.get("model_type") != "llava":
        raise _unusable(path, f"model_type {content.get('model_type')}", "model_type llava")
    try:
        config = LlavaConfig.from_dict(content)
    except Exception as error:  # the library's checks raise several kinds
        raise _unusable(path, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    vision, text = config.vision_config, config.text_config
    if vision.model_type != "clip_vision_model":
        raise _unusable(path, f"a vision tower of model_type {vision.model_type}", "clip_vision_model")
    side, patch = vision.image_size, vision.patch_size
    if not isinstance(side, int) or not isinstance(patch, int) or patch < 1 or side < patch:
        raise _unusable(path, f"image_size {side}, patch_size {patch}", "whole numbers, at least one patch per side")
    positions = text.max_position_embeddings
    mean, std = _statistics(folder)
    return Geometry(
        side=side,
        patch=patch,
        prefix=0 if config.vision_feature_select_strategy == "default" else 1,
        layers=text.num_hidden_layers,
        positions=min(positions, getattr(text, "sliding_window", None) or positions),
        image_token=config.image_token_id,
        mean=mean,
        std=std,
    )


def _statistics(folder: Path) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of the colour channels, as the image processor subtracts and divides by them."""
    path = next(folder / name for name in _PROCESSORS if (folder / name).is_file())
    content: Any = read_json(path)
    content = content.get("image_processor", content)  # the whole processor's file keeps it inside
    found = []
    for key in ("image_mean", "image_std"):
        match content.get(key) if isinstance(content, dict) else None:
            case [float() | int() as red, float() | int() as green, float() | int() as blue]:
                found.append((float(red), float(green), float(blue)))
            case other:
                raise _unusable(path, f"{key}: {other}", f"three numbers in {key}")
    if min(found[1]) <= 0:
        raise _unusable(path, f"image_std: {found[1]}", "three numbers above 0 in image_std")
    return found[0], found[1]


def _missing(folder: Path, found: str, expected: str) -> BackboneError:
    return BackboneError(
        "a file of the backbone is missing", path=folder, found=found, expected=expected, remedy=RESTORE
    )


def _unusable(path: Path, found: str, expected: str = "the JSON file of a LLaVA model") -> BackboneError:
    return BackboneError(
        "a configuration file of the backbone cannot be used",
        path=path,
        found=found,
        expected=expected,
        remedy=f"name a LLaVA 1.5 in the library's own layout (hub ids llava-hf/...), or {RESTORE}",
    )

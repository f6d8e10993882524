"""ALBEF (Li et al., NeurIPS 2021) as a frozen backbone, in BLIP's stock modules.

Half of its text layers see text alone, the others (`layer.6` to `layer.11`) look at the image. The authors' `.pth` is
converted once: python -m data_prep.convert_albef.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from torch import nn

from slime_bench.backbones.blip import BlipBackbone
from slime_bench.backbones.blip_files import CONFIG, read_json, unreadable
from slime_bench.backbones.blip_load import read_config
from slime_bench.config.parts import located

KIND: Final = "albef"
"""What `config.json` of a converted folder calls its model."""

CONVERT: Final = (
    "convert the authors' checkpoint once and name the folder:\n"
    "    python -m data_prep.convert_albef --checkpoint refcoco.pth --out <folder>\n"
    "  then backbone.weights=<folder>"
)


class AlbefBackbone(BlipBackbone):
    """Frozen ALBEF; see `BlipModules`. What the text-only layers make of a list of prompts is kept for its next image.

    Raises:
        BackboneError: weights missing, corrupt or of another architecture, or an image size that the patches do not
            divide.
    """

    @dataclass
    class Config(BlipBackbone.Config):
        """Settings of an ALBEF: those of a BLIP. `weights` is a folder that `data_prep.convert_albef` has written, or a
        hub id of such a one; its own pixel statistics are CLIP's."""

        name: str = "albef"
        weights: str = field(default="albef", metadata=located("backbone"))
        image_size: int = field(default=384, metadata={"min": 1})
        statistics: str = field(default="own", metadata={"choices": ("imagenet", "own")})

    remedy = CONVERT

    @classmethod
    def _read(cls, folder: Path) -> tuple[Any, int]:
        architecture = read_config(folder, KIND)
        first = read_json(folder / CONFIG).get("fusion_layer")
        layers = int(architecture.text_config.num_hidden_layers)
        if not isinstance(first, int) or isinstance(first, bool) or not 0 <= first < layers:
            raise unreadable(folder / CONFIG, f"fusion_layer {first!r}, with {layers} text layers")
        return architecture, first

    @classmethod
    def _trim(cls, first: int) -> Callable[[nn.Module], None]:
        return trim_to(first)


def trim_to(first: int) -> Callable[[nn.Module], None]:
    """Takes from BLIP's modules what ALBEF lacks: cross-attention before layer `first`; and what nobody asks for."""

    def trim(network: Any) -> None:
        for layer in network.text_encoder.encoder.layer[:first]:
            del layer.crossattention
        del network.vision_proj, network.text_proj

    return trim

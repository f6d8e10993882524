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

from slime_bench.backbones.blip_files import CONFIG, find_folder, fingerprint, read_json, unreadable
from slime_bench.backbones.blip_load import (
    IMAGENET,
    facts,
    load_network,
    load_tokenizer,
    own_statistics,
    read_config,
)
from slime_bench.backbones.blip_modules import BlipModules
from slime_bench.backbones.load import DTYPES
from slime_bench.backbones.locate import check_hashes
from slime_bench.backbones.vlm import VlmFacts, patch_grid

KIND: Final = "albef"
"""What `config.json` of a converted folder calls its model."""

CONVERT: Final = (
    "convert the authors' checkpoint once and name the folder:\n"
    "    python -m data_prep.convert_albef --checkpoint refcoco.pth --out <folder>\n"
    "  then backbone.weights=<folder>"
)


class AlbefBackbone(BlipModules):
    """Frozen ALBEF; see `BlipModules`. What the text-only layers make of a list of prompts is kept for its next image.

    Raises:
        BackboneError: weights missing, corrupt or of another architecture, or an image size that the patches do not
            divide.
    """

    @dataclass
    class Config:
        """Settings of an ALBEF.

        Args:
            name: in tables and result files.
            weights: folder that `data_prep.convert_albef` has written, or a hub id of such a one.
            revision: commit of a hub id; null for its main branch.
            image_size: side in pixels that images are brought to, a multiple of the patch. Position embeddings of
                another size are resized, bicubically.
            dtype: precision of the frozen weights.
            statistics: pixel mean and standard deviation: the model's `own`, which are CLIP's, or `imagenet`.
        """

        name: str = "albef"
        weights: str = "albef"
        revision: str | None = None
        image_size: int = field(default=384, metadata={"min": 1})
        dtype: str = field(default="fp32", metadata={"choices": tuple(DTYPES)})
        statistics: str = field(default="own", metadata={"choices": ("imagenet", "own")})

    def __init__(self, config: Config) -> None:
        folder = find_folder(config, CONVERT)
        check_hashes(folder)
        architecture, first = _read(folder)
        known = facts(folder, architecture, first)
        patch_grid((config.image_size, config.image_size), known.patch)
        network = load_network(folder, architecture, DTYPES[config.dtype], trim_to(first))
        tokenizer = load_tokenizer(folder, int(architecture.text_config.vocab_size))
        super().__init__(
            network, tokenizer, known, IMAGENET if config.statistics == "imagenet" else own_statistics(folder)
        )
        self.config = config

    @classmethod
    def content_hash_of(cls, config: Config) -> str:
        """sha256 of the weights and configuration files that `config` points to; nothing is loaded."""
        return fingerprint(find_folder(config, CONVERT))

    @classmethod
    def describe(cls, config: Config) -> VlmFacts:
        """What can be known from the JSON files alone.

        Raises:
            BackboneError: files that are missing or of another kind, or an image size that the patches do not divide.
        """
        folder = find_folder(config, CONVERT)
        known = facts(folder, *_read(folder))
        patch_grid((config.image_size, config.image_size), known.patch)
        return known


def trim_to(first: int) -> Callable[[nn.Module], None]:
    """Takes from BLIP's modules what ALBEF lacks: cross-attention before layer `first`; and what nobody asks for."""

    def trim(network: Any) -> None:
        for layer in network.text_encoder.encoder.layer[:first]:
            del layer.crossattention
        del network.vision_proj, network.text_proj

    return trim


def _read(folder: Path) -> tuple[Any, int]:
    """Configuration, and index of the first layer with cross-attention."""
    architecture = read_config(folder, KIND)
    first = read_json(folder / CONFIG).get("fusion_layer")
    layers = int(architecture.text_config.num_hidden_layers)
    if not isinstance(first, int) or isinstance(first, bool) or not 0 <= first < layers:
        raise unreadable(folder / CONFIG, f"fusion_layer {first!r}, with {layers} text layers")
    return architecture, first

"""BLIP for image-text matching (Li et al., ICML 2022) as a frozen backbone.

Any `BlipForImageTextRetrieval` will do: the released ones, `mini_blip`, a folder of one's own. The library's modules
are used as they are; scores come from hooks on the queries and keys of `text_encoder.encoder.layer.N.crossattention`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from slime_bench.backbones.blip_files import PUT_IN_A_FOLDER, find_folder, fingerprint
from slime_bench.backbones.blip_load import (
    facts,
    load_network,
    load_tokenizer,
    own_statistics,
    read_config,
)
from slime_bench.backbones.blip_modules import BlipModules
from slime_bench.backbones.load import DTYPES
from slime_bench.backbones.locate import check_hashes
from slime_bench.backbones.vlm import IMAGENET, VlmFacts, patch_grid
from slime_bench.config.parts import NO_NUMBERS, located


class BlipBackbone(BlipModules):
    """Frozen BLIP; see `BlipModules`.

    Raises:
        BackboneError: weights missing, corrupt or of another architecture, or an image size that the patches do not
            divide.
    """

    @dataclass
    class Config:
        """Settings of a BLIP.

        Args:
            name: in tables and result files.
            weights: bundled name, folder, or hub id.
            revision: commit of a hub id; null for its main branch.
            image_size: side in pixels that images are brought to, a multiple of the patch. Position embeddings of
                another size are resized, bicubically, by the library.
            dtype: precision of the frozen weights.
            statistics: pixel mean and standard deviation: `imagenet`, as the authors' code, or the model's `own`
                (`preprocessor_config.json`, else CLIP's, which BLIP was trained with).
        """

        name: str = "mini_blip"
        weights: str = field(default="mini_blip", metadata=located("backbone"))
        revision: str | None = field(default=None, metadata=NO_NUMBERS)
        image_size: int = field(default=128, metadata={"min": 1})
        dtype: str = field(default="fp32", metadata={"choices": tuple(DTYPES)})
        statistics: str = field(default="imagenet", metadata={"choices": ("imagenet", "own")})

    remedy: ClassVar[str] = PUT_IN_A_FOLDER
    """What to do where the weights are not here."""

    def __init__(self, config: Config) -> None:
        folder = find_folder(config, self.remedy)
        check_hashes(folder)
        architecture, first = self._read(folder)
        known = facts(folder, architecture, first)
        patch_grid((config.image_size, config.image_size), known.patch)
        network = load_network(folder, architecture, DTYPES[config.dtype], self._trim(first))
        tokenizer = load_tokenizer(folder, int(architecture.text_config.vocab_size))
        super().__init__(network, tokenizer, known, own_statistics(folder) if config.statistics == "own" else IMAGENET)
        self.config = config

    @classmethod
    def content_hash_of(cls, config: Config) -> str:
        """sha256 of the weights and configuration files that `config` points to; nothing is loaded."""
        return fingerprint(find_folder(config, cls.remedy))

    @classmethod
    def describe(cls, config: Config) -> VlmFacts:
        """What can be known from the JSON files alone.

        Raises:
            BackboneError: files that are missing or of another kind, or an image size that the patches do not divide.
        """
        folder = find_folder(config, cls.remedy)
        known = facts(folder, *cls._read(folder))
        patch_grid((config.image_size, config.image_size), known.patch)
        return known

    @classmethod
    def _read(cls, folder: Path) -> tuple[Any, int]:
        """Configuration, and index of the first layer with cross-attention."""
        return read_config(folder), 0

    @classmethod
    def _trim(cls, first: int) -> Callable[[nn.Module], None] | None:
        """Takes away what the folder's model does not have; see `load_network`."""
        return None

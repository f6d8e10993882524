"""A folder of golden numbers of SegGPT's authors: what is in it, read from its arrays, descriptor and model.

The layout is that of shared/golden/seggpt (its README says how each number was made). Nothing here knows a seed, a size
or a number of prompts.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import SegGptConfig, SegGptForImageSegmentation

from tests.parity.golden_folder import golden_folder

# The authors' names -> the library's, in this order.
_NAMES = (
    (r"patch_embed\.proj", "model.embeddings.patch_embeddings.projection"),
    (r"segment_token_x", "model.embeddings.segment_token_input"),
    (r"segment_token_y", "model.embeddings.segment_token_prompt"),
    (r"type_token_cls", "model.embeddings.type_token_semantic"),
    (r"type_token_ins", "model.embeddings.type_token_instance"),
    (r"mask_token", "model.embeddings.mask_token"),
    (r"pos_embed", "model.embeddings.position_embeddings"),
    (r"blocks\.(\d+)\.norm1", r"model.encoder.layers.\1.layernorm_before"),
    (r"blocks\.(\d+)\.norm2", r"model.encoder.layers.\1.layernorm_after"),
    (r"blocks\.(\d+)\.attn", r"model.encoder.layers.\1.attention"),
    (r"blocks\.(\d+)\.mlp\.fc", r"model.encoder.layers.\1.mlp.lin"),
    (r"norm", "model.encoder.layernorm"),
    (r"decoder_pred\.0", "decoder.decoder_pred.conv"),
    (r"decoder_pred\.1", "decoder.decoder_pred.layernorm"),
    (r"decoder_pred\.3", "decoder.decoder_pred.head"),
    (r"decoder_embed", "decoder.decoder_embed"),
)
_COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "ten": 10}


class Golden:
    """A golden folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = json.loads((folder / "forward.json").read_text())

    @cached_property
    def arrays(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(value.copy()) for name, value in np.load(self.folder / "forward.npz").items()}

    @property
    def cases(self) -> list[str]:
        """Names of the outputs, e.g. `three_binary_instance`."""
        return [name for name in self.arrays if name.split("_")[0] in _COUNTS and "_block" not in name]

    def case(self, name: str) -> tuple[int, str, str]:
        """Prompts, `binary` or `colour`, and the type token of an output."""
        count, kind, token = name.split("_")
        return _COUNTS[count], kind, token

    def prompts(self, name: str) -> tuple[Tensor, Tensor]:
        """Images float32 [P,3,R,R] in [0,1], and their masks uint8 [P,3,R,R] of 0 and 1."""
        count, kind, _ = self.case(name)
        masks = self.arrays["prompt_masks" if kind == "binary" else "prompt_colours"]
        return tuple(each[:count].permute(0, 3, 1, 2) for each in (self.arrays["prompt_images"], masks))  # type: ignore[return-value]

    def blocks(self, name: str) -> dict[int, Tensor]:
        """Outputs of blocks that were kept, [batch,h,w,D]."""
        found = {key: re.fullmatch(rf"{name}_block(\d+)", key) for key in self.arrays}
        return {int(match[1]): self.arrays[key] for key, match in found.items() if match}

    def save(self, folder: Path) -> Path:
        """The model in the library's layout."""
        made = self.facts["model"]
        config = SegGptConfig(
            image_size=list(made["img_size"]), patch_size=made["patch_size"], hidden_size=made["embed_dim"],
            num_hidden_layers=made["depth"], num_attention_heads=made["num_heads"], qkv_bias=made["qkv_bias"],
            mlp_dim=int(made["mlp_ratio"] * made["embed_dim"]), decoder_hidden_size=made["decoder_embed_dim"],
            pretrain_image_size=made["pretrain_img_size"], use_relative_position_embeddings=made["use_rel_pos"],
        )  # fmt: skip
        model = SegGptForImageSegmentation(config)
        tensors = load_file(self.folder / "model.safetensors")
        model.load_state_dict({_renamed(name): value.float() for name, value in tensors.items()})
        model.save_pretrained(folder, safe_serialization=True)
        return folder


def _renamed(name: str) -> str:
    for pattern, ours in _NAMES:
        found, count = re.subn(rf"^{pattern}(?=\.|\d|$)", ours, name)
        if count:
            return found
    raise KeyError(name)


def open_golden(request: pytest.FixtureRequest) -> Golden:
    """See `golden_folder`."""
    return Golden(golden_folder(request, "seggpt"))

"""Small BLIPs and ALBEFs with random weights, in their own file layouts, for the tests of the backbones."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WORDS = ("image", "of", "wheel", "sky", "traffic", "sign", "window")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PROMPTS = ("Image of sky.", "Image of traffic sign.", "Image of wheel.")
LIMIT = 24
"""Tokens that a prompt may have."""


def vocabulary() -> list[str]:
    """Words that are one token each; all others are made of letters."""
    letters = [*string.ascii_lowercase, *(f"##{each}" for each in string.ascii_lowercase)]
    return [*SPECIAL, ".", *letters, *WORDS]


def randomise(tensors: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Numbers large enough that attention prefers some keys: rows of linear layers of norm 1.5 or so."""
    drawn = torch.Generator().manual_seed(seed)
    made = {}
    for name, value in tensors.items():
        noise = torch.randn(value.shape, generator=drawn)
        if "norm" in name.lower():
            made[name] = (1.0 if name.endswith("weight") else 0.0) + 0.2 * noise
        elif value.ndim < 2:
            made[name] = 0.2 * noise
        else:
            fan = value[0].numel() if value.ndim in (2, 4) and "embed" not in name.replace("patch_embed", "") else 4
            made[name] = 1.5 * noise / fan**0.5
    return made


def blip_config(**text: Any) -> dict[str, Any]:
    """Patches of 8 pixels, made for 32; `text` changes the text part."""
    return {
        "model_type": "blip",
        "image_text_hidden_size": 16,
        "text_config": {
            "vocab_size": len(vocabulary()),
            "hidden_size": 32,
            "encoder_hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": LIMIT,
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "sep_token_id": 3,
            **text,
        },
        "vision_config": {
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
    }


def save_blip(folder: Path, **text: Any) -> Path:
    """A folder in BLIP's layout, with `vocab.txt`."""
    from safetensors.torch import save_file
    from transformers import BlipConfig, BlipForImageTextRetrieval

    folder.mkdir(parents=True, exist_ok=True)
    config = blip_config(**text)
    with torch.device("meta"):
        network = BlipForImageTextRetrieval(BlipConfig.from_dict(json.loads(json.dumps(config))))
    save_file(randomise(network.state_dict()), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": LIMIT})
    )
    return folder


def stock_blip(folder: Path) -> Any:
    """The same model as the library loads it."""
    from transformers import BlipForImageTextRetrieval

    return BlipForImageTextRetrieval.from_pretrained(folder, local_files_only=True).eval()


def prompts_of(count: int) -> tuple[str, ...]:
    return tuple(f"Image of {string.ascii_lowercase[index]}." for index in range(count))

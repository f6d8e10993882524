"""Stable Diffusion's architecture with random weights, at full size or thinner: nothing has to be downloaded.

A folder is written once and read through the normal path (`backbone.weights=<folder>`), so that what is measured is
the code that a real model runs through.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from slime_bench.backbones.weights import ASSETS, CLIP_VOCABULARY, SD_CONFIGS

BASE: Final = "sd21_base"
"""The architecture that is made thinner."""

SHARPER: Final = {"attn1": 1.5, "attn2": 1.3}
"""Factors of the queries' and keys' weights: with the plain ones attention is nearly uniform, which no model's is. With
much larger ones random weights amplify every rounding, and no two kernels agree."""

OUTPUT: Final = 0.2
"""Factor of the last convolution, so that guidance does not make the diffusion loss all that matters."""


Changes = dict[str, dict[str, Any]]
"""part -> key -> value, in place of what the architecture's configuration says."""


def _thin(
    channels: Sequence[int], heads: Sequence[int], text: int, vae: Sequence[int], unet_groups: int, vae_groups: int
) -> Changes:
    """A thinner Stable Diffusion 2.1.

    Args:
        channels: of the U-Net's four levels. heads: at each, so that channels / heads is the head width.
        text: width of a token's embedding. vae: channels of the four levels. unet_groups, vae_groups: of the norms.
    """
    return {
        "unet": {
            "block_out_channels": list(channels),
            "attention_head_dim": list(heads),  # which, as in SD 2.1, is the number of heads
            "cross_attention_dim": text,
            "norm_num_groups": unet_groups,
        },
        "vae": {"block_out_channels": list(vae), "norm_num_groups": vae_groups},
        # It runs once per trial; two layers will do.
        "text_encoder": {
            "hidden_size": text,
            "intermediate_size": 4 * text,
            "num_hidden_layers": 2,
            "num_attention_heads": max(1, text // 16),
            "projection_dim": text,
        },
    }


WIDTHS: Final[dict[str, Changes]] = {
    # the shape of the weights that the golden numbers were made with
    "golden": _thin((16, 32, 48, 48), (2, 4, 6, 6), 48, (16, 32, 32, 32), 16, 8),
    # a fifth of the channels; heads as wide as Stable Diffusion's own, 64
    "fifth": _thin((64, 128, 256, 256), (1, 2, 4, 4), 256, (32, 64, 128, 128), 32, 32),
    "full": {},
}
"""Changes by the width's name; `full` is the published architecture itself."""


def build_width(width: str, folder: Path) -> Path:
    """Write the folder of `WIDTHS[width]`, in bfloat16: read in any precision its weights are the same numbers."""
    return build_folder(BASE, folder, changes=WIDTHS[width], sharper=True)


def build_folder(
    name: str,
    folder: Path,
    dtype: torch.dtype = torch.bfloat16,
    changes: Changes | None = None,
    sharper: bool = False,
) -> Path:
    """Write a diffusers folder with random weights of a true architecture.

    Args:
        name: a folder of `slime_bench/assets/sd_configs`, such as `sd15` or `sd21_base`.
        folder: to be made. dtype: of the files.
        sharper: see `SHARPER`.

    Returns:
        folder, with unet, vae, text_encoder, tokenizer, scheduler and model_index.json.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # of writing a few files
    shutil.copytree(ASSETS / SD_CONFIGS / name, folder)
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(ASSETS / CLIP_VOCABULARY / file, folder / "tokenizer")
    for part in ("unet", "vae", "text_encoder"):
        path = folder / part / "config.json"
        config = {**json.loads(path.read_text()), **(changes or {}).get(part, {})}
        path.write_text(json.dumps(config, indent=1))
        model = _architecture(part, config, dtype)
        fill(model)
        if sharper and part == "unet":
            _sharpen(model)
        model.save_pretrained(folder / part)  # type: ignore[operator]
        del model
    return folder


def _architecture(part: str, config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        if part == "text_encoder":
            model = CLIPTextModel(CLIPTextConfig(**config))
        else:
            model = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part].from_config(config)
    positions = {name: torch.arange(value.shape[-1])[None] for name, value in model.named_buffers() if "ids" in name}
    model = model.to(dtype).to_empty(device="cpu")
    for name, value in positions.items():
        model.get_buffer(name).copy_(value)
    return model


@torch.no_grad()
def fill(model: nn.Module, seed: int = 0) -> None:
    """Normal weights of variance 1 / fan-in, biases 0, factors of normalisations 1, so that signals keep their size.

    Drawn once and repeated: a billion draws would take longer than all that is done with them.
    """
    pool = torch.randn(1_000_003, generator=torch.Generator().manual_seed(seed))
    for name, value in model.named_parameters():
        if value.ndim == 1:
            value.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        fan_in = value[0].numel()
        scaled = (pool * fan_in**-0.5).to(value.dtype)
        flat = value.view(-1)
        for start in range(0, flat.numel(), len(pool)):
            flat[start : start + len(pool)] = scaled[: min(len(pool), flat.numel() - start)]


@torch.no_grad()
def _sharpen(unet: nn.Module) -> None:
    """As `SHARPER` and `OUTPUT` say; and keys unlike queries, which `fill` makes alike: attention is not symmetric."""
    for name, value in unet.named_parameters():
        if name == "conv_out.weight":
            value.mul_(OUTPUT)
        *_, kind, projection, _ = ["", "", *name.split(".")]
        if kind in SHARPER and projection in ("to_q", "to_k"):
            value.copy_((value if projection == "to_q" else value.roll(1, 1)) * SHARPER[kind])

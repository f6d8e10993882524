"""Name a diffusers model's tensors as the original Stable Diffusion code does: the inverse of a single-file loader."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def checkpoint(unet: Any, vae: Any, text_encoder: Any, open_clip: bool) -> dict[str, torch.Tensor]:
    """One state dict with the names of SD 1.x, or of SD 2.x where `open_clip`."""
    result = {f"model.diffusion_model.{name}": value for name, value in unet_names(unet)}
    result |= {f"first_stage_model.{name}": value for name, value in vae_names(vae)}
    if open_clip:
        result |= {f"cond_stage_model.model.{name}": value for name, value in open_clip_names(text_encoder)}
    else:
        prefix = "cond_stage_model.transformer.text_model."
        result |= {f"{prefix}{name}": value for name, value in text_encoder.state_dict().items()}
    return {name: value.detach().clone().contiguous() for name, value in result.items()}


def unet_names(unet: Any) -> Iterable[tuple[str, torch.Tensor]]:
    """Blocks are numbered through: on the way down one for the first convolution, then layers and halvings."""
    each = unet.config.layers_per_block + 1
    fixed = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    fixed |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    for name, value in unet.state_dict().items():
        stem, _, leaf = name.rpartition(".")
        if stem in fixed:
            yield f"{fixed[stem]}.{leaf}", value
            continue
        found = re.fullmatch(r"(down_blocks|up_blocks|mid_block)\.?(\d*)\.(\w+)\.(\d+)\.(.+)", name)
        assert found, name
        side, block, kind, index, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
        if kind == "resnets":
            inner, _, leaf = rest.rpartition(".")
            rest = f"{_RESNET[inner]}.{leaf}"
        if side == "mid_block":
            yield f"middle_block.{2 * index if kind == 'resnets' else 1}.{rest}", value
        elif kind == "downsamplers":
            yield f"input_blocks.{each * (block + 1)}.0.{rest.replace('conv', 'op')}", value
        elif kind == "upsamplers":
            place = 2 if hasattr(unet.up_blocks[block], "attentions") else 1
            yield f"output_blocks.{each * block + each - 1}.{place}.{rest}", value
        else:
            number = each * block + index
            start = f"input_blocks.{number + 1}" if side == "down_blocks" else f"output_blocks.{number}"
            yield f"{start}.{0 if kind == 'resnets' else 1}.{rest}", value


def vae_names(vae: Any) -> Iterable[tuple[str, torch.Tensor]]:
    """The decoder's levels are numbered from the image's side; attention is made of 1x1 convolutions."""
    last = len(vae.config.block_out_channels) - 1
    for name, value in vae.state_dict().items():
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{last - int(m[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        if "mid_block.attentions.0" in name:
            stem, _, leaf = name.partition("mid_block.attentions.0.")[2].rpartition(".")
            name = f"{name.partition('mid_block')[0]}mid.attn_1.{_VAE_ATTENTION[stem]}.{leaf}"
            value = value[:, :, None, None] if value.ndim == 2 else value
        yield name, value


def open_clip_names(text_encoder: Any) -> Iterable[tuple[str, torch.Tensor]]:
    """Queries, keys and values of a layer are one matrix; a projection of the pooled output comes on top."""
    state = text_encoder.state_dict()
    yield "token_embedding.weight", state["embeddings.token_embedding.weight"]
    yield "positional_embedding", state["embeddings.position_embedding.weight"]
    width = text_encoder.config.hidden_size
    yield "text_projection", torch.eye(width)
    for leaf in ("weight", "bias"):
        yield f"ln_final.{leaf}", state[f"final_layer_norm.{leaf}"]
        for index in range(text_encoder.config.num_hidden_layers):
            layer, start = f"encoder.layers.{index}", f"transformer.resblocks.{index}"
            parts = [state[f"{layer}.self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            yield f"{start}.attn.in_proj_{leaf}", torch.cat(parts)
            for ours, theirs in _OPEN_CLIP.items():
                yield f"{start}.{theirs}.{leaf}", state[f"{layer}.{ours}.{leaf}"]

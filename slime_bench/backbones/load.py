"""Networks and tokenizers from files that `slime_bench.backbones.weights` has found; the hub is not asked here."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import nn

from slime_bench.backbones.diffusion import Source
from slime_bench.backbones.weights import NETWORKS, PARTS, RESTORE, part_weights, unusable
from slime_bench.errors import BackboneError

DTYPES: Final[dict[str, torch.dtype]] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_BUFFERS: Final = ("inv_freq", "position_ids")
"""Ends of the names of tensors that older libraries stored and newer ones compute."""
_AVERAGED: Final = "model_ema."
_TOKENIZER_SETTINGS: Final = ("bos_token", "eos_token", "unk_token", "pad_token", "model_max_length")
_Loaded = TypeVar("_Loaded")


def guarded(what: str, path: Path, load: Callable[[], _Loaded]) -> _Loaded:
    """What `load` returns, without the libraries' warnings and progress bars.

    Raises:
        BackboneError: in place of whatever `load` raises: for torn safetensors, missing keys or foreign JSON each
            library has its own exception.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # redrawn over the trial's own
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load()
    except Exception as error:
        raise BackboneError(
            f"the {what} of the backbone cannot be loaded", path=path,
            found=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            expected="complete files of the model that the configuration describes", remedy=RESTORE,
        ) from error  # fmt: skip
    finally:
        transformers_logging.set_verbosity(verbosity)


def _pretrained(kind: Any, folder: Path, whole: bool = False, **settings: Any) -> Any:
    """A network of either library; both would only warn of missing tensors, and go on with random numbers there.

    Args:
        whole: whether tensors that have no place in the network are refused as well.
    """
    settings |= {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    # Tensors of another shape are to be named like the missing ones, and not to raise.
    model, info = kind.from_pretrained(folder, ignore_mismatched_sizes=True, **settings)
    _refuse("missing or of another shape", [*info["missing_keys"], *map(str, info.get("mismatched_keys", ()))])
    if whole:
        _refuse("of another model", [name for name in info["unexpected_keys"] if not name.endswith(_BUFFERS)])
    return model


def _refuse(what: str, names: list[str]) -> None:
    if names:
        raise ValueError(f"{len(names)} tensors are {what}, such as {min(names)}")


def load_parts(place: Source, dtype: torch.dtype) -> dict[str, Any]:
    """`vae`, `unet`, `text_encoder`, `tokenizer`, `scheduler`; the networks' weights are read into `dtype` at once.

    Raises:
        BackboneError: torn files, missing tensors, or weights of another architecture.
    """
    if place.is_file:
        parts = guarded("checkpoint", place.weights, partial(_single_file, place.weights, place.configs, dtype))
    else:
        parts = {
            part: guarded(part, place.weights / part, partial(_network, place.weights, part, dtype))
            for part in NETWORKS
        }
    for part, load in (("tokenizer", _tokenizer), ("scheduler", _scheduler)):
        parts[part] = guarded(part, place.configs / part, partial(load, place))
    return parts


def _network(folder: Path, part: str, dtype: torch.dtype) -> nn.Module:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    variant = part_weights(folder, part)[1]
    if part == "text_encoder":
        return _pretrained(CLIPTextModel, folder / part, dtype=dtype, variant=variant)
    kind = {"vae": AutoencoderKL, "unet": UNet2DConditionModel}[part]
    # The other way of loading needs a package that is not asked for, and saves nothing here.
    return _pretrained(kind, folder / part, torch_dtype=dtype, variant=variant, low_cpu_mem_usage=False)


def _scheduler(place: Source) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_pretrained(place.configs / "scheduler", local_files_only=True)


def _tokenizer(place: Source) -> Any:
    from transformers import CLIPTokenizer

    folder = place.configs / "tokenizer"
    if place.vocabulary == folder:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    settings = json.loads((folder / PARTS["tokenizer"]).read_text(encoding="utf-8"))
    chosen = {key: settings[key] for key in _TOKENIZER_SETTINGS if key in settings}
    return CLIPTokenizer(
        vocab=str(place.vocabulary / "vocab.json"), merges=str(place.vocabulary / "merges.txt"), **chosen
    )


def _single_file(file: Path, configs: Path, dtype: torch.dtype) -> dict[str, Any]:
    """`unet`, `vae` and `text_encoder` of a checkpoint in the original naming, through the library's own conversion.

    Where it holds averaged weights beside the trained ones, the U-Net's are the averaged ones, as in the hub's folders.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders import single_file_utils as library
    from diffusers.models.modeling_utils import no_init_weights
    from safetensors.torch import load_file
    from transformers import CLIPTextConfig, CLIPTextModel

    checkpoint = load_file(file)
    averaged = any(name.startswith(_AVERAGED) for name in checkpoint)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # no float32 copy
    try:
        with no_init_weights():  # no random start: seconds instead of minutes
            unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(configs / "unet"))
            vae = AutoencoderKL.from_config(AutoencoderKL.load_config(configs / "vae"))
            text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(configs / "text_encoder"))
    finally:
        torch.set_default_dtype(before)
    if library.is_clip_model(checkpoint):
        text = library.convert_ldm_clip_checkpoint(checkpoint)
    else:
        text = library.convert_open_clip_checkpoint(text_encoder, checkpoint)
    networks: dict[str, Any] = {"unet": unet, "vae": vae, "text_encoder": text_encoder}
    for part, tensors in (
        ("unet", library.convert_ldm_unet_checkpoint(checkpoint, unet.config, extract_ema=averaged)),
        ("vae", library.convert_ldm_vae_checkpoint(checkpoint, vae.config)),
        ("text_encoder", {name.removeprefix("text_model."): value for name, value in text.items()}),
    ):
        # Not strict: a checkpoint also holds buffers, and projections that nobody asks for.
        absent = networks[part].load_state_dict(tensors, strict=False).missing_keys
        _refuse("missing", [f"{part}.{name}" for name in absent])
    return networks


def load_network(kind: Any, folder: Path, dtype: torch.dtype, **settings: Any) -> Any:
    """A network of the library, of the class `kind`, with the weights of a folder, in `dtype`; see `_pretrained`.

    Tensors go one by one from the file into `dtype`: no second copy of the weights is ever held.

    Raises:
        BackboneError: torn files, missing tensors, or weights of another architecture.
    """
    return guarded("network", folder, lambda: _pretrained(kind, folder, dtype=dtype, **settings))


def blip_class(first: int | None) -> Any:
    """`BlipForImageTextRetrieval`; for an ALBEF without what that lacks: cross-attention before layer `first`, and the
    projections that nobody asks for."""
    from transformers import BlipForImageTextRetrieval

    class Trimmed(BlipForImageTextRetrieval):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            for layer in self.text_encoder.encoder.layer[:first]:
                del layer.crossattention
            del self.vision_proj, self.text_proj

    return BlipForImageTextRetrieval if first is None else Trimmed


def load_blip_tokenizer(folder: Path, rows: int) -> Any:
    """The BERT tokenizer of a folder.

    Args:
        rows: word embeddings that the model has.

    Raises:
        BackboneError: a vocabulary that cannot be read, lacks [CLS], [SEP] or [PAD], or has more words than the model.
    """
    from transformers import BertTokenizer

    tokenizer = guarded(
        "tokenizer", folder, lambda: BertTokenizer.from_pretrained(folder, local_files_only=True, verbose=False)
    )
    vocabulary = tokenizer.get_vocab()
    special = {tokenizer.cls_token, tokenizer.sep_token, tokenizer.pad_token}
    largest = max(vocabulary.values(), default=-1)
    if not special <= vocabulary.keys() or largest >= rows:
        raise unusable(
            folder, f"a vocabulary of {len(vocabulary)} words, numbered up to {largest}",
            f"one of BERT, with [CLS], [SEP] and [PAD], numbered below {rows}, the model's word embeddings",
        )  # fmt: skip
    return tokenizer

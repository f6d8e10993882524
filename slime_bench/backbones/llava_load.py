"""Load the network and the tokeniser of a LLaVA, from local files only."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from slime_bench.backbones.blip_load import guarded

_BUFFERS: Final = ("inv_freq", "position_ids")
"""Ends of the names of tensors that older libraries stored and newer ones compute."""


def load_network(folder: Path, dtype: torch.dtype) -> Any:
    """The library's own `LlavaForConditionalGeneration`, frozen and in evaluation mode.

    Tensors go one by one from the file into `dtype`: no second copy of the weights is ever held.

    Raises:
        BackboneError: torn files, missing tensors, or weights of another architecture.
    """
    return _quietly("network", folder, lambda: _network(folder, dtype))


def load_tokenizer(folder: Path) -> Any:
    """The tokeniser of the folder, one that knows where in the text a token lies.

    Raises:
        BackboneError: files that cannot be read, or a tokeniser of another kind.
    """
    return _quietly("tokeniser", folder, lambda: _tokenizer(folder))


def _network(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import LlavaForConditionalGeneration

    model, info = LlavaForConditionalGeneration.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation="sdpa",
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that they are named below
    )
    # The library would only warn: go on with random numbers in these places, or with a part of the model.
    absent = sorted([*info["missing_keys"], *(str(each) for each in info["mismatched_keys"])])
    if absent:
        raise ValueError(f"{len(absent)} tensors are missing or of another shape, such as {absent[0]}")
    foreign = sorted(name for name in info["unexpected_keys"] if not name.endswith(_BUFFERS))
    if foreign:
        raise ValueError(f"{len(foreign)} tensors have no place in the model that config.json describes: {foreign[0]}")
    return model.requires_grad_(False).eval()


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.is_fast:
        raise ValueError("it does not say where in a text a token lies")
    return tokenizer


def _quietly(name: str, folder: Path, load: Callable[[], Any]) -> Any:
    """As `guarded`; what the library would warn of is an error here."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # redrawn over the trial's own
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return guarded(name, folder, load, "complete files of the LLaVA that config.json describes")
    finally:
        transformers_logging.set_verbosity(verbosity)

"""Read a folder in BLIP's layout: facts from its JSON files, the network in stock modules, the tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import nn

from slime_bench.backbones.blip_files import (
    CONFIG,
    PREPROCESSOR,
    VOCABULARIES,
    read_json,
    unreadable,
    weight_files,
)
from slime_bench.backbones.files import RESTORE
from slime_bench.backbones.vlm import Statistics, VlmFacts
from slime_bench.errors import BackboneError

CLIP: Final[Statistics] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""CLIP's statistics, which BLIP and ALBEF were trained with."""

_DROPPED: Final = ".position_ids"  # a buffer that older libraries stored
_COMPLETE: Final = "complete files of one BLIP model: config.json, model.safetensors, vocabulary"
_Loaded = TypeVar("_Loaded")


def read_config(folder: Path, kind: str = "blip") -> Any:
    """The library's `BlipConfig` of a folder; keys that the file leaves out have the library's defaults.

    Args:
        kind: what the file must call its model.

    Raises:
        BackboneError: no JSON, a model of another kind, or values that the library refuses.
    """
    from transformers import BlipConfig

    content = read_json(folder / CONFIG)
    if content.get("model_type") != kind:
        raise unreadable(folder / CONFIG, f"model_type {content.get('model_type')!r}, not {kind!r}")
    return guarded("configuration", folder / CONFIG, lambda: BlipConfig.from_dict({**content, "model_type": "blip"}))


def facts(folder: Path, config: Any, first: int = 0) -> VlmFacts:
    """What can be known of a model without its weights.

    Args:
        config: as `read_config` gives it. first: index of the first text layer with cross-attention.
    """
    text = config.text_config
    limit = int(text.max_position_embeddings)
    path = folder / "tokenizer_config.json"
    stated = read_json(path).get("model_max_length") if path.is_file() else None
    if isinstance(stated, int | float) and 0 < stated < limit:
        limit = int(stated)
    names = tuple(f"layer.{index}" for index in range(first, text.num_hidden_layers))
    return VlmFacts(names, patch=int(config.vision_config.patch_size), num_tokens=limit)


def own_statistics(folder: Path) -> Statistics:
    """Pixel statistics that the model was trained with: those of its folder, else CLIP's.

    Raises:
        BackboneError: a file that does not hold three numbers each.
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        return CLIP
    content = read_json(path)
    found = [content.get("image_mean", CLIP[0]), content.get("image_std", CLIP[1])]
    for values in found:
        if not isinstance(values, list | tuple) or len(values) != 3 or not all(_number(each) for each in values):
            raise unreadable(path, f"image_mean {found[0]}, image_std {found[1]}")
    if not all(each > 0 for each in found[1]):
        raise unreadable(path, f"image_std {found[1]}")
    return tuple(map(float, found[0])), tuple(map(float, found[1]))


def load_network(folder: Path, config: Any, dtype: torch.dtype, trim: Callable[[nn.Module], None] | None = None) -> Any:
    """`BlipForImageTextRetrieval` with the weights of a folder, in `dtype`; no random start, no second copy.

    Args:
        trim: takes away what the folder's model does not have, before weights are looked for.

    Raises:
        BackboneError: torn files, missing tensors, tensors of another shape.
    """
    network = guarded("architecture", folder / CONFIG, lambda: empty_network(config))
    if trim is not None:
        trim(network)
    tensors = read_tensors(folder, network.state_dict(), dtype)
    network.load_state_dict(tensors, assign=True)
    embeddings = network.text_encoder.embeddings  # its buffer is stored nowhere
    embeddings.position_ids = torch.arange(config.text_config.max_position_embeddings).expand((1, -1))
    return network


def empty_network(config: Any) -> Any:
    """`BlipForImageTextRetrieval` without memory for its weights."""
    from transformers import BlipForImageTextRetrieval

    with torch.device("meta"):
        return BlipForImageTextRetrieval(config)


def read_tensors(folder: Path, expected: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a folder that a network expects, in `dtype`; others are left in the file.

    Args:
        expected: tensors by name, of which the shapes count.

    Raises:
        BackboneError: torn files, missing tensors, tensors of another shape, numbers that are not finite.
    """
    from safetensors import safe_open

    files = weight_files(folder)
    found: dict[str, torch.Tensor] = {}

    def read(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                if name in expected and not name.endswith(_DROPPED):
                    found[name] = file.get_tensor(name)

    for path in files:
        guarded("weights", path, partial(read, path))
    check_tensors(found, expected, files[0])
    for name, value in found.items():
        found[name] = value.to(dtype)
        if not bool(torch.isfinite(found[name].sum(dtype=torch.float32))):
            raise BackboneError(
                "the weights of the backbone are not finite",
                path=files[0],
                found=f"NaN or infinity in {name}, read as {str(dtype).removeprefix('torch.')}",
                expected="finite numbers",
                remedy="trainer.precision=fp32" if bool(torch.isfinite(value).all()) else RESTORE,
            )
    return found


def check_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], path: Path) -> None:
    """Refuse weights of another architecture than the expected tensors are of.

    Raises:
        BackboneError: tensors that are missing or of another shape.
    """
    wrong = [
        f"{name} {'is missing' if name not in found else f'is {list(found[name].shape)}, not {list(value.shape)}'}"
        for name, value in expected.items()
        if name not in found or found[name].shape != value.shape
    ]
    if wrong:
        raise BackboneError(
            "the weights of the backbone are not those of its architecture",
            path=path,
            found=f"{len(wrong)} tensors are missing or of another shape, such as {wrong[0]}",
            expected="all tensors of the architecture that the configuration describes",
            remedy=RESTORE,
        )


def load_tokenizer(folder: Path, rows: int) -> Any:
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
    special = {"[CLS]": tokenizer.cls_token, "[SEP]": tokenizer.sep_token, "[PAD]": tokenizer.pad_token}
    vocabulary = tokenizer.get_vocab()
    for role, token in special.items():
        if token not in vocabulary:
            raise _vocabulary(folder, f"no {role}", "a BERT vocabulary, with [CLS], [SEP] and [PAD]")
    largest = max(vocabulary.values(), default=-1)
    if largest >= rows:
        raise _vocabulary(folder, f"a token numbered {largest}", f"numbers below {rows}, the model's word embeddings")
    return tokenizer


def guarded(what: str, path: Path, load: Callable[[], _Loaded], expected: str = _COMPLETE) -> _Loaded:
    """What `load` returns. Torn safetensors, foreign JSON: each library has its own exception.

    Raises:
        BackboneError: in place of whatever `load` raises.
    """
    try:
        return load()
    except BackboneError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise BackboneError(
            f"the {what} of the backbone cannot be loaded",
            path=path,
            found=f"{type(error).__name__}: {text}",
            expected=expected,
            remedy=RESTORE,
        ) from error


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _vocabulary(folder: Path, found: str, expected: str) -> BackboneError:
    return BackboneError(
        "the vocabulary does not go with the model",
        path=folder / next((name for name in VOCABULARIES if (folder / name).is_file()), VOCABULARIES[0]),
        found=found,
        expected=expected,
        remedy=RESTORE,
    )

"""Networks and tokenizers from files that `slime_bench.backbones.weights` has found; the hub is not asked here."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import nn

from slime_bench.backbones.diffusion import Source
from slime_bench.backbones.weights import CONFIG, NETWORKS, PARTS, RESTORE, VOCABULARIES, part_weights, weight_files
from slime_bench.errors import BackboneError

DTYPES: Final[dict[str, torch.dtype]] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_COMPLETE: Final = "complete files of the model that the configuration describes"
_BUFFERS: Final = ("inv_freq", "position_ids")
"""Ends of the names of tensors that older libraries stored and newer ones compute."""
_AVERAGED: Final = "model_ema."
_TOKENIZER_SETTINGS: Final = ("bos_token", "eos_token", "unk_token", "pad_token", "model_max_length")
_Loaded = TypeVar("_Loaded")


def guarded(what: str, path: Path, load: Callable[[], _Loaded], expected: str = _COMPLETE) -> _Loaded:
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
    except BackboneError:
        raise
    except Exception as error:
        raise BackboneError(
            f"the {what} of the backbone cannot be loaded", path=path,
            found=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", expected=expected, remedy=RESTORE,
        ) from error  # fmt: skip
    finally:
        transformers_logging.set_verbosity(verbosity)


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
        return _pretrained(CLIPTextModel, folder / part, dtype=dtype, variant=variant)[0]
    kind = {"vae": AutoencoderKL, "unet": UNet2DConditionModel}[part]
    # The other way of loading needs a package that is not asked for, and saves nothing here.
    return _pretrained(kind, folder / part, torch_dtype=dtype, variant=variant, low_cpu_mem_usage=False)[0]


def _pretrained(kind: Any, folder: Path, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """A network of either library, and what it reports; both would only warn of missing tensors, and go on with random
    numbers in these places."""
    settings |= {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    model, info = kind.from_pretrained(folder, **settings)
    absent = sorted([*info["missing_keys"], *(str(each) for each in info.get("mismatched_keys", ()))])
    if absent:
        raise ValueError(f"{len(absent)} tensors are missing or of another shape, such as {absent[0]}")
    return model, info


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
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
    from safetensors.torch import load_file
    from transformers import CLIPTextModel

    checkpoint = load_file(file)
    settings: dict[str, Any] = {"config": str(configs), "local_files_only": True, "torch_dtype": dtype}
    averaged = {"extract_ema": any(name.startswith(_AVERAGED) for name in checkpoint)}
    networks: dict[str, Any] = {}
    for part, kind, extra in (("unet", UNet2DConditionModel, averaged), ("vae", AutoencoderKL, {})):
        with _built_in(dtype):
            networks[part] = _strict(kind).from_single_file(
                checkpoint, subfolder=part, low_cpu_mem_usage=False, **settings, **extra
            )
    with _built_in(dtype):
        networks["text_encoder"] = create_diffusers_clip_model_from_ldm(
            _strict(CLIPTextModel), checkpoint, subfolder="text_encoder", **settings
        )
    for part, network in networks.items():
        left = [name for name, value in network.named_parameters() if value.is_meta]
        if left:  # where the library loads through `accelerate`, it passes by `load_state_dict`
            raise _absent(part, left)
    return networks


def _strict(kind: Any) -> Any:
    """The class `kind`, but with an error for tensors that a checkpoint lacks; the library would leave them as made."""

    class Strict(kind):
        def load_state_dict(self, state_dict: Any, strict: bool = True, **settings: Any) -> Any:
            outcome = super().load_state_dict(state_dict, strict=False, **settings)
            if outcome.missing_keys:
                raise _absent(kind.__name__, outcome.missing_keys)
            return outcome

    Strict.__name__ = Strict.__qualname__ = kind.__name__  # by which the library knows its classes
    return Strict


def _absent(part: str, names: list[str]) -> ValueError:
    return ValueError(f"{part}: {len(names)} tensors are missing, such as {min(names)}")


@contextmanager
def _built_in(dtype: torch.dtype) -> Iterator[None]:
    """Make networks in `dtype` and without their random start: no float32 copy, and seconds instead of minutes."""
    from diffusers.models.modeling_utils import no_init_weights

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights():
            yield
    finally:
        torch.set_default_dtype(before)


def load_blip(folder: Path, config: Any, dtype: torch.dtype, trim: Callable[[Any], None] | None = None) -> Any:
    """`BlipForImageTextRetrieval` with the weights of a folder, in `dtype`; no random start, no second copy.

    Args:
        trim: takes away what the folder's model does not have, before weights are looked for.

    Raises:
        BackboneError: torn files, missing tensors, tensors of another shape, numbers that are not finite.
    """
    network = guarded("architecture", folder / CONFIG, lambda: empty_blip(config))
    if trim is not None:
        trim(network)
    network.load_state_dict(_read_tensors(folder, network.state_dict(), dtype), assign=True)
    embeddings = network.text_encoder.embeddings  # its buffer is stored nowhere
    embeddings.position_ids = torch.arange(config.text_config.max_position_embeddings).expand((1, -1))
    return network


def empty_blip(config: Any) -> Any:
    """`BlipForImageTextRetrieval` without memory for its weights."""
    from transformers import BlipForImageTextRetrieval

    with torch.device("meta"):
        return BlipForImageTextRetrieval(config)


def trim_to(first: int) -> Callable[[Any], None]:
    """Takes from BLIP's modules what ALBEF lacks: cross-attention before layer `first`; and what nobody asks for."""

    def trim(network: Any) -> None:
        for layer in network.text_encoder.encoder.layer[:first]:
            del layer.crossattention
        del network.vision_proj, network.text_proj

    return trim


def _read_tensors(folder: Path, expected: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a folder that a network expects, in `dtype`; others are left in the file."""
    from safetensors import safe_open

    files = weight_files(folder)
    found: dict[str, torch.Tensor] = {}

    def read(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                if name in expected and not name.endswith(_BUFFERS):
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
            "the weights of the backbone are not those of its architecture", path=path,
            found=f"{len(wrong)} tensors are missing or of another shape, such as {wrong[0]}",
            expected="all tensors of the architecture that the configuration describes", remedy=RESTORE,
        )  # fmt: skip


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
    special = {"[CLS]": tokenizer.cls_token, "[SEP]": tokenizer.sep_token, "[PAD]": tokenizer.pad_token}
    vocabulary = tokenizer.get_vocab()
    largest = max(vocabulary.values(), default=-1)
    found, expected = "", "a BERT vocabulary, with [CLS], [SEP] and [PAD]"
    if absent := [role for role, token in special.items() if token not in vocabulary]:
        found = f"no {absent[0]}"
    elif largest >= rows:
        found, expected = f"a token numbered {largest}", f"numbers below {rows}, the model's word embeddings"
    if found:
        file = next((name for name in VOCABULARIES if (folder / name).is_file()), VOCABULARIES[0])
        raise BackboneError(
            "the vocabulary does not go with the model", path=folder / file, found=found, expected=expected,
            remedy=RESTORE,
        )  # fmt: skip
    return tokenizer


def load_llava(folder: Path, dtype: torch.dtype) -> Any:
    """The library's own `LlavaForConditionalGeneration`, frozen and in evaluation mode.

    Tensors go one by one from the file into `dtype`: no second copy of the weights is ever held.

    Raises:
        BackboneError: torn files, missing tensors, or weights of another architecture.
    """

    def load() -> Any:
        from transformers import LlavaForConditionalGeneration

        model, info = _pretrained(
            LlavaForConditionalGeneration,
            folder,
            dtype=dtype,
            attn_implementation="sdpa",
            ignore_mismatched_sizes=True,  # so that they are named
        )
        foreign = sorted(name for name in info["unexpected_keys"] if not name.endswith(_BUFFERS))
        if foreign:  # the library would go on with a part of the model
            raise ValueError(f"{len(foreign)} tensors have no place in the model of config.json: {foreign[0]}")
        return model.requires_grad_(False).eval()

    return guarded("network", folder, load)


def load_llava_tokenizer(folder: Path) -> Any:
    """The tokeniser of the folder, one that knows where in the text a token lies.

    Raises:
        BackboneError: files that cannot be read, or a tokeniser of another kind.
    """

    def load() -> Any:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if not tokenizer.is_fast:
            raise ValueError("it does not say where in a text a token lies")
        return tokenizer

    return guarded("tokeniser", folder, load)

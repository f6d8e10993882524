"""Reading others' pickled checkpoints as numbers alone, and writing the folders that they become."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from slime_bench.backbones.hashes import sha256
from slime_bench.errors import BackboneError, StorageError
from slime_bench.storage import ordered, write_atomic


def read_tensors(path: Path, key: str, remedy: str, harmless: Sequence[type] = ()) -> dict[str, Tensor]:
    """The tensors of a pickle that torch has saved, those under `key` where it has one; objects other than tensors,
    numbers, texts and their containers are refused unread. Without any tensor: {}.

    Args:
        remedy: what to do about a model of one's own. harmless: classes that may stand in it, and run no code.

    Raises:
        BackboneError: no such file, a torn one, or one that asks for code to be run.
    """
    try:
        with torch.serialization.safe_globals(list(harmless)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn archive, a pickle that names a class, a file of another kind
        found = f"{type(error).__name__}: {error}" if isinstance(error, OSError) else type(error).__name__
        with suppress(Exception):  # torch's own message advises to run the code
            wanted = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            found = f"it asks for {', '.join(wanted)}" if wanted else found
        raise BackboneError(
            "the checkpoint cannot be read safely", path=path, found=found,
            expected="tensors, numbers and texts only: anything else in a pickle can run code when it is read",
            remedy=remedy,
        ) from error  # fmt: skip
    state = content.get(key, content) if isinstance(content, Mapping) else None
    items = state.items() if isinstance(state, Mapping) else ()
    return {str(name): each for name, each in items if isinstance(each, Tensor)}


def refuse_filled(out: Path) -> None:
    """Refuse (StorageError) a folder for a converted model that is a file, or not empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StorageError(
            "the folder for the converted model is not empty", path=out,
            remedy="name a new folder with --out, or remove this one",
        )  # fmt: skip


def write_model(
    out: Path,
    made_by: str,
    checkpoint: Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    said: Mapping[str, Any],
    **more: bytes,
) -> None:
    """Write a converted model: tensors, `more` files, what is `said` of the checkpoint's tensors, and hashes of all;
    `config.json`, without which it is no model, comes last."""
    said = {"made_by": made_by, "checkpoint": checkpoint.name, "checkpoint_sha256": sha256(checkpoint), **said}
    files = {"model.safetensors": ordered(save(dict(tensors))), **more, "conversion.json": json_bytes(said)}
    last = {"config.json": json_bytes(config)}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in {**files, **last}.items()}
    for name, content in {**files, "sha256.json": json_bytes(hashes), **last}.items():
        write_atomic(out / name, content)


def json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()

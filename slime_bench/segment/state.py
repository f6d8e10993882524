"""The file that holds learnt embeddings with all that inference needs besides the backbone's weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_bench.config.secrets import redact
from slime_bench.errors import ResultError
from slime_bench.storage import ordered, write_atomic

if TYPE_CHECKING:
    from slime_bench.segment.masks import RGB

NODES = ("method", "protocol", "backbone", "data")


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and metadata of a `state.safetensors`.

    The metadata: `classes`, `seed`, the nodes of the configuration, and, where `write_state` has made the file,
    `colours` (one for each class) and `fit` (signature of the optimisation).

    Raises:
        ResultError: missing, corrupt, or without the bench's metadata.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        facts = {name: json.loads(metadata[name]) for name in ("classes", "seed", *NODES)}
        facts |= {name: json.loads(metadata[name]) for name in ("colours", "fit") if name in metadata}
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ResultError(
            "this is not a readable state of a trial", path=path,
            found="a folder" if path.is_dir() else f"{type(error).__name__}: {error}",
            expected="embeddings of `slime-bench segment`, or the state.safetensors of a finished trial",
            remedy="give such a file, or --image and --mask to learn new embeddings; "
            "`slime-bench embeddings import` makes one of the authors' files",
        ) from error  # fmt: skip
    start = facts["method"].get("start")
    if isinstance(start, dict) and start.get("kind") == "file":
        start.update(kind="words", path=None)  # the same prompt; the embeddings are in the state
    return tensors, facts


def write_state(
    path: Path, learned: Mapping[str, Any], config: Mapping[str, Any], classes: Sequence[str], colours: Sequence[RGB],
    fit: str,
) -> None:  # fmt: skip
    """`learned` as safetensors, in the form of a trial's state, and with what `read_state` says of `colours` and `fit`.

    Raises:
        StorageError: it cannot be written.
    """
    from safetensors.torch import save

    facts = {"classes": list(classes), "seed": config["seed"], "colours": list(colours), "fit": fit}
    facts |= {name: redact(config[name]) for name in NODES}
    metadata = {name: json.dumps(value, sort_keys=True) for name, value in facts.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in learned.items()}
    write_atomic(path, ordered(save(tensors, metadata=metadata)))


def signature_of(path: Path) -> str | None:
    """Signature of the optimisation that made the file; None where there is no such file, or it says nothing."""
    try:
        return read_state(path)[1].get("fit")
    except ResultError:
        return None


def content_hash(tensors: Mapping[str, Any]) -> str:
    """SHA-256 of names, shapes and numbers (float32) of the tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {list(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].float().contiguous().numpy().tobytes())
    return digest.hexdigest()

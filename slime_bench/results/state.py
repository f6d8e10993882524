"""`state.safetensors`: what a trial has learnt, with all that inference needs besides the backbone's weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from slime_bench.config.secrets import redact
from slime_bench.errors import ResultError
from slime_bench.storage import ordered, write_atomic

NODES: Final = ("method", "protocol", "backbone", "data", "refine")
"""Groups of the configuration that the file holds."""
_BEFORE_REFINE: Final = {"refine": {"_target_": "slime_bench.refine.config.NoRefinement", "name": "none"}}
"""What a file says that was written before there was a choice of refinement."""


def write_state(path: Path, learned: Mapping[str, Any], config: Mapping[str, Any], classes: Sequence[str]) -> None:
    """`learned` tensors with their `state_facts` as a safetensors file."""
    write_atomic(path, pack_state(learned, state_facts(config, classes)))


def state_facts(config: Mapping[str, Any], classes: Sequence[str], **more: Any) -> dict[str, Any]:
    """What the file says besides the tensors: classes, seed, preset, `NODES` of `config`, and `more` (JSON)."""
    return {
        "classes": list(classes), **{name: config[name] for name in ("seed", "preset")},
        **{name: redact(config[name]) for name in NODES}, **more,
    }  # fmt: skip


def pack_state(learned: Mapping[str, Any], facts: Mapping[str, Any]) -> bytes:
    """The content of the file: `learned` tensors as safetensors, `facts` as JSON in its metadata."""
    from safetensors.torch import save

    metadata = {name: json.dumps(value, sort_keys=True) for name, value in facts.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in learned.items()}
    return ordered(save(tensors, metadata=metadata))


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and facts of a file that `write_state` has made.

    Raises:
        ResultError: missing, corrupt, or without the bench's metadata.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts = _BEFORE_REFINE | {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        missing = {"classes", "seed", *NODES} - set(facts)
        if missing:
            raise KeyError(", ".join(sorted(missing)))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ResultError(
            "this is not a readable state of a trial", path=path,
            found="a folder" if path.is_dir() else f"{type(error).__name__}: {error}",
            expected="embeddings of `slime-bench segment`, or the state.safetensors of a finished trial",
            remedy="give such a file, or --image and --mask to learn new embeddings; "
            "`slime-bench embeddings import` makes one of the authors' files",
        ) from error  # fmt: skip
    return tensors, facts


def content_hash(tensors: Mapping[str, Any]) -> str:
    """SHA-256 of names, shapes and numbers (float32) of the tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {list(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].float().contiguous().numpy().tobytes())
    return digest.hexdigest()

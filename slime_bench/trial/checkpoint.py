"""The checkpoint of an unfinished trial: one file, whole or absent, of tensors (safetensors) and plain values (JSON).

It is no result: no report reads it, and it goes as soon as `result.json` is there. It is of use to the same trial, code
and libraries alone; any other is ignored with a warning, as is a damaged one, and the trial starts anew.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch

from slime_bench.paths import PACKAGE
from slime_bench.storage import write_atomic

FILE: Final = "checkpoint.safetensors"
TOGETHER: Final = "together.safetensors"
"""The same of trials that are fitted in one batch, in the folder of the first of them."""
FORMAT: Final = 1
"""Raise it when the layout of the file changes."""

LIBRARIES: Final = ("torch", "lightning", "diffusers", "transformers", "torchmetrics", "numpy", "pillow", "slime-bench")
_HEADER: Final = "checkpoint"
_log = logging.getLogger(__name__)


def origin(signature: str, *parts: type) -> dict[str, str]:
    """What has to be the same for a checkpoint to be of use: the trial, the code and the libraries.

    Args:
        signature: of the trial. parts: classes whose files count as code, wherever they lie.
    """
    files = {found for part in parts if (found := _source(part)) is not None}
    versions = {name: _version(name) for name in LIBRARIES}
    return {
        "signature": signature,
        "code": code_hash(frozenset(files)),
        "python": platform.python_version(),
        **versions,
    }


@functools.cache
def code_hash(files: frozenset[Path] = frozenset()) -> str:
    """SHA-256 of the bench's source files and of `files`; unlike a commit it sees every change, and needs no git."""
    package = PACKAGE
    digest = hashlib.sha256()
    outside = sorted(each for each in files if package not in each.parents)
    for path in [*sorted(package.rglob("*.py")), *outside]:
        name = path.relative_to(package).as_posix() if package in path.parents else path.name
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def write(path: Path, state: Any, made_by: Mapping[str, str]) -> None:
    """Write `state` to `path`, in place of what is there.

    Args:
        state: tensors, None, bool, int, float and str in any nesting of mappings (keys int or str), lists and tuples.
        made_by: see `origin`.

    Raises:
        StorageError: see `write_atomic`. TypeError: a value of another type.
    """
    from safetensors.torch import save

    plain, tensors = pack(state)
    text = json.dumps(plain)
    facts = {"format": FORMAT, "origin": dict(made_by), "sha256": _digest(text, tensors), "state": text}
    write_atomic(path, save(tensors, metadata={_HEADER: json.dumps(facts)}))


def read(path: Path, here: Mapping[str, str]) -> Any:
    """The state in the file `path`, tensors on the CPU; None, with a warning, where there is none of use.

    Args:
        here: the `origin` that it has to have. No file is no reason for a warning.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            facts, differences = _header(file, here)
            if differences:
                return _ignored(path, "it was written by another trial, code or library", differences)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if _digest(facts["state"], tensors) != facts["sha256"]:
            return _ignored(path, "it is damaged", "numbers that are not those that were written")
        return unpack(json.loads(facts["state"]), tensors)
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        return _ignored(path, "it is damaged", f"{type(error).__name__}: {error}")


def is_of(path: Path, here: Mapping[str, str]) -> bool:
    """Whether the file `path` is there and says that it is of the same `origin`; the rest of it is not looked at."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return not _header(file, here)[1]
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError):
        return False


def discard(folder: Path) -> None:
    """Remove the checkpoints of a trial's folder, if there are any."""
    for name in (FILE, TOGETHER):
        (folder / name).unlink(missing_ok=True)


def pack(state: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """`state` as plain JSON values with references to tensors, and those tensors by name, on the CPU and contiguous.

    Raises:
        TypeError: a value that `write` does not take.
    """
    tensors: dict[str, torch.Tensor] = {}
    storages: set[int] = set()

    def packed(value: Any, where: str) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, torch.Tensor):
            plain = value.detach().cpu().contiguous()
            if plain.untyped_storage().data_ptr() in storages:  # safetensors takes every tensor's memory once
                plain = plain.clone()
            storages.add(plain.untyped_storage().data_ptr())
            name = str(len(tensors))
            tensors[name] = plain
            return {"tensor": name}
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [packed(each, f"{where}[{index}]") for index, each in enumerate(value)]}
        if isinstance(value, Mapping) and all(type(key) in (int, str) for key in value):
            return {"mapping": [[key, packed(each, f"{where}[{key!r}]")] for key, each in value.items()]}
        raise TypeError(f"a checkpoint cannot hold {where}, a {type(value).__name__}")

    return packed(state, "state"), tensors


def unpack(plain: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The inverse of `pack`; mappings come back as dictionaries.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: values that `pack` has not made.
    """
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "mapping":
        return {key: unpack(each, tensors) for key, each in content}
    return {"list": list, "tuple": tuple}[kind](unpack(each, tensors) for each in content)


def size(state: Any) -> int:
    """Bytes of all tensors in `state`."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(map(size, state.values()))
    return sum(map(size, state)) if isinstance(state, list | tuple) else 0


def _digest(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"\n{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _source(part: type) -> Path | None:
    try:
        found = inspect.getsourcefile(part)
    except TypeError:  # it was typed in, or is not written in Python
        return None
    return None if found is None else Path(found)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _header(file: Any, here: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """What an open file says of itself, and in what its format and origin differ from those `here`, empty for nothing.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: it is no checkpoint.
    """
    facts = json.loads(file.metadata()[_HEADER])
    return facts, _differences({"format": facts["format"], **facts["origin"]}, {"format": FORMAT, **here})


def _differences(found: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    names = [name for name in {**here, **found} if found.get(name) != here.get(name)]
    return ", ".join(f"{name} {_short(found.get(name))} (here {_short(here.get(name))})" for name in names)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 20 else f"{text[:12]}..."


def _ignored(path: Path, reason: str, found: str) -> None:
    _log.warning(
        "The trial starts anew: its checkpoint is of no use, %s.\n  where: %s\n  found: %s", reason, path, found
    )

"""The checkpoint of an unfinished trial: one file, whole or absent, that `torch.load` reads without running code in it.

It is no result: no report reads it, and it goes as soon as `result.json` is there. It is of use to the same trial, code
and libraries alone; any other is ignored with a warning, as is a damaged one, and the trial starts anew.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import io
import logging
import platform
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils._pytree import tree_map_only

from slime_bench.paths import PACKAGE
from slime_bench.results.environment import version
from slime_bench.storage import write_atomic

FILE: Final = "checkpoint.pt"
BATCH_FILE: Final = "batch.pt"
"""The same of trials that are fitted in one batch, in the folder of the first of them."""
LIBRARIES: Final = ("torch", "lightning", "diffusers", "transformers", "torchmetrics", "numpy", "pillow", "slime-bench")
_log = logging.getLogger(__name__)


def origin(signature: str, *parts: type) -> dict[str, str]:
    """What has to be the same for a checkpoint to be of use: the trial, the code and the libraries.

    Args:
        signature: of the trial. parts: classes whose files count as code, wherever they lie.
    """
    files = {found for part in parts if (found := _source(part)) is not None}
    return {
        "signature": signature,
        "code": code_hash(frozenset(files)),
        "python": platform.python_version(),
        **{name: version(name) or "none" for name in LIBRARIES},
    }


@functools.cache
def code_hash(files: frozenset[Path] = frozenset()) -> str:
    """SHA-256 of the bench's source files and of `files`; unlike a commit it sees every change, and needs no git."""
    digest = hashlib.sha256()
    outside = sorted(each for each in files if PACKAGE not in each.parents)
    for path in [*sorted(PACKAGE.rglob("*.py")), *outside]:
        name = path.relative_to(PACKAGE).as_posix() if PACKAGE in path.parents else path.name
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def write(path: Path, state: Any, origin: Mapping[str, str]) -> None:
    """Write `state` to `path`, in place of what is there.

    Args:
        state: tensors, None, bool, int, float and str in any nesting of dictionaries, lists and tuples; `torch.load`
            reads nothing else again.
        origin: see `origin`.

    Raises:
        StorageError: see `write_atomic`.
    """
    # Copies, because of a view torch would write the whole.
    plain = tree_map_only(torch.Tensor, lambda value: value.detach().cpu().clone(), state)
    buffer = io.BytesIO()
    torch.save({"origin": dict(origin), "state": plain}, buffer)
    content = buffer.getvalue()
    write_atomic(path, zlib.crc32(content).to_bytes(4, "big") + content)


def read(path: Path, origin: Mapping[str, str]) -> Any:
    """The state in the file `path`, tensors on the CPU; None, with a warning, where there is none of use.

    Args:
        origin: that it has to have. No file is no reason for a warning.
    """
    if not path.exists():
        return None
    try:
        found = _load(path)
    except Exception as error:  # whatever torch.load makes of bytes that are no checkpoint
        return _ignored(path, "it is damaged", f"{type(error).__name__}: {error}")
    differences = [name for name in {**origin, **found["origin"]} if found["origin"].get(name) != origin.get(name)]
    if differences:
        return _ignored(path, "it was written by another trial, code or library", f"other {', '.join(differences)}")
    return found["state"]


def is_of(path: Path, origin: Mapping[str, str]) -> bool:
    """Whether the file `path` is there, whole, and of the same `origin`."""
    try:
        return bool(_load(path)["origin"] == dict(origin))
    except Exception:  # see `read`
        return False


def discard(folder: Path) -> None:
    """Remove the checkpoints of a trial's folder, if there are any."""
    for name in (FILE, BATCH_FILE):
        (folder / name).unlink(missing_ok=True)


def _load(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    if zlib.crc32(content[4:]) != int.from_bytes(content[:4], "big"):
        raise ValueError("not the bytes that were written")
    return torch.load(io.BytesIO(content[4:]), map_location="cpu", weights_only=True)


def _source(part: type) -> Path | None:
    try:
        return Path(inspect.getfile(part)).resolve()
    except (OSError, TypeError):  # built in, or typed into a console
        return None


def _ignored(path: Path, reason: str, found: str) -> None:
    _log.warning(
        "The trial starts anew: its checkpoint is of no use, %s.\n  where: %s\n  found: %s", reason, path, found
    )

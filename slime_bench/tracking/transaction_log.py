"""Reads the `.wandb` file of a run, in which W&B keeps all that was logged until it is synced.

The file is LevelDB's log format (blocks of 32 KiB, each record in one or more chunks with a header of 7 bytes) with one
protocol buffer `Record` in each record, and 7 bytes of W&B's own in front.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from slime_bench.tracking.keys import STEP

_MAGIC: Final = b":W&B"
_FRONT: Final = 7
_BLOCK: Final = 32768
_HEADER: Final = struct.Struct("<IHB")  # checksum, length, kind
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Any]:
    """The records of a file, in order; those of a file that ends in the middle of one, up to there.

    Raises:
        OSError: the file cannot be read. ValueError: it is none of W&B's.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    for payload in _payloads(path.read_bytes()):
        try:
            record = Record.FromString(payload)
        except Exception:  # the DecodeError of a library that is W&B's and not ours
            return
        yield record


def history(path: Path) -> Iterator[dict[str, Any]]:
    """The rows that were logged, as `records`; parts of a nested key are joined by `.`."""
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            yield {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}


def last_step(folder: Path, run_id: str) -> int:
    """The largest step that any process has logged in the run `run_id` of the trial in `folder`; -1 for none."""
    last = -1
    for path in sorted(folder.glob(f"wandb/*run-*/run-{run_id}.wandb")):
        try:
            for row in history(path):
                last = max(last, int(row.get(STEP, -1)))
        except Exception:  # a file that is none, or an installed W&B that keeps its records otherwise
            continue
    return last


def _payloads(content: bytes) -> Iterator[bytes]:
    if not content.startswith(_MAGIC):
        raise ValueError("not a file of W&B's")
    at, parts = _FRONT, b""
    while at + _HEADER.size <= len(content):
        rest = _BLOCK - at % _BLOCK
        if rest < _HEADER.size:  # too little for another header: zeros up to the next block
            at += rest
            continue
        _, length, kind = _HEADER.unpack_from(content, at)
        at += _HEADER.size
        if kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST) or at + length > len(content):
            return
        parts = content[at : at + length] if kind in (_WHOLE, _FIRST) else parts + content[at : at + length]
        at += length
        if kind in (_WHOLE, _LAST):
            yield parts

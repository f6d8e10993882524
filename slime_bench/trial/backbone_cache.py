"""The backbone of the last trial, kept for the next trial of the same process, which need not load it again."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig

from slime_bench.config.schema import build
from slime_bench.results.identity import canonical_json

_kept: tuple[str, Any] | None = None


@contextmanager
def kept(node: DictConfig, settings: Mapping[str, Any], content: str, device: str) -> Iterator[Any]:
    """The backbone that `node` describes: the one kept from the last trial, if it is the same, or a new one.

    It is kept for the next trial when the block succeeds, and dropped when it fails, as it may then be in any state. At
    most one is kept; its memory is free before another is loaded.

    Args:
        settings: the node's, resolved. content: hash of its weights. device: that the trial computes on.
    """
    global _kept
    key = canonical_json([dict(settings), content, device])
    if _kept is None or _kept[0] != key:
        drop()  # also where none is kept: a failed trial's may still lie about
    backbone = _kept[1] if _kept is not None else build(node)
    _kept = None  # it belongs to the block until that has succeeded
    yield backbone
    _kept = (key, backbone)


def drop() -> None:
    """Free the memory of the kept backbone."""
    import torch

    global _kept
    _kept = None
    gc.collect()  # a trainer and its module hold each other
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()

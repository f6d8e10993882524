"""The backbone cache: the last trial's backbone, for the next trial of the same process that has the same one."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from slime_bench.config.schema import TrialConfig
from slime_bench.results.identity import canonical_json

_cached: tuple[str, Any] | None = None


@contextmanager
def cached_backbone(cfg: TrialConfig, content: str) -> Iterator[Any]:
    """The backbone of a trial: the one cached from the last trial, if it is the same, or a new one.

    It is cached for the next trial when the block succeeds, and dropped when it fails, as it may then be in any state.
    At most one is cached; its memory is free before another is loaded.

    Args:
        content: hash of its weights.
    """
    global _cached
    key = canonical_json([cfg.plain["backbone"], content, cfg.trainer.device])
    if _cached is None or _cached[0] != key:
        drop()  # also where none is cached: a failed trial's may still lie about
    backbone = _cached[1] if _cached is not None else cfg.build("backbone")
    _cached = None  # it belongs to the block until that has succeeded
    yield backbone
    _cached = (key, backbone)


def drop() -> None:
    """Free the memory of the cached backbone."""
    import torch

    global _cached
    _cached = None
    gc.collect()  # a trainer and its module hold each other
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()

"""What a trial keeps beside its result for the report alone: a spoilt file costs its own picture, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from slime_bench.errors import ResultError

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


def read_kept(path: Path, read: Callable[[Path], T]) -> T | None:
    """What `read` makes of the file; None where there is none, or, with a warning, where `read` raises ResultError."""
    if not path.is_file():
        return None
    try:
        return read(path)
    except ResultError as error:
        _LOG.warning("%s", error)
        return None

"""The C library's usual way of getting memory, for what is measured as others run it.

The bench's own backbone lets the process keep freed memory (`slime_bench.backbones.heap`), from which the authors' way
of computing, in the same process, would gain more than the bench does: its maps are larger.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from slime_bench.backbones.heap import keep_freed_memory

_MMAP: Final = -3  # a parameter of mallopt(3)
_USUAL: Final = 32 * 2**20
"""Bytes from which glibc, left alone, ends up asking the kernel for each tensor: its threshold rises to this."""


@contextmanager
def usual_heap() -> Iterator[None]:
    """Within the block, tensors from 32 MiB on come from the kernel, as where nobody has set anything.

    Nothing happens where `keep_freed_memory` does nothing. What is already held stays held.
    """
    if not keep_freed_memory():
        yield
        return
    ctypes.CDLL(None).mallopt(_MMAP, _USUAL)
    try:
        yield
    finally:
        keep_freed_memory()

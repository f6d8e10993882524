"""Keep freed memory for the next tensor, instead of giving its pages back and asking for them again.

Maps of 512-pixel images are above the size from which glibc asks the kernel for fresh pages, and the kernel clears each
of them: a tenth of a training step on a CPU goes into that, and a fifth of an inference pass.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

_TRIM, _MMAP = -1, -3  # parameters of mallopt(3)
_FROM_KERNEL: Final = 256 * 2**20
"""Bytes from which a tensor's memory still comes from the kernel and goes back to it at once."""
_HELD: Final = 2**30
"""Free bytes at the top of the heap beyond which they go back."""
_CHOSEN: Final = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """Let this process hold up to 1 GiB of freed memory. Its peak may grow by an eighth, from gaps between tensors.

    Returns:
        whether it was done: not where malloc is not glibc's, or where the environment already says how it is to work.
    """
    if not sys.platform.startswith("linux") or any(os.environ.get(name) for name in _CHOSEN):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP, _FROM_KERNEL)) and bool(mallopt(_TRIM, _HELD))

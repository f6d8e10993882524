"""Named random generators: every random draw of the bench states its purpose and its keys.

Results therefore do not depend on the number of workers, the batch size, the order of evaluation or
on resuming, because no draw consumes another draw's stream.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch  # seconds to import, which a report that draws with NumPy alone need not wait for

Key = str | int


def derive_seed(seed: int, purpose: str, *keys: Key) -> int:
    """A 63-bit seed from the trial's `seed`, the `purpose` of the draw and any further `keys`.

    The keys are hashed as JSON, so that `1` and `"1"` differ and no two key lists collide by joining. NumPy integers
    count as the Python integers that they equal.
    """
    text = json.dumps([key if isinstance(key, str) else int(key) for key in (seed, purpose, *keys)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *keys: Key) -> torch.Generator:
    """A CPU generator for one purpose; draw on the CPU and move, so that every device sees the same numbers."""
    import torch

    return torch.Generator(device="cpu").manual_seed(derive_seed(seed, purpose, *keys))


def numpy_generator(seed: int, purpose: str, *keys: Key) -> np.random.Generator:
    """As `generator`, for NumPy (PCG64)."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, purpose, *keys)))

"""What a broken picture does to its decoder. No torch here: the processes that prepare data read pictures too."""

from __future__ import annotations

import struct
import zlib
from typing import Final

from PIL import Image

DECODING_ERRORS: Final = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""What PIL and NumPy raise on files that are cut short, overwritten or of another kind."""

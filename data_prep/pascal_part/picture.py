"""Source pictures as arrays. Nothing here imports torch, which worker processes need not load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from slime_bench.data.reading import DECODING_ERRORS
from slime_bench.errors import DataError


def read_picture(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """One picture as uint8 [H,W,3] RGB; grey ones get three equal channels, transparency is dropped.

    A camera's orientation mark is not followed: the masks were drawn on the pixels as they are stored.

    Args:
        size: the (H, W) that it must have, that of its masks.

    Raises:
        DataError: missing, cut short, no picture, more than 8 bits in a channel, or of another size.
    """
    try:
        with Image.open(path) as file:
            mode = file.mode
            pixels = None if mode.startswith(("I", "F")) else np.array(file.convert("RGB"))
    except DECODING_ERRORS as error:
        there = path.is_file()
        found = f"{path.stat().st_size} bytes that do not decode ({error})" if there else "nothing"
        raise DataError(
            "cannot read the image" if there else "the image is missing",
            path=path,
            found=found,
            expected="a complete JPEG or PNG file",
            remedy="unpack the images again",
        ) from error
    if pixels is None:
        raise DataError("image with more than 8 bits per channel", path=path, found=f"mode {mode}", expected="8 bits")
    if size is not None and pixels.shape[:2] != size:
        raise DataError(
            "image and masks differ in size",
            path=path,
            found=f"{pixels.shape[1]}x{pixels.shape[0]}",
            expected=f"{size[1]}x{size[0]} (width x height), the size of its masks",
            remedy="restore the original image: the masks are drawn on its very pixels",
        )
    return pixels

"""OpenCV's bilinear resizing without OpenCV: 8-bit images to the last grey level, and float images. Pure functions.

The authors' images went through `cv2.resize` before anything else, and that works in fixed point: weights of 11 bits, and
sums that are shortened twice. In floating point one value in ten comes out one level off. Checked against OpenCV itself
and against an item of the authors' data set in the tests.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ONE = 2048  # a weight of 1


def resize_like_opencv(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [H,W,3] -> uint8 [height,width,3], as `cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)`."""
    pixels = image.astype(np.int64)
    if image.shape[:2] == (2 * height, 2 * width):  # OpenCV averages the four pixels here
        sums = pixels.reshape(height, 2, width, 2, -1).sum((1, 3))
        return ((sums + 2) >> 2).astype(np.uint8)
    left, right, left_weight, right_weight = _taps(image.shape[1], width)
    # Along columns OpenCV drops the fraction outside the outermost centres, along rows it clips the index alone.
    outside = (left < 0) | (left >= image.shape[1] - 1)
    left_weight, right_weight = np.where(outside, _ONE, left_weight), np.where(outside, 0, right_weight)
    left, right = (taps.clip(0, image.shape[1] - 1) for taps in (left, right))
    rows = pixels[:, left] * left_weight[:, None] + pixels[:, right] * right_weight[:, None]  # [H,width,3]
    above, below, above_weight, below_weight = _taps(image.shape[0], height)
    above, below = (taps.clip(0, image.shape[0] - 1) for taps in (above, below))
    parts = [
        weight[:, None, None] * (rows[taps] >> 4) >> 16
        for taps, weight in ((above, above_weight), (below, below_weight))
    ]
    return ((parts[0] + parts[1] + 2) >> 2).astype(np.uint8)


def resize_float_like_opencv(image: NDArray[np.generic], height: int, width: int) -> NDArray[np.float32]:
    """[H,W,C] of any real type -> float32 [height,width,C], as OpenCV's INTER_LINEAR of the same values as float32.

    Two taps on each axis however much it shrinks (no antialias), half-pixel centres, and borders that repeat. Equal to
    OpenCV but for float32 rounding (see tests).
    """
    pixels = image.astype(np.float32)
    for axis, new in ((1, width), (0, height)):
        old = pixels.shape[axis]
        centre, low = _centres(old, new)
        part = (centre - low).astype(np.float32)
        first, second = (np.take(pixels, taps.clip(0, old - 1), axis=axis) for taps in (low, low + 1))
        weight = part.reshape((-1, 1) if axis else (-1, 1, 1))
        pixels = first + (second - first) * weight
    return pixels


def _centres(old: int, new: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The centre of each new pixel in old pixels, and the old pixel at or before it, which may be -1."""
    centre = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    return centre, np.floor(centre).astype(np.int64)


def _taps(old: int, new: int) -> tuple[NDArray[np.int64], ...]:
    """For each new pixel the two old ones around its centre, which may lie outside, and their weights of 2048."""
    centre, low = _centres(old, new)
    part = (centre - low).astype(np.float32)
    weights = [np.rint(each * np.float32(_ONE)).astype(np.int64) for each in (np.float32(1) - part, part)]
    return low, low + 1, weights[0], weights[1]

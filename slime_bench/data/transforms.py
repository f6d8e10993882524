"""From an image of any size to the square that the backbone takes, and from its score maps back. Pure functions.

`squash` stretches the image to S x S, as the papers do. `pad` keeps its aspect ratio: the longer side becomes S, the
picture lies at the top left, and what is left over at the bottom or at the right is black in the image (as where a
rotation fills) and 255 in the label map, so that it counts neither in a loss over labels nor in IoU. `pad_floor8` is
the second paper's `pad`: both sides are shortened to multiples of 8, and it goes with the resizing `opencv_float`.

The authors' images went through `cv2.resize` before anything else. It is done again here without OpenCV, 8-bit images
to the last grey level: OpenCV works in fixed point there, with weights of 11 bits and sums that are shortened twice; in
floating point one value in ten comes out one level off.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from slime_bench.data.config import ANTIALIAS, OPENCV_FLOAT, PAD, PAD_FLOOR8, SQUASH
from slime_bench.data.label_maps import IGNORE
from slime_bench.data.reading import Sample
from slime_bench.errors import DataError

FILL = 0
"""Value of every channel of a padded pixel."""
_ONE = 2048  # OpenCV's fixed-point weight of 1

Size = tuple[int, int]
"""(height, width) in pixels."""


class Fitted(NamedTuple):
    """A sample at S x S: image [3,S,S] in 0..255, uint8 or (`opencv_float`) float32; label int64 [S,S]."""

    id: str
    image: Tensor
    label: Tensor


def fitted_size(size: Size, side: int, fit: str = "squash") -> Size:
    """(h, w) of the picture within the square of `side` pixels.

    `squash`: (side, side). `pad`: the longer side becomes `side`, and the shorter one shorter * side / longer, rounded
    to the nearest whole number, halves up, and at least 1. `pad_floor8`: the same with the shorter side rounded down,
    and then both sides to a multiple of 8, as the second paper's code does, with its rounding in floating point: the
    shorter one is int(shorter * (side / longer)), so that a square may come out 8 pixels narrow (94x94 at 96: 96x88).

    Raises:
        DataError: an image so long that a side of `pad_floor8` would be 0.
    """
    if fit == SQUASH:
        return side, side
    if fit == PAD_FLOOR8:
        return _floored_size(size, side)
    longest = max(size)
    height, width = (max(1, (2 * length * side + longest) // (2 * longest)) for length in size)
    return height, width


def resize_image(image: NDArray[np.uint8], size: Size, mode: str = "antialias") -> NDArray[np.generic]:
    """uint8 [H,W,3] resized to uint8 [h,w,3]; with `opencv_float` to float32 [h,w,3] in 0..255, which is not rounded.

    Args:
        size: the new (h, w).
        mode: see `DataConfig.resize`.
    """
    if mode == OPENCV_FLOAT:
        return resize_float_like_opencv(image, *size)
    if image.shape[:2] == size:
        return image
    if mode == ANTIALIAS:
        return np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    return resize_like_opencv(image, *size)


def fit_image(image: NDArray[np.uint8], side: int, mode: str = "antialias", fit: str = "squash") -> Tensor:
    """uint8 [H,W,3] -> [3,side,side] in 0..255, uint8, or float32 with `opencv_float`; see `DataConfig.resize` and
    `DataConfig.fit`. DataError as `fitted_size`."""
    height, width = image.shape[:2]
    resized = resize_image(image, fitted_size((height, width), side, fit), mode)
    return _padded(torch.from_numpy(resized).permute(2, 0, 1).contiguous(), side, FILL)


def fit_sample(sample: Sample, side: int, mode: str = "antialias", fit: str = "squash") -> Fitted:
    """A sample at side x side: the image by `fit_image`, the label map by nearest neighbour and 255 for padding. The
    DataError of `fitted_size` names the sample."""
    height, width = sample.label.shape
    try:
        size = fitted_size((height, width), side, fit)
    except DataError as error:
        error.path = sample.id
        raise
    label = resize_label(torch.from_numpy(sample.label), size, opencv=mode != ANTIALIAS)
    return Fitted(sample.id, fit_image(sample.image, side, mode, fit), _padded(label, side, IGNORE))


def unfit(maps: Tensor, size: Size, fit: str = "squash") -> Tensor:
    """Maps of a fitted image, brought back to the size of its file; padding is cut away.

    Args:
        maps: float score maps [K,S,S], resized bilinearly (half-pixel centres, no antialias). S is the side that the
            image was fitted to.
        size: (H, W) of the file.
        fit: as in `fit_image`.

    Returns:
        [K,H,W] of the same type.
    """
    height, width = fitted_size(size, int(maps.shape[-1]), fit)
    inside = maps[:, :height, :width]
    if (height, width) == tuple(size):
        return inside
    return F.interpolate(inside[None], size=tuple(size), mode="bilinear", align_corners=False)[0]


def resize_label(label: Tensor, size: int | tuple[int, int], *, opencv: bool = False) -> Tensor:
    """Nearest-neighbour resize of label maps: out[i,j] = label[floor(i H/h), floor(j W/w)] from [H,W] to [h,w].

    This is the reference's `F.interpolate(mode="nearest")` (`src/dataset.py`) in whole numbers: the upper left pixel of
    each block; 255 stays 255 and no new value can appear.

    Args:
        label: [H,W] or [B,H,W], any integer type.
        size: the new side, or (height, width).
        opencv: round as OpenCV's INTER_NEAREST does, which the reference uses before that: the ratio is inverted
            twice in floating point, so that where i H/h is whole it may fall to the pixel before.

    Returns:
        the same type and number of axes at the new size.
    """
    size = (size, size) if isinstance(size, int) else size
    for axis, new in ((-2, size[0]), (-1, size[1])):
        old = label.shape[axis]
        if old == new:
            continue
        steps = torch.arange(new, device=label.device)
        index = (steps.double() * (1 / (new / old))).floor().long() if opencv else steps * old // new
        label = label.index_select(axis, index.clamp(max=old - 1))
    return label


def resize_like_opencv(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [H,W,3] -> uint8 [height,width,3], as `cv2.resize(image, (width, height))` with INTER_LINEAR."""
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


def _floored_size(size: Size, side: int) -> Size:
    ratio = side / max(size)
    # Of a square the code treats the height as the longer side, and computes the width.
    lengths = (side, int(size[1] * ratio)) if size[0] >= size[1] else (int(size[0] * ratio), side)
    height, width = (length // 8 * 8 for length in lengths)
    if not (height and width):
        raise DataError(
            "the image is too long for its padding",
            found=f"{size[1]}x{size[0]} (width x height), which {PAD_FLOOR8} makes {width}x{height} at {side}",
            expected=f"a longer side of at most about {side // 8} times the shorter one",
            remedy=f"choose data.fit={PAD} or data.fit={SQUASH}, crop the image, or take it out of the data set",
        )
    return height, width


def _padded(pixels: Tensor, side: int, value: int) -> Tensor:
    """[...,h,w] filled up with `value` at the bottom and at the right to [...,side,side]."""
    height, width = pixels.shape[-2:]
    if (height, width) == (side, side):
        return pixels
    return F.pad(pixels, (0, side - width, 0, side - height), value=value)


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

"""From an image of any size to the square that the backbone takes, and from its score maps back. Pure functions.

`squash` stretches the image to S x S, as the papers do. `pad` keeps its aspect ratio: the longer side becomes S, the
picture lies at the top left, and what is left over at the bottom or at the right is black in the image (as where a
rotation fills) and 255 in the label map, so that it counts neither in a loss over labels nor in IoU. `pad_floor8` is
the second paper's `pad`: both sides are shortened to multiples of 8, and it goes with the resizing `opencv_float`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from slime_bench.data.folder import Sample
from slime_bench.data.labels import IGNORE, resize_label
from slime_bench.data.opencv_resize import resize_float_like_opencv, resize_like_opencv
from slime_bench.errors import DataError

SQUASH, PAD, PAD_FLOOR8 = FITS = ("squash", "pad", "pad_floor8")
ANTIALIAS, OPENCV, OPENCV_FLOAT = RESIZES = ("antialias", "opencv", "opencv_float")
FILL = 0
"""Value of every channel of a padded pixel."""

Size = tuple[int, int]
"""(height, width) in pixels."""


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


def resize_image(image: Tensor, size: int | Size, mode: str = "antialias") -> Tensor:
    """uint8 [3,H,W] resized to uint8 [3,h,w]; with `opencv_float` to float32 [3,h,w] in 0..255, which is not rounded.

    Args:
        size: the new side, or (h, w).
        mode: see `DataConfig.resize`.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if mode == OPENCV_FLOAT:
        values = resize_float_like_opencv(image.permute(1, 2, 0).numpy(), height, width)
        return torch.from_numpy(values).permute(2, 0, 1).contiguous()
    if tuple(image.shape[-2:]) == (height, width):
        return image
    if mode == "antialias":
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        resized = torch.frombuffer(
            bytearray(picture.resize((width, height), Image.Resampling.BILINEAR).tobytes()), dtype=torch.uint8
        )
        return resized.reshape(height, width, 3).permute(2, 0, 1).contiguous()
    exact = resize_like_opencv(image.permute(1, 2, 0).numpy(), height, width)
    return torch.from_numpy(exact).permute(2, 0, 1).contiguous()


def fit_image(image: Tensor, side: int, mode: str = "antialias", fit: str = "squash") -> Tensor:
    """uint8 [3,H,W] -> [3,side,side] in 0..255, uint8, or float32 with `opencv_float`; see `DataConfig.resize` and
    `DataConfig.fit`.

    Raises:
        DataError: as `fitted_size`.
    """
    size = fitted_size((int(image.shape[-2]), int(image.shape[-1])), side, fit)
    return _padded(resize_image(image, size, mode), side, FILL)


def fit_sample(sample: Sample, side: int, mode: str = "antialias", fit: str = "squash") -> Sample:
    """A sample at side x side: the image by `fit_image`, the label map by nearest neighbour and 255 for padding.

    Raises:
        DataError: as `fitted_size`; it names the sample.
    """
    try:
        size = fitted_size((int(sample.label.shape[-2]), int(sample.label.shape[-1])), side, fit)
    except DataError as error:
        error.path = sample.id
        raise
    label = _padded(resize_label(sample.label, size, opencv=mode != ANTIALIAS), side, IGNORE)
    return Sample(sample.id, fit_image(sample.image, side, mode, fit), label)


def unfit(maps: Tensor, size: Size, fit: str = "squash") -> Tensor:
    """Maps of a fitted image, brought back to the size of its file; padding is cut away.

    Args:
        maps: float score maps [K,S,S], resized bilinearly (half-pixel centres, no antialias), or a predicted label map
            [S,S] or [B,S,S] of integers, resized to the nearest pixel. S is the side that the image was fitted to.
        size: (H, W) of the file, as `image_dataloader` gives it.
        fit: as in `fit_image`.

    Returns:
        [...,H,W] of the same type.
    """
    height, width = fitted_size(size, int(maps.shape[-1]), fit)
    inside = maps[..., :height, :width]
    if (height, width) == tuple(size):
        return inside
    if maps.is_floating_point():
        return F.interpolate(inside[None], size=tuple(size), mode="bilinear", align_corners=False)[0]
    for axis, old, new in ((-2, height, size[0]), (-1, width, size[1])):
        # The centre of every new pixel, as bilinear resizing sees it: floor((i + 1/2) old / new) in whole numbers.
        index = (2 * torch.arange(new, device=maps.device) + 1) * old // (2 * new)
        inside = inside.index_select(axis, index)
    return inside


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

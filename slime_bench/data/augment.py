"""Augmentation of one support sample: pure tensor functions, every random number from a generator that is passed in.

Order and distributions follow the reference (`SLiMe-code`, `src/dataset.py`, albumentations 1.3.0 and OpenCV there):
horizontal flip, Gaussian blur, square crop resized back, rotation. Shapes: image float [3,H,W] in [0,1], label int64
[H,W]; both keep their size, and no label value appears that was not there before, but for 0 where rotation fills.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from slime_bench.data.config import Augmentation
from slime_bench.data.label_maps import IGNORE
from slime_bench.data.transforms import resize_label

CROP_TRIES = 20

# OpenCV's fixed kernels, which it takes when the size is 3 or 5 and no sigma is given, as in the reference.
_BINOMIAL = {1: (1.0,), 3: (0.25, 0.5, 0.25), 5: (0.0625, 0.25, 0.375, 0.25, 0.0625)}

Box = tuple[int, int, int, int]
"""(top, left, height, width) in pixels."""


def augment(image: Tensor, label: Tensor, config: Augmentation, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One random variation of a sample, a function of the arguments and of the state of the CPU `generator`; the
    tensors passed in are never changed in place."""
    # All coins are drawn first and always, so that one switch does not shift the draws of the others.
    flips, blurs, width, rotates, angle = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    if flips < config.flip_p:
        image, label = image.flip(-1), label.flip(-1)
    if blurs < config.blur_p:
        image = blur(image, config.blur_kernels[int(width * len(config.blur_kernels))])
    image, label = crop(image, label, choose_crop(label, config, generator))
    if rotates < config.rotation_p:
        image, label = rotate(image, label, (2 * angle - 1) * config.rotation_degrees)
    return image.clamp(0, 1), label  # interpolation may leave [0,1] by a rounding error


def blur(image: Tensor, kernel: int) -> Tensor:
    """Separable Gaussian blur of float [3,H,W], borders mirrored without repeating the edge pixel.

    Weights are OpenCV's for an unset sigma: binomial for widths up to 5, else Gaussian with
    sigma = 0.3 ((kernel - 1)/2 - 1) + 0.8. An axis too short to be mirrored repeats its edge.
    """
    if kernel == 1:
        return image
    half = kernel // 2
    weights = _BINOMIAL.get(kernel) or _gaussian(kernel)
    for axis, pad in ((-1, (half, half, 0, 0)), (-2, (0, 0, half, half))):
        size = image.shape[axis]
        padded = F.pad(image[None], pad, mode="reflect" if size > half else "replicate")[0]
        # A sum of shifted copies in a fixed order: the same bytes for any number of threads, unlike a convolution.
        total = torch.zeros_like(image)
        for shift, weight in enumerate(weights):
            total = total + padded.narrow(axis, shift, size) * weight
        image = total
    return image


def crop_side(ratio: float, height: int, width: int) -> int:
    """The side of a square crop: floor(ratio x shorter side), at least 1 pixel."""
    return max(1, int(ratio * min(height, width)))


def choose_crop(label: Tensor, config: Augmentation, generator: torch.Generator) -> Box:
    """A random square box that keeps what `config.crop_keep` asks for, or the whole image after 20 failures.

    The reference wants more than 30 % of the pixels of one class, which is meant to cycle through the classes; its
    counter lives in the loader's workers and restarts every epoch, so that with one support image it always asks for
    the background and with ten images for the first two classes (`background` here). It also tries for ever.
    """
    height, width = label.shape
    whole = (0, 0, height, width)
    lowest, highest = config.crop_ratio
    draws = torch.rand(CROP_TRIES, 3, generator=generator, dtype=torch.float64).tolist()
    if lowest == 1:
        return whole
    needed = _count(label)
    if config.crop_keep != "every_class":
        needed[1 if config.crop_keep == "background" else 0 :] = 0
    for ratio, down, right in draws:
        side = crop_side(lowest + (highest - lowest) * ratio, height, width)
        top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
        left_in = _count(label[top : top + side, left : left + side])
        if bool((left_in[needed > 0] > config.crop_keep_fraction * needed[needed > 0]).all()):
            return top, left, side, side
    return whole


def crop(image: Tensor, label: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """Cut `box` out and resize it back to [H,W]: the image bilinearly (align_corners false), the label by nearest."""
    top, left, rows, columns = box
    height, width = label.shape
    if (rows, columns) == (height, width):
        return image, label
    image = image[:, top : top + rows, left : left + columns]
    label = label[top : top + rows, left : left + columns]
    return resize_bilinear(image, height, width), resize_label(label, (height, width))


def resize_bilinear(image: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resize of float [3,h,w] without antialiasing, as OpenCV's INTER_LINEAR and align_corners=False.

    `F.interpolate` computes the same, but picks its kernel by the number of threads: the last bits of its result differ
    between a loader's worker (one thread) and the main process. Here every step is a single rounding.
    """
    for axis, size in ((-2, height), (-1, width)):
        old = image.shape[axis]
        at = ((torch.arange(size, dtype=torch.float64) + 0.5) * (old / size) - 0.5).clamp(0, old - 1)
        low = at.floor().long()
        part = (at - low).to(image.dtype)
        if axis == -2:
            part = part[:, None]
        high = (low + 1).clamp(max=old - 1)
        image = image.index_select(axis, low) * (1 - part) + image.index_select(axis, high) * part
    return image


def rotate(image: Tensor, label: Tensor, degrees: float) -> tuple[Tensor, Tensor]:
    """Turn counter-clockwise about the centre ((W-1)/2, (H-1)/2); what comes from outside is 0 in image and label.

    The image is read bilinearly, the label by nearest neighbour, each output pixel from one point of the input.
    """
    height, width = label.shape
    angle = math.radians(degrees)
    cosine, sine = math.cos(angle), math.sin(angle)
    y = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float64)[None, :] - (width - 1) / 2
    source_x = cosine * x - sine * y
    source_y = sine * x + cosine * y
    # grid_sample's frame with align_corners false: -1 and 1 are the outer edges of the border pixels.
    grid = torch.stack([2 * source_x / width, 2 * source_y / height], dim=-1).to(image.dtype)[None]
    turned = F.grid_sample(image[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    labels = F.grid_sample(
        label[None, None].to(image.dtype), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return turned, labels[0, 0].round().to(label.dtype)


def _count(label: Tensor) -> Tensor:
    return torch.bincount(label.flatten(), minlength=IGNORE + 1)[:IGNORE]


def _gaussian(kernel: int) -> tuple[float, ...]:
    sigma = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8
    weights = [math.exp(-((index - kernel // 2) ** 2) / (2 * sigma**2)) for index in range(kernel)]
    return tuple(weight / sum(weights) for weight in weights)

"""How many images a forward pass may hold, an estimate from the architecture alone; and freed memory that is kept."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from typing import Any, Final

VAE_MAPS: Final = 5.5
"""Maps of the autoencoder's first level that its encoder holds at its peak: a residual block's input, what it has made
of it, the next convolution's reordered input and its output."""

UNET_MAPS: Final = 40
"""Maps of the U-Net's first level (latent grid, first width) that a pass holds at its peak: the skip connections of the
way down, the gated feed-forward layer (eight times as wide as its block, and a copy), captured queries and keys."""

TRAINING_MAPS: Final = 600
"""Maps of the U-Net's first level that one image's training step holds at its peak, for the backward pass. Measured as
in `images_within`, in float32: mini_sd at 128, 256 and 512 pixels 281 to 404, Stable Diffusion 2.1 with a fifth and
with a twentieth of its channels 343 to 585."""

_TRIM, _MMAP = -1, -3  # parameters of mallopt(3)
_FROM_KERNEL: Final = 256 * 2**20
"""Bytes from which a tensor's memory still comes from the kernel and goes back to it at once."""
_HELD: Final = 2**30
"""Free bytes at the top of the heap beyond which they go back."""


def images_within(
    budget: int, vae: Mapping[str, Any], unet: Mapping[str, Any], size: tuple[int, int], itemsize: int
) -> int:
    """Images that one inference call may hold in `budget` bytes beside the weights, at least 1.

    The call encodes the image, then runs the U-Net up to its last captured layer; the two do not overlap. Each holds a
    number of maps of its widest level, which is its first, so that an image takes

        max(VAE_MAPS * H W * c_vae, UNET_MAPS * h w * c_unet) * itemsize

    The two numbers are measured ones, rounded up: growth of the peak resident set on a CPU (torch 2.13), divided by the
    images of the call. mini_sd at 128, 256 and 512 pixels, 16, 4 and 1 images: 4.8 maps of the encoder, 31 to 34 of the
    U-Net in float32 and bfloat16, where the call itself needs some 20 MB that small images do not outweigh. Stable
    Diffusion 2.1-base at 512 pixels in bfloat16, 1 and 2 images: 5.1 and 5.0 maps, 39 and 35. What the method makes of
    the captured layers comes on top: some K H W float32 per image, a small part of this.

    Args:
        vae, unet: configurations of the parts. size: (H, W) of an image in pixels. itemsize: bytes of a number.
    """
    encoder = VAE_MAPS * size[0] * size[1] * vae["block_out_channels"][0]
    return max(1, budget // int(max(encoder, UNET_MAPS * _unet_map(vae, unet, size)) * itemsize))


def training_images(
    vae: Mapping[str, Any], unet: Mapping[str, Any], size: tuple[int, int], itemsize: int, budget: int
) -> int:
    """Images whose training step fits into `budget` bytes beside the weights, at least 1; see `images_within`."""
    return max(1, int(budget // (TRAINING_MAPS * _unet_map(vae, unet, size) * itemsize)))


def _unet_map(vae: Mapping[str, Any], unet: Mapping[str, Any], size: tuple[int, int]) -> float:
    """Numbers in a map of the U-Net's first level, h w c_unet; the autoencoder halves between its levels."""
    halvings = len(vae["block_out_channels"]) - 1
    return size[0] * size[1] / 4**halvings * unet["block_out_channels"][0]


def keep_freed_memory() -> None:
    """Let this process hold up to 1 GiB of freed memory for its next tensors, where malloc is glibc's.

    Maps of 512-pixel images are above the size from which glibc asks the kernel for fresh pages, and the kernel clears
    each of them: a tenth of a training step on a CPU goes into that, and a fifth of an inference pass. The peak may
    grow by an eighth, from gaps between tensors.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is not None:
        mallopt(_MMAP, _FROM_KERNEL)
        mallopt(_TRIM, _HELD)

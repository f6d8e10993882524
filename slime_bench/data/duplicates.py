"""Near-identical images: a perceptual hash finds candidates, a small copy of the pixels confirms them.

Written here because libraries for it compare pairs one by one, and a data set has 30,000 images: 450 million pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

SIDE: Final = 32
MAX_BITS: Final = 4
"""Hamming distance up to which two hashes may be of one picture.

Measured on 1,200 pictures of the mini world after JPEG of quality 60 and 90: 12 of 2,400 copies differ in 3 bits, the
others in at most 2; different pictures in 14 or more."""
MAX_DIFFERENCE: Final = 5.0
"""Mean absolute difference of 32x32 copies, in grey levels, up to which two pictures are one.

Measured on the mini world and on real photographs (185 pictures): at most 4.2 after JPEG of quality 50 (2.9 at 75, 1.8
after halving the size), at least 30 between different pictures."""

_LOW = 8
_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_DCT = np.sqrt(2 / SIDE) * np.cos(np.pi / SIDE * np.outer(np.arange(_LOW), np.arange(SIDE) + 0.5))  # DCT-II rows 0..7
_DCT[0] /= np.sqrt(2)
_ROWS = 256


@dataclass(frozen=True)
class Fingerprint:
    """`bits`: 64-bit hash. `thumb`: uint8 [32,32,3], the image reduced by averaging, whatever its aspect."""

    bits: int
    thumb: np.ndarray


def fingerprint(image: np.ndarray) -> Fingerprint:
    """The fingerprint of an image, uint8 [H,W,3] RGB.

    The hash holds which of the 8x8 lowest cosine coefficients of the grey 32x32 copy lie above their median, the
    average brightness left out (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010,
    section 3.2). Coefficients are whole numbers first, so that flat pictures do not get a hash of rounding errors.
    """
    thumb = np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX))
    low = np.rint(_DCT @ (thumb @ _GREY) @ _DCT.T).ravel()
    above = low > np.median(low[1:])
    above[0] = False
    return Fingerprint(int.from_bytes(np.packbits(above).tobytes(), "big"), thumb)


class Fingerprints:
    """Many fingerprints in two arrays. Kept one by one among the images that are decoded meanwhile, they would keep the
    freed memory of these from being used again: 0.3 MB for each image of 512x512.

    Args:
        most: how many there will be at most.
    """

    def __init__(self, most: int) -> None:
        self._bits = np.zeros(most, np.uint64)
        self._thumbs = np.zeros((most, SIDE, SIDE, 3), np.uint8)
        self._count = 0

    def add(self, one: Fingerprint) -> None:
        self._bits[self._count], self._thumbs[self._count] = one.bits, one.thumb
        self._count += 1

    def duplicates(self) -> list[tuple[int, int]]:
        """(i, j) with i < j for every j that shows the same picture as an earlier one, compressed, scaled or slightly
        retouched; i is the first of them.

        All hashes are compared with each other, 256 rows at a time: 30,000 take seconds and no memory to speak of.
        """
        found = []
        bits = self._bits[: self._count]
        for start in range(0, len(bits), _ROWS):
            rows = bits[start : start + _ROWS]
            close = np.bitwise_count(rows[:, None] ^ bits[None, : start + len(rows)]) <= MAX_BITS
            for j in np.flatnonzero(np.tril(close, start - 1).any(1)) + start:
                match = self._first_match(np.flatnonzero(close[j - start, :j]), int(j))
                if match is not None:
                    found.append((match, int(j)))
        return found

    def _first_match(self, candidates: np.ndarray, j: int) -> int | None:
        wanted = self._thumbs[j].astype(np.int16)
        for start in range(0, len(candidates), _ROWS):
            part = candidates[start : start + _ROWS]
            near = np.abs(self._thumbs[part] - wanted).mean((1, 2, 3)) <= MAX_DIFFERENCE
            if near.any():
                return int(part[near.argmax()])
        return None

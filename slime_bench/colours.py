"""The colours that classes are drawn in, everywhere."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0.6180339887498949
_SHADES = ((0.90, 0.95), (0.45, 1.00), (0.95, 0.60), (0.60, 0.80))
_FIRST_HUE = 4
# Black, and Okabe and Ito's seven, which all kinds of colour vision tell apart.
_FIRST = bytes.fromhex("000000 E69F00 56B4E9 009E73 F0E442 0072B2 D55E00 CC79A7")


def palette(num_classes: int) -> NDArray[np.uint8]:
    """Distinct colours, the same on every machine: uint8 [num_classes, 3] RGB; the background is black.

    From the eighth part on hues walk round the circle by the golden ratio, so that neighbours in the list are far apart
    whatever their number; saturation and value change from one to the next.
    """
    first = np.frombuffer(_FIRST, np.uint8).reshape(-1, 3)
    hues = [(index + _FIRST_HUE) * _GOLDEN % 1.0 for index in range(num_classes - len(first))]
    more = [colorsys.hsv_to_rgb(hue, *_SHADES[index % 4]) for index, hue in enumerate(hues)]
    return np.concatenate([first, np.rint(255 * np.array(more).reshape(-1, 3)).astype(np.uint8)])[:num_classes]


def class_colours(num_classes: int) -> list[tuple[int, int, int]]:
    """`palette` as tuples."""
    return [(red, green, blue) for red, green, blue in palette(num_classes).tolist()]

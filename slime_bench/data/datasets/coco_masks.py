"""COCO's three forms of a mask as pixels: polygons, run lengths as numbers, run lengths as text. Pure functions.

The format of the run lengths is that of the COCO API (github cocodataset/cocoapi, common/maskApi.h): columns first, the
first run is of zeros; the text holds five bits a character, and from the fourth number on differences to the last but
one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Polygon = NDArray[np.float32]
"""[N,2], corners (x, y) in pixels of the image, whose upper left pixel reaches from 0 to 1."""


def run_lengths(text: str) -> list[int]:
    """The numbers of a compressed run-length text.

    Raises:
        ValueError: another character, or a text that ends within a number.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"the character {character!r} in a run-length text")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:  # the number goes on
            continue
        if code & 16:  # its sign
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("a run-length text that ends within a number")
    return counts


def decode_runs(counts: Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """Run lengths -> bool [height,width].

    Raises:
        ValueError: a negative length, or lengths that do not add up to the image.
    """
    lengths = np.asarray(counts, dtype=np.int64)
    if lengths.ndim != 1 or (lengths < 0).any() or lengths.sum() != height * width:
        raise ValueError(f"run lengths of {int(lengths.sum())} pixels for an image of {width}x{height}")
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(width, height).T


def fill_polygon(label: NDArray[np.uint8], polygon: Polygon, value: int) -> None:
    """Set the pixels of `label` [H,W] to `value` whose centres lie within a polygon (even-odd rule).

    Not by Pillow, which cuts corners to whole pixels and fills those that an edge touches: a tenth too much for small
    objects.
    """
    if len(polygon) < 3:  # encloses nothing
        return
    height, width = label.shape
    x, y = (polygon.astype(np.float64) - 0.5).T  # from here on a pixel's centre is a whole number
    low, high = max(int(np.ceil(y.min())), 0), min(int(np.floor(y.max())), height - 1)
    if low > high:
        return
    rows = np.arange(low, high + 1)
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    # An edge crosses the rows from its lower end on and below its upper end: a corner counts once.
    crosses = (np.minimum(y, next_y)[:, None] <= rows) & (rows < np.maximum(y, next_y)[:, None])
    edge, row = np.nonzero(crosses)
    place = x[edge] + (rows[row] - y[edge]) * (next_x - x)[edge] / (next_y - y)[edge]
    column = np.clip(np.ceil(place), 0, width).astype(np.int64)
    turns = np.zeros((len(rows), width + 1), np.int64)
    np.add.at(turns, (row, column), 1)
    label[low : high + 1][turns.cumsum(1)[:, :-1] % 2 == 1] = value


def fill_truncated(label: NDArray[np.uint8], polygon: Polygon, value: int) -> None:
    """The same with corners cut to whole pixels first and the edges drawn, as the masks of the authors' lists are.

    Those are of OpenCV's `fillPoly`, from which 3 pixels in 1000 differ here.
    """
    corners = polygon.astype(np.int32)
    if len(corners) < 3:
        return
    fill_polygon(label, corners.astype(np.float32) + np.float32(0.5), value)
    picture = Image.fromarray(label)
    line = [(int(x), int(y)) for x, y in (*corners, corners[0])]
    ImageDraw.Draw(picture).line(line, fill=value)
    label[:] = np.asarray(picture)


def polygon_area(polygon: Polygon) -> float:
    """Area in pixels, by the shoelace formula."""
    x, y = polygon.astype(np.float64).T
    return float(abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2)

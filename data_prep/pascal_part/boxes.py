"""Boxes in pictures: extents of masks, three measures of overlap, squares, cuts. Pure functions on whole numbers.

A box is half open: its pixels are the columns left..right-1 and the rows top..bottom-1, counted from 0. A VOC box
(from 1, both ends inside) is `Box(xmin - 1, ymin - 1, xmax, ymax)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Box(NamedTuple):
    """Columns left..right-1, rows top..bottom-1."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def area(self) -> int:
        """Pixels; 0 for a box without any."""
        return max(0, self.width) * max(0, self.height)


def extent(mask: np.ndarray) -> Box | None:
    """The smallest box with every true pixel of `mask` (bool [H,W]); None when there is none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def short_extent(mask: np.ndarray) -> Box | None:
    """`extent` without its last column and row, for they are taken as exclusive ends (SLiMe-lab `get_bbox_data`).

    A mask one pixel wide or high therefore has a box without pixels.
    """
    box = extent(mask)
    return box and Box(box.left, box.top, box.right - 1, box.bottom - 1)


def clip(box: Box, width: int, height: int) -> Box:
    """The part of `box` that lies in a picture; without pixels (area 0) when it lies outside."""
    return Box(max(0, box.left), max(0, box.top), min(width, box.right), min(height, box.bottom))


def intersection(a: Box, b: Box) -> int:
    """Pixels that both boxes have."""
    return Box(max(a.left, b.left), max(a.top, b.top), min(a.right, b.right), min(a.bottom, b.bottom)).area


def iou(a: Box, b: Box) -> float:
    """Intersection over union, in pixels; 0 for two boxes without pixels."""
    inter = intersection(a, b)
    union = a.area + b.area - inter
    return inter / union if union else 0.0


def iou_uint8(a: Box, b: Box) -> float:
    """SLiMe-lab's overlap: its intersection is known only modulo 256.

    The lab fills a uint8 mask per box and multiplies the masks as matrices; NumPy sums such a product in uint8, so
    that 256 common pixels count as none. The areas come from `np.sum`, which widens, and are right:
    (inter mod 256) / (area_a + area_b - (inter mod 256) + 1e-7). As the numerator is at most 255, 5 % can only be
    reached by two boxes that have fewer than 255 / .05 + 255 = 5355 pixels together: for cars, of at least 2500 pixels,
    the filter is almost inert.
    """
    inter = intersection(a, b) % 256
    return inter / (a.area + b.area - inter + 1e-7)


def hull_overlap(a: Box, b: Box) -> float:
    """lagm's overlap: intersection over the area of the smallest box around both, which it calls the union.

    It never exceeds the IoU. Widths and heights are differences of VOC's inclusive ends, so a pixel short.
    """
    hull = Box(min(a.left, b.left), min(a.top, b.top), max(a.right, b.right) - 1, max(a.bottom, b.bottom) - 1)
    common = Box(max(a.left, b.left), max(a.top, b.top), min(a.right, b.right) - 1, min(a.bottom, b.bottom) - 1)
    return common.area / (hull.area + 1e-8)


def square(box: Box, width: int, height: int) -> Box:
    """lagm's crop: the square round the middle of `box`, its side the longer one, cut at the picture's edges.

    The middle is first moved to where a box of this width and height fits the picture, which changes nothing for a box
    that lies within it. Half pixels are cut off towards 0.
    """
    side = max(box.width, box.height)

    def ends(low: int, high: int, length: int, total: int) -> tuple[int, int]:
        middle = min(max((low + high) / 2, min(total / 2, length / 2)), max(total / 2, total - length / 2))
        return int(min(max(middle - side / 2, 0), total)), int(min(max(middle + side / 2, 0), total))

    left, right = ends(box.left, box.right, box.width, width)
    top, bottom = ends(box.top, box.bottom, box.height, height)
    return Box(left, top, right, bottom)


def cut(array: np.ndarray, box: Box) -> np.ndarray:
    """The pixels of `box` from [H,W] or [H,W,3]: [h,w] or [h,w,3], a copy."""
    return array[box.top : box.bottom, box.left : box.right].copy()


def cut_square(array: np.ndarray, box: Box) -> np.ndarray:
    """As `cut`, in the middle of a square of zeros whose side is the longer one; an odd rest goes right and below."""
    piece = cut(array, box)
    height, width = piece.shape[:2]
    side = max(height, width)
    padded = np.zeros((side, side, *array.shape[2:]), dtype=array.dtype)
    top, left = (side - height) // 2, (side - width) // 2
    padded[top : top + height, left : left + width] = piece
    return padded


def best_match(box: Box, candidates: Sequence[Box | None], least: float = 0.5) -> int | None:
    """Index of the candidate with the greatest IoU with `box`, if that is at least `least`; the first of equals."""
    scores = [iou(box, candidate) if candidate else 0.0 for candidate in candidates]
    best = max(range(len(scores)), key=scores.__getitem__, default=None)
    return best if best is not None and scores[best] >= least else None

"""Numbers that only one figure needs: what is labelled of a subject that nobody annotated, and IoU by size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

EDGES = (4, 8, 12, 18, 26, 41)
"""Bounds of the sizes of a part in pixels, the last of them outside."""


@dataclass(frozen=True)
class Sized:
    """Parts of one range of sizes.

    Attributes:
        least, most: pixels. count: parts. iou: of all their pictures together, in percent; None without any.
    """

    least: int
    most: int
    count: int
    iou: float | None


def labelled_share(pairs: Iterable[tuple[NDArray[np.integer], NDArray[np.bool_]]]) -> float | None:
    """Percent of the pixels of a region that are predicted as any part, over all pictures together.

    Args:
        pairs: prediction [H,W], 0 = background, and the region [H,W] of the subject that is not annotated.
    """
    found = [(int((prediction > 0)[region].sum()), int(region.sum())) for prediction, region in pairs]
    whole = sum(size for _, size in found)
    return 100 * sum(count for count, _ in found) / whole if whole else None


def iou_by_size(
    pairs: Iterable[tuple[NDArray[np.integer], NDArray[np.integer]]], edges: Sequence[int] = EDGES
) -> list[Sized]:
    """IoU of parts in ranges of their size: sum of intersections over sum of unions of the pictures in a range.

    Args:
        pairs: prediction and label map [H,W] of each picture. Every part that the label map shows counts by itself.
        edges: bounds of the ranges, the lower one inside.
    """
    rows = []
    for prediction, label in pairs:
        for part in np.unique(label[(label > 0) & (label < 255)]):
            own, said = label == part, prediction == part
            rows.append((int(own.sum()), int((own & said).sum()), int((own | said).sum())))
    found = []
    for low, high in pairwise(edges):
        inside = [(both, either) for size, both, either in rows if low <= size < high]
        either = sum(each for _, each in inside)
        iou = 100 * sum(both for both, _ in inside) / either if either else None
        found.append(Sized(low, high - 1, len(inside), iou))
    return found

"""Whether the regions of a mask have hard edges, as those of a label map do.

Anti-aliasing, interpolation and soft brushes put values between two regions that belong to neither, and lossy formats
scatter them about; each would become a class of its own, or be taken for a class that has the value by chance.

The test looks along lines: where one flat value meets another, an edge is *hard* if they touch, and a *ramp* if one to
four pixels with values strictly between the two lie there. One class may well be a thin line between two others, a
membrane or an outline, which is a ramp of one value; edges that were smoothed have several values between the same two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slime_bench.data.label_maps import unpack

LONGEST = 4
"""Pixels of a ramp; longer ones are photographs' or soft brushes', which have many values."""
_LINES = 1024  # rows and columns that are looked at
_LEAST = 8  # ramps, before they count for anything
_SHARE = 0.15  # of ramps among edges: in label maps of the mini world below 0.05, after a bilinear resize above 0.2
_NEAR = 10  # in one channel: so far from the line between two colours a mixture may lie
_AROUND = ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))
_SPECKLE = 0.02  # of pixels that differ from all four neighbours

Values = NDArray[np.int64]


@dataclass(frozen=True)
class Edges:
    """What the edges of a mask look like.

    Attributes:
        hard: number of edges where two values touch. ramps: (a, b) with a < b -> value between -> how often.
        solid: values that fill a square of 3 x 3 pixels somewhere.
        speckle: part of the pixels that differ from all their neighbours, 0..1.
    """

    hard: int
    ramps: dict[tuple[int, int], dict[int, int]]
    solid: frozenset[int]
    speckle: float

    def soft(self, named: Collection[int] | None = None) -> list[int]:
        """Values that only smoothing can have made, in ascending order; empty where the edges are hard.

        Args:
            named: values of which it was said that they are classes, so that one may be a line; None where nothing was.
        """
        total = self.hard + sum(sum(mids.values()) for mids in self.ramps.values())
        several = [mids for mids in self.ramps.values() if len(mids) > 1]
        lines = [mids for mids in self.ramps.values() if len(mids) == 1 and not {*mids} & self.solid]
        for suspects in (several, [*several, *lines] if named is None else []):
            count = sum(sum(mids.values()) for mids in suspects)
            if count >= max(_LEAST, _SHARE * total):
                return sorted({value for mids in suspects for value in mids})
        return []

    @property
    def noisy(self) -> bool:
        """Whether single pixels are scattered about, as in photographs and after lossy compression."""
        return self.speckle > _SPECKLE


def edges(values: Values, coloured: bool) -> Edges:
    """What lies between the regions of a mask.

    Args:
        values: int64 [H,W]: indices, or colours 0xRRGGBB where `coloured`.
    """
    hard, ramps = 0, defaultdict[tuple[int, int], dict[int, int]](lambda: defaultdict(int))
    for lines in (values, values.T):
        sample = np.ascontiguousarray(lines[:: -(-len(lines) // _LINES)])
        for length in range(LONGEST + 1):
            hard += _meetings(sample, length, coloured, ramps)
    sides = [values[1:-1, 1:-1] == values[1 + y : y - 1 or None, 1 + x : x - 1 or None] for y, x in _AROUND]
    # In the order of `_AROUND` the first four share a side with the pixel.
    solid = np.unique(values[1:-1, 1:-1][np.logical_and.reduce(sides)]) if min(values.shape) > 2 else values[:0, 0]
    lonely = ~np.logical_or.reduce(sides[:4])
    speckle = float(lonely.mean()) if lonely.size else 0.0
    return Edges(hard, {pair: dict(mids) for pair, mids in ramps.items()}, frozenset(solid.tolist()), speckle)


def _meetings(lines: Values, length: int, coloured: bool, ramps: dict[tuple[int, int], dict[int, int]]) -> int:
    """Count in `ramps` where two flat values are `length` pixels apart with a ramp between; the number, where 0."""
    width = lines.shape[1] - length - 3
    if width <= 0:
        return 0
    before, first, last, after = (lines[:, start : start + width] for start in (0, 1, length + 2, length + 3))
    rows, columns = np.nonzero((before == first) & (last == after) & (first != last))
    if length == 0:
        return len(rows)
    ends = lines[rows, columns + 1], lines[rows, columns + 2 + length]
    middle = lines[rows[:, None], columns[:, None] + 2 + np.arange(length)]
    inside = _between(*ends, middle, coloured)
    for a, b, mids in zip(*(each[inside].tolist() for each in (*ends, middle)), strict=True):
        found = ramps[min(a, b), max(a, b)]
        for value in mids:
            found[value] += 1
    return 0


def _between(start: Values, end: Values, middle: Values, coloured: bool) -> NDArray[np.bool_]:
    """[N]: whether all of `middle` [N,L] lie strictly between `start` and `end` [N], and go one way; of colours, near
    the line from one to the other."""
    near, rest = (_NEAR, 0.02) if coloured else (0, 0.0)
    a, b, m = (
        np.stack(unpack(each) if coloured else [each], axis=-1).astype(np.float64) for each in (start, end, middle)
    )
    whole = b - a
    place = ((m - a[:, None]) * whole[:, None]).sum(-1) / np.maximum((whole**2).sum(-1), 1)[:, None]
    off = np.abs(m - a[:, None] - place[..., None] * whole[:, None]).max(axis=-1)
    apart = (np.abs(whole).max(-1) > 2 * near)[:, None]
    on_line = (off <= near + 1e-6) & (place > rest) & (place < 1 - rest) & apart
    return np.asarray(on_line.all(axis=1) & (np.diff(place, axis=1) >= -rest).all(axis=1))


def border_value(values: Values) -> int | None:
    """The value that more than half of the outermost pixels have: the likely background; None where none does."""
    outermost = np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]])
    found, counts = np.unique(outermost, return_counts=True)
    return int(found[counts.argmax()]) if 2 * counts.max() > len(outermost) else None

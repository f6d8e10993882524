"""Whether the regions of a mask have hard edges, as those of a label map do.

Anti-aliasing, interpolation and soft brushes put values between two regions that belong to neither, and lossy formats
scatter them about; each would become a class of its own, or be taken for a class that has the value by chance.

The test looks along lines: where one flat value meets another, an edge is *hard* if they touch, and a *ramp* if one to
four pixels with values strictly between the two lie there. One class may well be a thin line between two others, a
membrane or an outline, which is a ramp of one value; edges that were smoothed have several values between the same two.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from slime_bench.data.label_maps import unpack

LONGEST = 4
"""Pixels of a ramp; longer ones are photographs' or soft brushes', which have many values."""
_LINES = 1024  # rows and columns that are looked at
_LEAST = 8  # ramps, before they count for anything
_SHARE = 0.15  # of ramps among edges: in label maps of the mini world below 0.05, after a bilinear resize above 0.2
_NEAR = 10  # in one channel: so far from the line between two colours a mixture may lie

Values = NDArray[np.int64]
Ramps = dict[tuple[int, int], dict[int, int]]
"""(a, b) with a < b -> value between -> how often."""


def soft_values(values: Values, coloured: bool, named: bool) -> list[int]:
    """Values of a mask that only smoothing can have made, in ascending order; empty where its edges are hard.

    Args:
        values: int64 [H,W]: indices, or colours 0xRRGGBB where `coloured`.
        named: whether it was said which values are classes, so that one may be a line.
    """
    hard, ramps = 0, defaultdict[tuple[int, int], dict[int, int]](lambda: defaultdict(int))
    for lines in (values, values.T):
        sample = np.ascontiguousarray(lines[:: -(-len(lines) // _LINES)])
        for length in range(LONGEST + 1):
            hard += _meetings(sample, length, coloured, ramps)
    total = hard + sum(sum(mids.values()) for mids in ramps.values())
    several = [mids for mids in ramps.values() if len(mids) > 1]
    solid = set() if named else _solid(values)
    thin = [mids for mids in ramps.values() if len(mids) == 1 and not {*mids} & solid]
    for suspects in (several, [] if named else [*several, *thin]):
        if sum(sum(mids.values()) for mids in suspects) >= max(_LEAST, _SHARE * total):
            return sorted({value for mids in suspects for value in mids})
    return []


def _solid(values: Values) -> set[int]:
    """Values that fill a square of 3 x 3 pixels somewhere."""
    if min(values.shape) < 3:
        return set()
    squares = np.lib.stride_tricks.sliding_window_view(values, (3, 3))
    return {*np.unique(squares[..., 1, 1][(squares == squares[..., 1:2, 1:2]).all((2, 3))]).tolist()}


def _meetings(lines: Values, length: int, coloured: bool, ramps: Ramps) -> int:
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

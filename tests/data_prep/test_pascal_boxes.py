"""Boxes against masks that are filled and counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.pascal_part.boxes import (
    Box,
    best_match,
    clip,
    cut,
    cut_square,
    extent,
    hull_overlap,
    intersection,
    iou,
    iou_uint8,
    short_extent,
    square,
)

WIDTH, HEIGHT = 70, 60


@st.composite
def boxes(draw: st.DrawFn, width: int = WIDTH, height: int = HEIGHT) -> Box:
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return Box(left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height)))


def filled(box: Box, dtype: type = bool) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=dtype)
    mask[box.top : box.bottom, box.left : box.right] = 1
    return mask


@given(boxes(), boxes())
def test_overlap_counts_pixels(a: Box, b: Box) -> None:
    one, two = filled(a), filled(b)
    assert a.area == one.sum() and intersection(a, b) == (one & two).sum()
    assert iou(a, b) == pytest.approx((one & two).sum() / (one | two).sum(), abs=1e-12)
    assert iou(a, b) == iou(b, a)


@given(st.lists(boxes(), min_size=2, max_size=4))
def test_lab_overlap_is_its_uint8_matrix_product(found: list[Box]) -> None:
    """The lab's masks and product as NumPy computes them: uint8 in, uint8 out."""
    masks = np.stack([filled(box, np.uint8).ravel() for box in found])
    product = masks @ masks.T
    assert product.dtype == np.uint8
    areas = masks.sum(axis=1).astype(float)
    for i, a in enumerate(found):
        for j, b in enumerate(found):
            if i != j:
                assert iou_uint8(a, b) == product[i, j] / (areas[i] + areas[j] - product[i, j] + 1e-7)


@given(boxes(), boxes())
def test_hull_overlap_is_lagms(a: Box, b: Box) -> None:
    """lagm's arithmetic on VOC's own numbers: from 1, both ends inside, differences without the + 1."""
    one, two = (np.array([box.left + 1, box.top + 1, box.right, box.bottom], dtype=float) for box in (a, b))
    inner = np.minimum(one[2:], two[2:]) - np.maximum(one[:2], two[:2])
    outer = np.maximum(one[2:], two[2:]) - np.minimum(one[:2], two[:2])
    assert hull_overlap(a, b) == pytest.approx(np.maximum(inner, 0).prod() / (outer.prod() + 1e-8), abs=1e-12)
    assert hull_overlap(a, b) <= iou(a, b) + 1e-9


@given(st.integers(0, 2**30 - 1))
def test_extents(bits: int) -> None:
    mask = np.array([bits >> place & 1 for place in range(30)], dtype=bool).reshape(5, 6)
    rows, columns = np.nonzero(mask)
    if not rows.size:
        assert extent(mask) is None and short_extent(mask) is None
        return
    assert extent(mask) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert short_extent(mask) == (columns.min(), rows.min(), columns.max(), rows.max())


def lagm_window(box: Box, width: int, height: int) -> tuple[list[int], list[int]]:
    """The columns and rows of lagm's crop, found by trying each: those whose left or upper edge, cut to whole numbers,
    lies in the square's interval."""
    x1, y1, x2, y2 = box.left + 1 - 1, box.top + 1 - 1, box.right, box.bottom
    side = max(x2 - x1, y2 - y1)
    windows = []
    for low, high, total in ((x1, x2, width), (y1, y2, height)):
        start, stop = (low + high) / 2 - side / 2, (low + high) / 2 + side / 2
        start, stop = (np.trunc(np.clip(end, 0, total)) for end in (start, stop))
        windows.append([place for place in range(total) if start <= place < stop])
    return windows[0], windows[1]


@given(boxes())
def test_square_of_a_box_in_the_picture(box: Box) -> None:
    found = square(box, WIDTH, HEIGHT)
    columns, rows = lagm_window(box, WIDTH, HEIGHT)
    assert list(range(found.left, found.right)) == columns and list(range(found.top, found.bottom)) == rows
    assert found == clip(found, WIDTH, HEIGHT)
    side = max(box.width, box.height)
    assert max(found.width, found.height) <= side and intersection(found, box) >= box.area - side
    if side <= min(WIDTH, HEIGHT) // 3 and side % 2 == box.width % 2 == box.height % 2:
        middle = clip(box, WIDTH, HEIGHT)
        if middle.left > side and middle.right < WIDTH - side and middle.top > side and middle.bottom < HEIGHT - side:
            assert (found.width, found.height) == (side, side) and intersection(found, box) == box.area


def test_square_by_hand() -> None:
    assert square(Box(40, 10, 60, 50), 100, 100) == (30, 10, 70, 50)
    assert square(Box(0, 10, 20, 50), 100, 100) == (0, 10, 30, 50)  # cut at the left edge, padded later
    assert square(Box(40, 10, 61, 50), 100, 100) == (30, 10, 70, 50)  # 30.5 and 70.5: half pixels are dropped
    assert square(Box(10, 10, 90, 30), 100, 50) == (10, 0, 90, 50)  # wider than the picture is high
    # A box that leaves the picture: its middle moves until the box would fit.
    assert square(Box(90, 20, 110, 40), 100, 100) == (80, 20, 100, 40)


@given(boxes())
def test_cuts(box: Box) -> None:
    array = np.arange(1, HEIGHT * WIDTH * 3 + 1, dtype=np.int64).reshape(HEIGHT, WIDTH, 3)
    piece = cut(array, box)
    assert piece.shape == (box.height, box.width, 3) and piece[0, 0, 0] == array[box.top, box.left, 0]
    assert not np.shares_memory(piece, array)
    padded = cut_square(array, box)
    side = max(box.width, box.height)
    assert padded.shape == (side, side, 3) and padded.sum() == piece.sum()
    inside = extent((padded > 0).all(axis=2))
    assert inside is not None and (inside.width, inside.height) == (box.width, box.height)
    for before, after in ((inside.left, side - inside.right), (inside.top, side - inside.bottom)):
        assert after - before in (0, 1)
    assert np.array_equal(cut(padded, inside), piece)
    assert np.array_equal(cut_square(array[..., 0], box), padded[..., 0])


@given(boxes(), st.lists(st.one_of(st.none(), boxes()), max_size=5))
def test_best_match(box: Box, candidates: list[Box | None]) -> None:
    scores = [iou(box, each) if each else 0.0 for each in candidates]
    found = best_match(box, candidates)
    if found is None:
        assert all(score < 0.5 for score in scores)
    else:
        assert scores[found] == max(scores) >= 0.5 and scores.index(max(scores)) == found

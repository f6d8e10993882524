"""Paint becomes hard-edged labels, and labels become paint."""

from __future__ import annotations

import numpy as np
import pytest

from slime_bench.app import paint
from slime_bench.colours import class_colours, palette

COLOURS = class_colours(6)
SIZE = (20, 30)


def layer(*patches: tuple[slice, slice, tuple[int, ...], int]) -> np.ndarray:
    made = np.zeros((*SIZE, 4), np.uint8)
    for rows, columns, colour, alpha in patches:
        made[rows, columns] = (*colour, alpha)
    return made


def test_the_colours_are_those_of_the_label_maps() -> None:
    assert [list(each) for each in COLOURS] == palette(6).tolist()
    assert paint.hexed((255, 0, 10)) == "#ff000a"


def test_half_transparent_edges_are_cut_at_one_half() -> None:
    painted = layer(
        (slice(0, 10), slice(0, 10), COLOURS[2], 255),
        (slice(0, 10), slice(10, 11), COLOURS[2], 128),
        (slice(0, 10), slice(11, 12), COLOURS[2], 127),
    )
    label = paint.labels_of([painted], COLOURS, SIZE)
    assert np.array_equal(np.argwhere(label.any(axis=0)).ravel(), np.arange(11)) and set(np.unique(label)) == {0, 2}


def test_colours_mixed_along_an_edge_are_no_third_class() -> None:
    """Between two strokes the brush leaves mixtures, and every one of them may be nearest to another class's colour."""
    for one, other in ((1, 5), (1, 2), (2, 3), (3, 4)):
        steps = [np.round(np.array(COLOURS[one]) * (1 - part) + np.array(COLOURS[other]) * part) for part in (0.3, 0.7)]
        mixed = [(slice(None), slice(10 + place, 11 + place), tuple(step), 255) for place, step in enumerate(steps)]
        painted = layer(
            (slice(None), slice(0, 10), COLOURS[one], 255), *mixed, (slice(None), slice(12, 30), COLOURS[other], 255)
        )
        label = paint.labels_of([painted], COLOURS, SIZE)
        assert np.array_equal(label[0], [one] * 11 + [other] * 19)


def test_later_layers_lie_above_and_sizes_may_differ() -> None:
    first, second = layer((slice(0, 10), slice(None), COLOURS[1], 255)), np.zeros((40, 60, 4), np.uint8)
    second[:10] = (*COLOURS[3], 255)
    label = paint.labels_of([first, second], COLOURS, SIZE)
    assert label[:, 0].tolist() == [3] * 5 + [1] * 5 + [0] * 10
    assert not paint.labels_of([], COLOURS, SIZE).any()


@pytest.mark.parametrize("size", [(128, 128), (30, 40), (90, 33)])
def test_labels_become_paint_and_come_back(size: tuple[int, int]) -> None:
    label = np.random.default_rng(0).integers(0, 6, size).astype(np.uint8)
    layer = paint.layer_of(label, COLOURS)
    assert layer.shape == (paint.VIEW, paint.VIEW, 4)
    assert np.array_equal(paint.resized(paint.painted([layer], COLOURS, size), size), label)
    assert not paint.layer_of(np.full(size, 255, np.uint8), COLOURS).any()
    layer[..., :] = (*COLOURS[1], 255)  # beside the picture, too
    assert (paint.painted([layer], COLOURS, size) == 1).all()


def test_a_correction_changes_what_was_painted_over_alone() -> None:
    """A photo is painted on in a reduced view; what was not touched keeps the photo's own resolution."""
    label = np.zeros((200, 300), np.uint8)
    label[50:151, 33:78] = 2
    label[0, 0], label[199, 299] = 255, 1
    before = paint.resized(label, SIZE)
    after = before.copy()
    after[:, 20:] = 4
    merged = paint.merged(label, before, after)
    assert np.array_equal(merged[:, :200], label[:, :200]) and (merged[:, 200:] == 4).all()


@pytest.mark.parametrize("size", [(128, 128), (3000, 4000), (600, 7)])
def test_pictures_keep_their_form_on_the_square(size: tuple[int, int]) -> None:
    view = paint.painting_view(np.full((*size, 3), 200, np.uint8))
    rows, columns = np.nonzero(view[..., 0] == 200)
    height, width = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    assert view.shape == (paint.VIEW, paint.VIEW, 3) and max(height, width) == paint.VIEW
    assert height / width == pytest.approx(size[0] / size[1], rel=0.07)
    assert (
        abs(rows.min() + rows.max() + 1 - paint.VIEW) <= 1 and abs(columns.min() + columns.max() + 1 - paint.VIEW) <= 1
    )

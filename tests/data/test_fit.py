"""Squash and pad: what every image size must keep, and the way back from score maps to the file's own pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from slime_bench.data.augment import choose_crop
from slime_bench.data.config import FITS, RESIZES, Augmentation
from slime_bench.data.label_maps import IGNORE
from slime_bench.data.reading import Sample
from slime_bench.data.transforms import (
    fit_image,
    fit_sample,
    fitted_size,
    resize_float_like_opencv,
    resize_image,
    resize_like_opencv,
    unfit,
)
from slime_bench.errors import DataError
from slime_bench.seeding import generator

LENGTHS = st.integers(1, 60)
SIDES = st.integers(8, 48)
MODES = st.sampled_from(RESIZES)


def scene(height: int, width: int, seed: int = 0) -> Sample:
    """A noise image, never black, with a label map of three classes."""
    draw = np.random.default_rng(seed)
    image = draw.integers(64, 256, (height, width, 3), dtype=np.uint8)
    return Sample("a", image, draw.integers(0, 3, (height, width)))


def size_or_skip(size: tuple[int, int], side: int, fit: str) -> tuple[int, int]:
    """`fitted_size`, or an example that does not count where the picture is too long for `pad_floor8`."""
    try:
        return fitted_size(size, side, fit)
    except DataError:
        assume(False)
        raise


@settings(deadline=None, max_examples=200)
@given(LENGTHS, LENGTHS, SIDES)
def test_sizes(height: int, width: int, side: int) -> None:
    assert fitted_size((height, width), side) == (side, side)
    rows, columns = fitted_size((height, width), side, "pad")
    assert max(rows, columns) == side and min(rows, columns) >= 1
    for new, old in ((rows, height), (columns, width)):
        assert abs(new - old * side / max(height, width)) <= 0.5 or new == 1
    assert fitted_size((width, height), side, "pad") == (columns, rows)


def test_sizes_by_hand() -> None:
    assert fitted_size((375, 500), 512, "pad") == (384, 512)
    assert fitted_size((500, 333), 512, "pad") == (512, 341)  # 340.99
    assert fitted_size((3, 4), 6, "pad") == (5, 6)  # 4.5, halves up
    assert fitted_size((10000, 3), 512, "pad") == (512, 1)  # 0.15, but a picture has a column


@settings(deadline=None, max_examples=100)
@given(LENGTHS, LENGTHS, SIDES, MODES, st.integers(0, 100))
def test_outside_the_picture_is_black_and_ignored(height: int, width: int, side: int, mode: str, seed: int) -> None:
    sample = scene(height, width, seed)
    fitted = fit_sample(sample, side, mode, "pad")
    rows, columns = fitted_size((height, width), side, "pad")
    inside = torch.zeros(side, side, dtype=torch.bool)
    inside[:rows, :columns] = True
    dtype = torch.float32 if mode == "opencv_float" else torch.uint8
    assert fitted.image.shape == (3, side, side) and fitted.image.dtype == dtype
    assert fitted.label.shape == (side, side) and fitted.label.dtype == torch.int64
    assert torch.equal(fitted.label == IGNORE, ~inside)
    assert torch.equal(fitted.image.amax(0) == 0, ~inside)
    assert np.array_equal(
        fitted.image[:, :rows, :columns].permute(1, 2, 0), resize_image(sample.image, (rows, columns), mode)
    )
    assert torch.equal(fit_image(sample.image, side, mode, "pad"), fitted.image)


@settings(deadline=None, max_examples=150)
@given(LENGTHS, LENGTHS, SIDES, st.sampled_from(FITS))
def test_the_way_back_covers_the_file_and_moves_nothing(height: int, width: int, side: int, fit: str) -> None:
    """Maps that hold every fitted pixel's place in the file give every file's pixel its own place again."""
    rows, columns = size_or_skip((height, width), side, fit)
    maps = torch.full((2, side, side), torch.nan, dtype=torch.float64)  # a padded pixel that is read would show
    maps[0, :rows, :columns] = ((torch.arange(rows).double() + 0.5) * height / rows - 0.5)[:, None]
    maps[1, :rows, :columns] = ((torch.arange(columns).double() + 0.5) * width / columns - 0.5)[None]
    back = unfit(maps, (height, width), fit)
    assert back.shape == (2, height, width) and not back.isnan().any()
    ramps = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).double()
    for axis, (old, new) in enumerate(((height, rows), (width, columns))):
        # Linear between the centres of the outermost fitted pixels, constant beyond them.
        edge = 0.5 * old / new - 0.5
        expected = ramps[axis].clamp(edge, old - 1 - edge) if edge > 0 else ramps[axis]
        assert torch.allclose(back[axis], expected, atol=1e-9)


# --- padded pixels in the loss and in the metric


# --- augmentation of padded samples


def test_padding_does_not_enter_the_crop_rule() -> None:
    """One pixel row of picture, 47 of padding: half of all crops lose most padding, and none is refused for it."""
    label = torch.full((48, 48), IGNORE)
    label[0] = 0
    config = Augmentation(crop_ratio=[0.5, 0.5], crop_keep_fraction=0.4)
    boxes = [choose_crop(label, config, generator(seed, "crop")) for seed in range(60)]
    cropped = [box for box in boxes if box[2] == 24]
    assert len(cropped) > 20  # a try succeeds once in 25, and there are 20 tries
    assert all(box[0] == 0 for box in cropped)  # all hold the one row that shows a class
    kept = [int((label[: box[2], box[1] : box[1] + 24] == IGNORE).sum()) / (47 * 48) for box in cropped]
    assert max(kept) < 0.3


def test_sizes_of_pad_floor8_by_hand() -> None:
    assert fitted_size((94, 94), 96, "pad_floor8") == (96, 88)  # int(94 * (96 / 94)) is 95
    assert fitted_size((95, 95), 96, "pad_floor8") == (96, 96)
    assert fitted_size((100, 100), 100, "pad_floor8") == (96, 96)
    with pytest.raises(DataError, match="too long") as caught:
        fit_sample(scene(7, 200), 96, "opencv_float", "pad_floor8")
    assert caught.value.path == "a" and "200x7" in str(caught.value.found)


@settings(max_examples=60, deadline=None)
@given(old=st.tuples(LENGTHS, LENGTHS), new=st.tuples(LENGTHS, LENGTHS), seed=st.integers(0, 2**32 - 1))
def test_float_images_are_opencvs(old: tuple[int, int], new: tuple[int, int], seed: int) -> None:
    cv2 = pytest.importorskip("cv2")
    draw = np.random.default_rng(seed)
    for size in (old, (2 * new[0], 2 * new[1])):
        image = draw.integers(0, 256, (*size, 3), dtype=np.uint8)
        found = resize_float_like_opencv(image, *new)
        assert found.dtype == np.float32 and found.shape == (*new, 3)
        expected = cv2.resize(image.astype(np.float32), new[::-1], interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)  # of 255; a wrong tap is 100 times as much


@settings(max_examples=80, deadline=None)
@given(old=st.tuples(LENGTHS, LENGTHS), new=st.tuples(LENGTHS, LENGTHS), seed=st.integers(0, 2**32 - 1))
def test_every_grey_level_is_opencvs(old: tuple[int, int], new: tuple[int, int], seed: int) -> None:
    cv2 = pytest.importorskip("cv2")
    draw = np.random.default_rng(seed)
    for size in (old, (2 * new[0], 2 * new[1])):  # exact halving is a case of its own there
        image = draw.integers(0, 256, (*size, 3), dtype=np.uint8)
        found = resize_like_opencv(image, *new)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR))

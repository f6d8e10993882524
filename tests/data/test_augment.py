"""Augmentation: what every draw must keep, and each operation against an independent computation."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_bench.config.read import read
from slime_bench.data.augment import (
    augment,
    blur,
    choose_crop,
    crop,
    crop_side,
    rotate,
)
from slime_bench.data.config import Augmentation
from slime_bench.data.label_maps import IGNORE
from slime_bench.errors import ConfigError
from slime_bench.seeding import generator
from tests.fixtures.rounding import rounding

OFF = Augmentation(flip_p=0, blur_p=0, rotation_p=0, crop_ratio=[1.0, 1.0])
MODES = st.sampled_from(["every_class", "background", "nothing"])


def scene(seed: int, height: int = 48, width: int = 48, values: tuple[int, ...] = (0, 1, 2, 5, IGNORE)) -> tuple:
    """A picture of rectangles of every value on background, and a random image."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.zeros(height, width, dtype=torch.int64)
    for value in values:
        top, left = (int(torch.randint(side - 4, (1,), generator=draw)) for side in (height, width))
        label[top : top + height // 3, left : left + width // 3] = value
    return torch.rand(3, height, width, generator=draw), label


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.floats(0.2, 1.0), MODES, st.integers(16, 60), st.integers(16, 60))
def test_labels_stay_in_the_set_and_shapes_stay(seed: int, lowest: float, keep: str, height: int, width: int) -> None:
    image, label = scene(seed, height, width)
    before = image.clone(), label.clone()
    config = Augmentation(crop_ratio=[lowest, 1.0], crop_keep=keep, rotation_degrees=90)
    new_image, new_label = augment(image, label, config, generator(seed, "augment"))
    assert new_image.shape == image.shape and new_image.dtype == torch.float32
    assert new_label.shape == label.shape and new_label.dtype == torch.int64
    assert float(new_image.min()) >= 0 and float(new_image.max()) <= 1
    assert set(new_label.unique().tolist()) <= {*label.unique().tolist(), 0}
    assert torch.equal(image, before[0]) and torch.equal(label, before[1])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.floats(0.1, 0.99), st.integers(8, 60), st.integers(8, 60))
def test_crop_keeps_every_class(seed: int, lowest: float, height: int, width: int) -> None:
    image, label = scene(seed, height, width)
    config = Augmentation(crop_ratio=[lowest, 1.0])
    box = choose_crop(label, config, generator(seed, "crop"))
    top, left, rows, columns = box
    assert top >= 0 and left >= 0 and top + rows <= height and left + columns <= width
    whole = box == (0, 0, height, width)
    assert whole or (rows == columns and rows >= int(lowest * min(height, width)))
    cut = label[top : top + rows, left : left + columns]
    for value in set(label.unique().tolist()) - {IGNORE}:
        assert (cut == value).sum() > 0.3 * (label == value).sum()
    _, new_label = crop(image, label, box)
    assert set(label.unique().tolist()) - {IGNORE} <= set(new_label.unique().tolist())


def test_crop_gives_up_on_an_impossible_demand() -> None:
    label = torch.zeros(32, 32, dtype=torch.int64)
    label[0, 0] = label[-1, -1] = 1  # opposite corners: no smaller square keeps more than half of class 1
    config = Augmentation(crop_ratio=[0.2, 0.9], crop_keep_fraction=0.5)
    assert choose_crop(label, config, generator(0, "crop")) == (0, 0, 32, 32)
    config.crop_keep = "background"
    boxes = [choose_crop(label, config, generator(seed, "crop")) for seed in range(20)]
    assert any(box != (0, 0, 32, 32) for box in boxes)
    assert all(box[2] ** 2 > 0.5 * 32 * 32 - 2 for box in boxes)


def test_crop_sides_are_the_references() -> None:
    # Boxes recorded from the reference's get_random_crop_coordinates: (x0, x1, y0, y1) under random.seed(40304).
    for lowest, width, height, recorded in (
        (0.8, 512, 512, [(8, 488, 17, 497), (52, 495, 42, 485), (38, 484, 14, 460)]),
        (0.3, 300, 500, [(16, 250, 143, 377), (104, 264, 170, 330), (77, 241, 59, 223)]),
    ):
        draws = random.Random(40304)
        for x0, x1, y0, y1 in recorded:
            side = crop_side(draws.random() * (1 - lowest) + lowest, height, width)
            assert (draws.randint(0, width - side), draws.randint(0, height - side)) == (x0, y0)
            assert (x1 - x0, y1 - y0) == (side, side)


def test_everything_off_is_the_identity() -> None:
    image, label = scene(1)
    new_image, new_label = augment(image, label, OFF, generator(0, "augment"))
    assert torch.equal(new_image, image) and torch.equal(new_label, label)


def test_blur_of_an_image_smaller_than_the_kernel() -> None:
    assert blur(torch.full((3, 1, 2), 0.5), 5).allclose(torch.tensor(0.5))


def test_rotation_fills_with_zero_and_keeps_the_aspect() -> None:
    image, label = torch.ones(3, 20, 60), torch.full((20, 60), 3)
    turned, turned_label = rotate(image, label, 30)
    assert turned_label.unique().tolist() == [0, 3] and turned_label[0, 0] == 0 and turned[0, 0, 0] == 0
    # The same by hand: an output pixel is inside when its preimage under the rotation is.
    y, x = torch.meshgrid(torch.arange(20) - 9.5, torch.arange(60) - 29.5, indexing="ij")
    cosine, sine = math.cos(math.pi / 6), math.sin(math.pi / 6)
    inside = ((cosine * x - sine * y).abs() < 29.99) & ((sine * x + cosine * y).abs() < 9.99)
    assert (turned_label[inside] == 3).all()
    outside = ((cosine * x - sine * y).abs() > 30.01) | ((sine * x + cosine * y).abs() > 10.01)
    assert (turned_label[outside] == 0).all()


def test_probabilities_and_kernels_are_those_asked_for() -> None:
    image, label = scene(3, 16, 16)
    label[:] = 1

    def share(config: Augmentation) -> float:
        same = [torch.equal(augment(image, label, config, generator(s, "augment"))[0], image) for s in range(400)]
        return 1 - sum(same) / len(same)

    off = {"flip_p": 0.0, "blur_p": 0.0, "rotation_p": 0.0, "crop_ratio": [1.0, 1.0]}
    assert abs(share(Augmentation(**{**off, "flip_p": 0.5})) - 0.5) < 0.1
    assert abs(share(Augmentation(**{**off, "rotation_p": 0.25})) - 0.25) < 0.09
    # One kernel in five is 1, which changes nothing.
    assert abs(share(Augmentation(**{**off, "blur_p": 1.0, "blur_kernels": [1, 3, 3, 5, 5]})) - 0.8) < 0.08


def test_switching_one_operation_off_leaves_the_others_alone() -> None:
    image, label = scene(4)
    for seed in range(20):
        blurred = augment(image, label, Augmentation(blur_p=1), generator(seed, "augment"))[1]
        plain = augment(image, label, Augmentation(blur_p=0), generator(seed, "augment"))[1]
        assert torch.equal(blurred, plain)


def test_same_generator_same_bytes_for_any_number_of_threads() -> None:
    image, label = scene(6, 128, 128)
    threads = torch.get_num_threads()
    try:
        for seed in range(12):
            results = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(augment(image, label, Augmentation(), generator(seed, "augment", "a", 0)))
            for other in results[1:]:
                assert torch.equal(results[0][0], other[0]) and torch.equal(results[0][1], other[1])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flip_p", 1.5),
        ("blur_p", -0.1),
        ("blur_kernels", [2]),
        ("blur_kernels", []),
        ("rotation_degrees", 200.0),
        ("crop_ratio", [0.0, 1.0]),
        ("crop_ratio", [0.9, 0.5]),
        ("crop_ratio", [0.5]),
        ("crop_keep", "parts"),
        ("crop_keep_fraction", 2.0),
    ],
)
def test_bad_settings(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        read(Augmentation, {name: value}, "data.augment")
    assert caught.value.path == f"data.augment.{name}"


@pytest.mark.parametrize("degrees", [-30.0, 7.5, 30.0])
def test_rotation_against_kornia(degrees: float) -> None:
    kornia = pytest.importorskip("kornia")
    image, label = scene(11, 40, 56)
    turned, turned_label = rotate(image, label, degrees)
    angle = torch.tensor([degrees])
    expected = kornia.geometry.transform.rotate(image[None], angle, align_corners=True)[0]
    # Inside only: at the rim the two treat the half pixel beyond the border differently.
    inner = rotate(torch.zeros_like(image), torch.nn.functional.pad(torch.ones(32, 48).long(), (4, 4, 4, 4)), degrees)[
        1
    ]
    assert (turned - expected)[:, inner == 1].abs().max() < 1e-4
    nearest = kornia.geometry.transform.rotate(label[None, None].float(), angle, mode="nearest", align_corners=True)
    assert (turned_label != nearest[0, 0].round().long())[inner == 1].float().mean() < 0.01


@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9])
def test_blur_against_kornia(kernel: int) -> None:
    """Up to 5 pixels kornia's rows of Pascal's triangle, then its Gaussian; only the order of sums differs."""
    kornia = pytest.importorskip("kornia")
    image, _ = scene(9, 40, 56)
    if kernel <= 5:
        weights = kornia.filters.kernels.get_pascal_kernel_1d(kernel, norm=True)[None]
        expected = kornia.filters.filter2d_separable(image[None], weights, weights, border_type="reflect")[0]
    else:
        sigma = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8
        expected = kornia.filters.gaussian_blur2d(image[None], (kernel, kernel), (sigma, sigma), "reflect")[0]
    assert (blur(image, kernel) - expected).abs().max() < rounding(1.0, kernel * kernel)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(8, 40))
def test_crop_against_kornia(seed: int, side: int) -> None:
    """Image and label as kornia resizes the part: 1e-5 for the image (kornia's weights are rounded once more), no pixel
    of the label differs. And as kornia warps the whole image, inside the border of half a source pixel: 1e-4."""
    kornia = pytest.importorskip("kornia")
    image, label = scene(seed, 40, 56)
    draw = torch.Generator().manual_seed(seed)
    top, left = (int(torch.randint(size - side + 1, (1,), generator=draw)) for size in (40, 56))
    found, found_label = crop(image, label, (top, left, side, side))
    resize = kornia.geometry.transform.resize
    part = image[None, :, top : top + side, left : left + side]
    assert (found - resize(part, (40, 56), "bilinear", align_corners=False)[0]).abs().max() < 1e-5
    part = label[None, None, top : top + side, left : left + side].float()
    assert torch.equal(found_label, resize(part, (40, 56), "nearest")[0, 0].long())
    # The centres of the outermost output pixels, in pixels of the source.
    rows, columns = (
        (start - 0.5 + torch.tensor([0.5, new - 0.5]) * side / new) for start, new in ((top, 40), (left, 56))
    )
    corners = [(columns[0], rows[0]), (columns[1], rows[0]), (columns[1], rows[1]), (columns[0], rows[1])]
    boxes = torch.tensor([[[float(x), float(y)] for x, y in corners]])
    warped = kornia.geometry.transform.crop_and_resize(image[None], boxes, (40, 56), align_corners=True)[0]
    down, right = (math.ceil(new / side / 2) for new in (40, 56))
    assert (found - warped)[:, down:-down, right:-right].abs().max() < 1e-4


def test_a_whole_augmentation_against_kornia() -> None:
    """All four in the reference's order, from the numbers that the generator gives; 1e-4 within the turned frame."""
    kornia = pytest.importorskip("kornia")
    image, label = scene(13, 48, 48, values=(1, 2))
    config = Augmentation(flip_p=1, blur_p=1, rotation_p=1, blur_kernels=[5], crop_keep="nothing")
    transform = kornia.geometry.transform
    for seed in range(8):
        found, found_label = augment(image, label, config, generator(seed, "augment"))
        draws = generator(seed, "augment")
        angle = (2 * torch.rand(5, generator=draws, dtype=torch.float64)[4] - 1) * config.rotation_degrees
        top, left, side, _ = choose_crop(label, config, draws)
        weights = kornia.filters.kernels.get_pascal_kernel_1d(5, norm=True)[None]
        expected = kornia.filters.filter2d_separable(transform.hflip(image[None]), weights, weights, "reflect")
        window = (..., slice(top, top + side), slice(left, left + side))
        expected = transform.resize(expected[window], (48, 48), "bilinear", align_corners=False)
        expected = transform.rotate(expected, angle[None].float(), align_corners=True)[0]
        labels = transform.resize(transform.hflip(label[None, None].float())[window], (48, 48), "nearest")
        labels = transform.rotate(labels, angle[None].float(), mode="nearest", align_corners=True)[0, 0].long()
        centre = torch.zeros(48, 48, dtype=torch.int64)
        centre[3:-3, 3:-3] = 1
        inner = rotate(image, centre, float(angle))[1] == 1
        assert (found - expected)[:, inner].abs().max() < 1e-4
        assert (found_label != labels)[inner].float().mean() < 0.01  # points that lie between two pixels

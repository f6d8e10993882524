"""Class lists, colours and the resizing of label maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_bench.colours import palette
from slime_bench.data.label_maps import IGNORE, validate_classes
from slime_bench.data.transforms import resize_label
from slime_bench.errors import ConfigError

CAR = ("background", "body", "light", "plate", "wheel", "window")


def test_valid_classes_come_back_in_order() -> None:
    assert validate_classes(list(CAR)) == CAR
    assert len(validate_classes(["background", *(f"part {i}" for i in range(254))])) == 255


@pytest.mark.parametrize(
    "classes",
    [
        [],
        ["body", "background"],
        ["background"],
        ["background", "body", "body"],
        ["background", " "],
        ["background", True],
        "background",
        ["background", *(f"part {i}" for i in range(255))],
    ],
)
def test_bad_class_lists(classes: list) -> None:
    with pytest.raises(ConfigError, match="this class list cannot be") as caught:
        validate_classes(classes, path="data.classes")
    assert caught.value.path == "data.classes" and caught.value.found and caught.value.remedy


@pytest.mark.parametrize("count", [2, 6, 10, 77])
def test_palette_colours_are_distinct_and_stable(count: int) -> None:
    colours = palette(count)
    assert colours.shape == (count, 3) and colours.dtype == np.uint8
    assert colours[0].tolist() == [0, 0, 0]
    assert np.array_equal(colours[:2], palette(2))  # a class keeps its colour when classes are added
    distances = np.linalg.norm(colours[:, None].astype(float) - colours, axis=-1) + 1000 * np.eye(count)
    assert distances.min() > (60 if count <= 10 else 10)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**16))
def test_resize_is_floor_nearest(height: int, width: int, rows: int, columns: int, seed: int) -> None:
    values = torch.tensor([0, 1, 3, 76, IGNORE])
    label = values[torch.randint(5, (2, height, width), generator=torch.Generator().manual_seed(seed))]
    resized = resize_label(label, (rows, columns))
    assert resized.dtype == label.dtype and resized.shape == (2, rows, columns)
    down = [row * height // rows for row in range(rows)]
    right = [column * width // columns for column in range(columns)]
    assert torch.equal(resized, label[:, down][:, :, right])


@pytest.mark.parametrize(("old", "new"), [(420, 512), (512, 64), (7, 3)])
def test_resize_agrees_with_torch(old: int, new: int) -> None:
    ramp = torch.arange(old)[None]
    expected = torch.nn.functional.interpolate(ramp[None].float(), size=new, mode="nearest")[0].long()
    assert torch.equal(resize_label(ramp, (1, new)), expected)


def test_opencv_resize_falls_to_the_pixel_before() -> None:
    ramp = torch.arange(420)[None]
    plain, opencv = resize_label(ramp, (1, 512))[0], resize_label(ramp, (1, 512), opencv=True)[0]
    # Seen in the reference's own 420 -> 512 masks.
    assert (plain != opencv).nonzero().flatten().tolist() == [128, 256, 384]
    assert torch.equal(opencv[[128, 256, 384]], plain[[128, 256, 384]] - 1)


@pytest.mark.parametrize(("old", "new"), [(300, 512), (420, 512), (512, 100), (333, 512)])
def test_opencv_resize_against_opencv(old: int, new: int) -> None:
    cv2 = pytest.importorskip("cv2")
    ramp = torch.arange(old, dtype=torch.int32)[None].expand(3, -1)
    expected = cv2.resize(ramp.float().numpy(), (new, 3), interpolation=cv2.INTER_NEAREST)
    assert (resize_label(ramp, (3, new), opencv=True).numpy() == expected).all()

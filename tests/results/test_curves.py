"""The file of a trial's curves, and what is kept of them while the method is fitted."""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_bench.errors import ResultError
from slime_bench.methods.curve import WAITING, Curve
from slime_bench.results.artifacts import AXES, CURVES_FILE, Point, read_curves, table, write_curves
from slime_bench.trial import checkpoint

# Names with commas, quotes and spaces, but no control characters.
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=5)
NAMES = NAMES.filter(lambda name: name not in AXES)
POINTS = st.lists(
    st.builds(Point, st.integers(0, 6), st.integers(0, 2), NAMES, st.floats()),
    unique_by=lambda point: (point.step, point.name),
)


def bits(value: float) -> bytes:
    """All NaN are one here: a file of text has no payloads."""
    return struct.pack("<d", math.nan if math.isnan(value) else value)


def test_by_hand() -> None:
    points = [
        Point(0, 0, "train/loss", 0.1), Point(0, 0, "train/a,b", 2.0), Point(1, 0, "train/loss", 1 / 3),
        Point(1, 0, "val/miou", 50.0), Point(3, 1, "train/loss", math.nan),
    ]  # fmt: skip
    assert table(points).decode().splitlines() == [
        'step,epoch,"train/a,b",train/loss,val/miou',
        "0,0,2.0,0.1,",
        "1,0,,0.3333333333333333,50.0",
        "3,1,,nan,",
    ]
    assert table(reversed(points)) == table(points)
    assert table([]) == b"step,epoch\n"


def test_a_name_that_was_logged_twice_in_a_step_has_its_weighted_mean() -> None:
    points = [Point(4, 0, "val/loss", 1.0, 2.0), Point(4, 0, "val/loss", 4.0, 1.0)]
    assert table(points).decode().splitlines()[1] == "4,0,2.0"


@settings(max_examples=60, deadline=None)
@given(POINTS)
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, points: list[Point]) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.csv"
    path.write_bytes(table(points))
    expected = defaultdict(list)
    for point in sorted(points, key=lambda point: point.step):
        expected[point.name].append((point.step, bits(point.value)))
    found = read_curves(path)
    assert {
        name: list(zip(steps, map(bits, values), strict=True)) for name, (steps, values) in found.items()
    } == expected
    assert list(found) == sorted(found)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\n", b"epoch,step,a\n", b"step,epoch,a,a\n", b"step,epoch,a\n0,0\n", b"step,epoch,a\n0,0,1,2\n",
        b"step,epoch,a\n0,0,x\n", b"step,epoch,a\n,0,1\n", b"step,epoch,a\n0,0.5,1\n", b"step,epoch,a\n1,0,1\n1,0,1\n",
        b"step,epoch,a\n-1,0,1\n", b"step,epoch,a\n0,0,1.2", b'step,epoch,"a\n0,0,1\n', b"\xff\xfe", b"\0" * 99,
    ],
)  # fmt: skip
def test_damage_is_a_typed_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / CURVES_FILE
    path.write_bytes(content)
    with pytest.raises(ResultError) as caught:
        read_curves(path)
    assert caught.value.path == path and "force=true" in str(caught.value)


def test_the_file_holds_the_table(tmp_path: Path) -> None:
    points = [Point(0, 0, "train/loss", 0.5), Point(2, 1, "train/loss", 0.25)]
    write_curves(tmp_path / CURVES_FILE, iter(points))
    assert (tmp_path / CURVES_FILE).read_bytes() == table(points)
    assert read_curves(tmp_path / CURVES_FILE) == {"train/loss": ([0, 2], [0.5, 0.25])}


def test_no_file_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="No such file"):
        read_curves(tmp_path / CURVES_FILE)


class TestCurve:
    def test_the_order_and_every_bit_are_kept(self) -> None:
        """Whatever kind a number is of, and across the moments at which tensors are turned into numbers."""
        kinds = [
            float, int, bool, np.float32, lambda value: torch.tensor(value, dtype=torch.float64),
            lambda value: torch.tensor([[value]], dtype=torch.float32), lambda value: torch.tensor(int(value)),
            lambda value: torch.tensor(value, dtype=torch.bfloat16, requires_grad=True),
        ]  # fmt: skip
        curve, expected = Curve(), []
        for step in range(WAITING):
            for number, kind in enumerate(kinds):
                value = kind(step / 7)
                curve.add(step, step // 10, f"n{number}", value, 2)
                plain = value.item() if isinstance(value, torch.Tensor) else value
                expected.append(Point(step, step // 10, f"n{number}", float(plain), 2.0))
        assert curve.points() == expected == curve.points()

    def test_a_tensor_counts_as_it_was(self) -> None:
        curve, value = Curve(), torch.zeros(())
        for step in range(3):
            value += 1
            curve.add(step, 0, "a", value)
        assert [point.value for point in curve.points()] == [1.0, 2.0, 3.0]

    def test_nothing_waits_for_the_device_while_numbers_are_added(self) -> None:
        """A tensor without data stands in for one whose data are not there yet: whoever asks for them gets an error."""
        curve = Curve()
        for step in range(WAITING - 1):
            curve.add(step, 0, "train/loss", torch.zeros((), device="meta"))
        with pytest.raises((NotImplementedError, RuntimeError)):
            curve.points()

    def test_what_is_no_curve_is_left_out(self) -> None:
        curve = Curve()
        for name, value in (("step", 1.0), ("epoch", 1.0), ("a", torch.zeros(2)), ("a", "text"), ("a", None)):
            curve.add(0, 0, name, value)
        assert curve.points() == []

    def test_it_goes_on_after_a_checkpoint(self, tmp_path: Path) -> None:
        curve = Curve()
        for step in range(5):
            curve.add(step, 0, "b", torch.tensor(step / 3))
            curve.add(step, 0, "a", [math.inf, -0.0, 1 / 3, 5e-324, 1.0][step], step + 1)
        checkpoint.write(tmp_path / "c", curve.state(), {})
        other = Curve()
        other.add(9, 9, "lost", torch.ones(()))
        other.load_state(checkpoint.read(tmp_path / "c", {}))
        for each in (curve, other):
            each.add(5, 1, "a", 2.0)
        assert other.points() == curve.points() and len(other.points()) == 11
        assert table(other.points()) == table(curve.points())

    def test_an_empty_one_goes_on_too(self) -> None:
        curve = Curve()
        curve.load_state(Curve().state())
        assert curve.points() == []

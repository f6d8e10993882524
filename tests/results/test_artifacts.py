"""Curves and confusion matrix: what is kept while the method is fitted and tested, and their files."""

from __future__ import annotations

import copy
import json
import math
import struct
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from slime_bench.errors import ResultError
from slime_bench.methods.curve import WAITING, Curve
from slime_bench.metrics.iou import IouMetric
from slime_bench.results.artifacts import (
    AXES,
    Point,
    read_confusion,
    read_curves,
    read_qualitative,
    write_confusion,
    write_curves,
)
from slime_bench.trial import checkpoint

CLASSES = ["background", "wheel", "</script>"]
# Names with commas, quotes and spaces, but no control characters.
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=5)
NAMES = NAMES.filter(lambda name: name not in AXES)
POINTS = st.lists(
    st.builds(Point, st.integers(0, 6), st.integers(0, 2), NAMES, st.floats()),
    unique_by=lambda point: (point.step, point.name),
)


@pytest.mark.parametrize("read", [read_curves, read_confusion, read_qualitative])
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b'step,epoch,a\n0,0,x\n{"classes": ["a"]}'])
def test_damage_is_a_typed_error(tmp_path: Path, read: Callable[[Path], Any], content: bytes | None) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ResultError) as caught:
        read(path)
    assert caught.value.path == path and "force=true" in str(caught.value)


class TestConfusion:
    @staticmethod
    @st.composite
    def maps(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
        """(prediction, label, K): classes are often absent, some pixels are ignored, whole images as well."""
        classes = draw(st.integers(1, 5))
        shape = (draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.integers(1, 5)))
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        label, prediction = (rng.integers(0, draw(st.integers(1, classes)), shape) for _ in range(2))
        label = np.where(rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 1.0])), 255, label)
        return torch.from_numpy(prediction), torch.from_numpy(label), classes

    @staticmethod
    def counted(prediction: Tensor, label: Tensor, classes: int, batch: int = 2) -> IouMetric:
        metric = IouMetric(classes)
        for guess, truth in zip(prediction.split(batch), label.split(batch), strict=True) if len(label) else ():
            metric.update(guess, truth)
        return metric

    @settings(max_examples=60, deadline=None)
    @given(maps(), st.integers(1, 6))
    def test_against_a_plain_loop_torchmetrics_and_the_counts(
        self, batch: tuple[Tensor, Tensor, int], size: int
    ) -> None:
        prediction, label, classes = batch
        metric = self.counted(prediction, label, classes, size)
        found, counts = metric.confusion, metric.counts()
        expected = [[0] * classes for _ in range(classes)]
        for guess, truth in zip(prediction.flatten().tolist(), label.flatten().tolist(), strict=True):
            if truth != 255:
                expected[truth][guess] += 1
        assert found.tolist() == expected and found.dtype == torch.int64
        if classes > 1:  # torchmetrics has no matrix of one class
            oracle = MulticlassConfusionMatrix(classes, ignore_index=255)
            assert oracle(prediction, label).tolist() == expected
        assert found.diagonal().equal(counts.intersection.sum(0))
        assert (found.sum(0) + found.sum(1) - found.diagonal()).equal(counts.union.sum(0))

    @settings(max_examples=20, deadline=None)
    @given(maps(), st.integers(1, 5))
    def test_two_halves_make_the_whole(self, batch: tuple[Tensor, Tensor, int], cut: int) -> None:
        prediction, label, classes = batch
        whole = self.counted(prediction, label, classes)
        first, second = (
            self.counted(prediction[part], label[part], classes) for part in (slice(cut), slice(cut, None))
        )
        first.merge_state(copy.deepcopy(second))
        assert first.confusion.equal(whole.confusion)
        first.reset()
        assert first.confusion.tolist() == [[0] * classes] * classes

    def test_the_file(self, tmp_path: Path) -> None:
        path, pixels = tmp_path / "confusion.json", torch.tensor([[5, 0, 1], [0, 2**62, 0], [0, 0, 0]])
        write_confusion(path, CLASSES, pixels.numpy())
        assert json.loads(path.read_text()) == {"classes": CLASSES, "pixels": pixels.tolist()}
        classes, found = read_confusion(path)
        assert classes == CLASSES and found.dtype == np.int64 and found.tolist() == pixels.tolist()


class TestCurves:
    @staticmethod
    def bits(value: float) -> bytes:
        """All NaN are one here: a file of text has no payloads."""
        return struct.pack("<d", math.nan if math.isnan(value) else value)

    def test_by_hand(self, tmp_path: Path) -> None:
        points = [
            Point(0, 0, "train/loss", 0.1), Point(0, 0, "train/a,b", 2.0), Point(1, 0, "train/loss", 1 / 3),
            # Logged twice in a step: the weighted mean.
            Point(1, 0, "val/miou", 49.0, 2.0), Point(1, 0, "val/miou", 52.0, 1.0), Point(3, 1, "train/loss", math.nan),
        ]  # fmt: skip
        for name, order in (("one", points), ("two", reversed(points))):
            write_curves(tmp_path / name, order)
            assert (tmp_path / name).read_text().splitlines() == [
                'step,epoch,"train/a,b",train/loss,val/miou',
                "0,0,2.0,0.1,",
                "1,0,,0.3333333333333333,50.0",
                "3,1,,nan,",
            ]
        write_curves(tmp_path / "none", [])
        assert (tmp_path / "none").read_text() == "step,epoch\n" and read_curves(tmp_path / "none") == {}

    @settings(max_examples=60, deadline=None)
    @given(POINTS)
    def test_what_was_written_is_read(self, tmp_path_factory: pytest.TempPathFactory, points: list[Point]) -> None:
        path = tmp_path_factory.getbasetemp() / "round-trip.csv"
        write_curves(path, points)
        expected = defaultdict(list)
        for point in sorted(points, key=lambda point: point.step):
            expected[point.name].append((point.step, self.bits(point.value)))
        found = {
            name: list(zip(steps, map(self.bits, values), strict=True))
            for name, (steps, values) in read_curves(path).items()
        }
        assert found == expected and list(found) == sorted(found)

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
        for name, other in (("step", 1.0), ("epoch", 1.0), ("a", torch.zeros(2)), ("a", "text"), ("a", None)):
            curve.add(0, 0, name, other)  # no curves
        assert curve.points() == expected == curve.points()

    def test_a_tensor_counts_as_it_was_and_nothing_waits_for_the_device(self) -> None:
        curve, value = Curve(), torch.zeros(())
        for step in range(3):
            value += 1
            curve.add(step, 0, "a", value)
        assert [point.value for point in curve.points()] == [1.0, 2.0, 3.0]
        # A tensor without data stands in for one whose data are not there yet: whoever asks for them gets an error.
        for step in range(WAITING - 1):
            curve.add(step, 0, "train/loss", torch.zeros((), device="meta"))
        with pytest.raises((NotImplementedError, RuntimeError)):
            curve.points()

    @pytest.mark.parametrize("steps", [0, 5])
    def test_it_goes_on_after_a_checkpoint(self, tmp_path: Path, steps: int) -> None:
        curve = Curve()
        for step in range(steps):
            curve.add(step, 0, "b", torch.tensor(step / 3))
            curve.add(step, 0, "a", [math.inf, -0.0, 1 / 3, 5e-324, 1.0][step], step + 1)
        checkpoint.write(tmp_path / "c", curve.state(), {})
        other = Curve()
        other.add(9, 9, "lost", torch.ones(()))
        other.load_state(checkpoint.read(tmp_path / "c", {}))
        for each in (curve, other):
            each.add(5, 1, "a", 2.0)
        assert other.points() == curve.points() and len(other.points()) == 2 * steps + 1

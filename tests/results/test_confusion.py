"""The confusion matrix: counted beside the IoU, and its file."""

from __future__ import annotations

import copy
import json
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
from slime_bench.metrics.iou import IouMetric
from slime_bench.results.artifacts import CONFUSION_FILE, read_confusion, write_confusion

CLASSES = ["background", "wheel", "</script>"]


@st.composite
def maps(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """(prediction, label, K): classes are often absent, some pixels are ignored, whole images as well."""
    classes = draw(st.integers(1, 5))
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    label, prediction = (rng.integers(0, draw(st.integers(1, classes)), shape) for _ in range(2))
    label = np.where(rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 1.0])), 255, label)
    return torch.from_numpy(prediction), torch.from_numpy(label), classes


def counted(prediction: Tensor, label: Tensor, classes: int, batch: int = 2) -> IouMetric:
    metric = IouMetric(classes)
    for guess, truth in zip(prediction.split(batch), label.split(batch), strict=True) if len(label) else ():
        metric.update(guess, truth)
    return metric


@settings(max_examples=60, deadline=None)
@given(maps(), st.integers(1, 6))
def test_against_a_plain_loop_and_torchmetrics(batch: tuple[Tensor, Tensor, int], size: int) -> None:
    prediction, label, classes = batch
    found = counted(prediction, label, classes, size).confusion
    expected = [[0] * classes for _ in range(classes)]
    for guess, truth in zip(prediction.flatten().tolist(), label.flatten().tolist(), strict=True):
        if truth != 255:
            expected[truth][guess] += 1
    assert found.tolist() == expected and found.dtype == torch.int64
    if classes > 1:  # torchmetrics has no matrix of one class
        oracle = MulticlassConfusionMatrix(classes, ignore_index=255)
        assert oracle(prediction, label).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(maps())
def test_its_sums_are_those_of_the_stored_counts(batch: tuple[Tensor, Tensor, int]) -> None:
    metric = counted(*batch)
    found, counts = metric.confusion, metric.counts()
    assert found.diagonal().equal(counts.intersection.sum(0))
    assert (found.sum(0) + found.sum(1) - found.diagonal()).equal(counts.union.sum(0))
    assert (found.sum(1) > 0).equal(counts.present.any(0))
    assert int(found.sum()) == int((batch[1] != 255).sum())


@settings(max_examples=20, deadline=None)
@given(maps(), st.integers(1, 5))
def test_two_halves_make_the_whole(batch: tuple[Tensor, Tensor, int], cut: int) -> None:
    prediction, label, classes = batch
    whole = counted(prediction, label, classes)
    first, second = (counted(prediction[part], label[part], classes) for part in (slice(cut), slice(cut, None)))
    first.merge_state(copy.deepcopy(second))
    assert first.confusion.equal(whole.confusion)
    first.reset()
    assert first.confusion.tolist() == [[0] * classes] * classes
    assert second.confusion.equal(counted(prediction[cut:], label[cut:], classes).confusion)


def test_the_file(tmp_path: Path) -> None:
    path, pixels = tmp_path / CONFUSION_FILE, torch.tensor([[5, 0, 1], [0, 2**62, 0], [0, 0, 0]])
    write_confusion(path, CLASSES, pixels.numpy())
    assert json.loads(path.read_text()) == {"classes": CLASSES, "pixels": pixels.tolist()}
    classes, found = read_confusion(path)
    assert classes == CLASSES and found.dtype == np.int64 and found.tolist() == pixels.tolist()


@pytest.mark.parametrize(
    ("classes", "pixels"),
    [(CLASSES, np.zeros((2, 2), int)), (CLASSES, np.zeros((3, 3))), (["a", "a"], np.zeros((2, 2), int))],
)
def test_what_does_not_fit_is_not_written(tmp_path: Path, classes: list[str], pixels: Any) -> None:
    with pytest.raises(ResultError):
        write_confusion(tmp_path / CONFUSION_FILE, classes, pixels)
    assert list(tmp_path.iterdir()) == []


GOOD: dict[str, Any] = {"classes": ["a", "b"], "pixels": [[1, 2], [3, 4]]}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff", b"[]", b"[" * 99999, json.dumps(GOOD).encode()[:-1],
        *(
            json.dumps({**GOOD, **change}).encode()
            for change in [
                {"classes": ["a", "a"]}, {"classes": ["a"]}, {"classes": [1, 2]}, {"classes": 2}, {"more": 1},
                {"pixels": [[1, 2]]}, {"pixels": [[1, 2], [3]]}, {"pixels": [[1, 2], 3]}, {"pixels": None},
                {"pixels": [[1, 2], [3, -4]]}, {"pixels": [[1, 2], [3, 4.0]]}, {"pixels": [[1, 2], [3, True]]},
                {"pixels": [[1, 2], [3, 2**63]]}, {"pixels": [[1, 2], [3, float("nan")]]},
                {"classes": [], "pixels": []},
            ]
        ),
    ],
)  # fmt: skip
def test_damage_is_a_typed_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / CONFUSION_FILE
    path.write_bytes(content)
    with pytest.raises(ResultError) as caught:
        read_confusion(path)
    assert caught.value.path == path and "force=true" in str(caught.value)


def test_no_file_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="No such file"):
        read_confusion(tmp_path / CONFUSION_FILE)

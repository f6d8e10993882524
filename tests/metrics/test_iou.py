"""The three IoU conventions, against hand-worked numbers, torchmetrics and the authors' code."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.segmentation import MeanIoU

from slime_bench.errors import ConfigError, LabelError
from slime_bench.metrics import CONVENTION_RULES
from slime_bench.metrics.iou import (
    CONVENTIONS,
    IouCounts,
    IouMetric,
    concatenate,
    image_score,
    intersection_union,
    mean_iou,
    reduce_dataset,
    reduce_present_or_predicted,
    reduce_slime,
)

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "slime" / "metric.npz"


def toy() -> tuple[Tensor, Tensor]:
    """Two images of four pixels: class 2 is in image 0 only, and image 1 has one false pixel of it."""
    target = torch.tensor([[[0, 0], [1, 2]], [[0, 0], [1, 1]]])
    prediction = torch.tensor([[[0, 0], [1, 2]], [[0, 0], [2, 2]]])
    return prediction, target


@st.composite
def batches(draw: st.DrawFn, ignored: bool = True) -> tuple[Tensor, Tensor, int]:
    """(prediction, target, K): classes are often absent, and some pixels are ignored."""
    classes = draw(st.integers(2, 5))
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # A subset of the classes per batch, so that some are absent from ground truth, prediction or both.
    target = rng.choice(rng.choice(classes, draw(st.integers(1, classes)), replace=False), shape)
    prediction = rng.choice(rng.choice(classes, draw(st.integers(1, classes)), replace=False), shape)
    prediction = np.where(rng.random(shape) < 0.5, target, prediction)
    if ignored and draw(st.booleans()):
        target = np.where(rng.random(shape) < 0.3, 255, target)
    return torch.from_numpy(prediction).long(), torch.from_numpy(target).long(), classes


def same(left: Tensor, right: Tensor) -> bool:
    return torch.equal(torch.nan_to_num(left, nan=-1.0), torch.nan_to_num(right, nan=-1.0))


def equal(left: IouCounts, right: IouCounts) -> bool:
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in ("intersection", "union", "present"))


def test_counts_by_hand() -> None:
    target = torch.tensor([[[0, 0, 1, 2]], [[0, 0, 0, 1]]])
    prediction = torch.tensor([[[0, 0, 1, 2]], [[0, 0, 2, 0]]])
    counts = intersection_union(prediction, target, 3)
    # Image 0 is right; in image 1 the background has 2 of 4 pixels, class 1 is missed, class 2 has one false pixel.
    assert counts.intersection.tolist() == [[2, 1, 1], [2, 0, 0]]
    assert counts.union.tolist() == [[2, 1, 1], [4, 1, 1]]
    assert counts.present.tolist() == [[True, True, True], [True, True, False]]
    assert reduce_slime(counts).tolist() == [0.75, 0.5, 1.0]
    assert reduce_present_or_predicted(counts).tolist() == [0.75, 0.5, 0.5]
    assert reduce_dataset(counts).tolist() == [4 / 6, 0.5, 0.5]


def test_three_conventions_give_three_numbers() -> None:
    """The example that made the convention a named choice: means .750, .583 and .500 of the same predictions."""
    target = torch.tensor([[[0, 0, 0, 1, 1, 2, 2, 255]], [[0, 0, 0, 0, 0, 0, 0, 0]]])
    prediction = torch.tensor([[[0, 0, 0, 1, 1, 2, 0, 0]], [[0, 0, 0, 0, 0, 0, 1, 2]]])
    counts = intersection_union(prediction, target, 3)
    expected = {
        "slime": [0.75, 1.0, 0.5],
        "dataset": [0.75, 2 / 3, 1 / 3],
        "present_or_predicted": [0.75, 0.5, 0.25],
    }
    means = {"slime": 0.75, "dataset": 7 / 12, "present_or_predicted": 0.5}
    for name, reduce in CONVENTIONS.items():
        assert reduce(counts).tolist() == pytest.approx(expected[name]), name
        assert mean_iou(reduce(counts)) == pytest.approx(means[name]), name


def test_false_alarm_on_an_absent_class_is_free_only_in_slime() -> None:
    prediction, target = toy()
    counts = intersection_union(prediction, target, 3)
    assert reduce_slime(counts)[2] == 1.0
    assert reduce_dataset(counts)[2] == pytest.approx(1 / 3)
    assert reduce_present_or_predicted(counts)[2] == 0.5


def test_class_that_is_nowhere_is_undefined() -> None:
    prediction, target = toy()
    counts = intersection_union(prediction, target, 4)
    for reduce in CONVENTIONS.values():
        per_class = reduce(counts)
        assert per_class.isnan().nonzero().flatten().tolist() == [3]
        assert mean_iou(per_class) == pytest.approx(per_class[:3].mean().item())


def test_predicted_but_never_present_is_undefined_only_in_slime() -> None:
    target = torch.tensor([[[0, 1]]])
    counts = intersection_union(torch.tensor([[[0, 2]]]), target, 3)
    assert reduce_slime(counts).isnan().nonzero().flatten().tolist() == [2]
    assert reduce_dataset(counts).tolist() == [1.0, 0.0, 0.0]
    assert reduce_present_or_predicted(counts).tolist() == [1.0, 0.0, 0.0]


def test_mean_without_background_and_without_any_class() -> None:
    per_class = torch.tensor([0.9, float("nan"), 0.3], dtype=torch.float64)
    assert mean_iou(per_class) == pytest.approx(0.6)
    assert mean_iou(per_class, background=False) == pytest.approx(0.3)
    assert np.isnan(mean_iou(torch.full((3,), float("nan"))))


def test_image_of_nothing_but_background() -> None:
    """As in the authors' test step such an image is left out; their validation step counts it."""
    target = torch.tensor([[[0, 0]], [[0, 1]]])
    prediction = torch.tensor([[[0, 1]], [[0, 1]]])
    counts = intersection_union(prediction, target, 2)
    assert reduce_slime(counts).tolist() == [1.0, 1.0]
    assert reduce_slime(counts, keep_background_only=True).tolist() == [0.75, 1.0]
    assert image_score(counts) == 0.75


@settings(max_examples=60, deadline=None)
@given(batches(ignored=False))
def test_against_torchmetrics_mean_iou(batch: tuple[Tensor, Tensor, int]) -> None:
    prediction, target, classes = batch
    oracle = MeanIoU(num_classes=classes, per_class=True, input_format="index")
    oracle.update(prediction, target)
    ours = reduce_present_or_predicted(intersection_union(prediction, target, classes))
    assert torch.nan_to_num(ours, nan=-1.0).tolist() == pytest.approx(oracle.compute().tolist(), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(batches())
def test_against_torchmetrics_jaccard(batch: tuple[Tensor, Tensor, int]) -> None:
    prediction, target, classes = batch
    ours = reduce_dataset(intersection_union(prediction, target, classes))
    for average, expected in (("none", torch.nan_to_num(ours, nan=0.0).tolist()), ("macro", mean_iou(ours))):
        oracle = MulticlassJaccardIndex(num_classes=classes, average=average, ignore_index=255, validate_args=True)
        oracle.update(prediction, target)
        found = oracle.compute()
        if average == "macro" and bool((target == 255).all()):
            continue  # nothing is defined: torchmetrics says 0, the bench says undefined
        assert found.tolist() == pytest.approx(expected, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(batches())
def test_against_plain_loops(batch: tuple[Tensor, Tensor, int]) -> None:
    """An oracle for the counts and for `slime`, which no library has."""
    prediction, target, classes = batch
    counts = intersection_union(prediction, target, classes)
    sums: list[list[float]] = [[] for _ in range(classes)]
    for image, (guess, truth) in enumerate(zip(prediction, target, strict=True)):
        keep = truth != 255
        for index in range(classes):
            both = int(((guess == index) & (truth == index) & keep).sum())
            either = int((((guess == index) | (truth == index)) & keep).sum())
            assert (both, either) == (counts.intersection[image, index], counts.union[image, index])
            has_part = bool(((truth > 0) & keep).any())
            if has_part and bool((truth == index).any()):
                sums[index].append(both / either)
    for found, values in zip(reduce_slime(counts).tolist(), sums, strict=True):
        assert np.isnan(found) if not values else found == pytest.approx(np.mean(values), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(batches(), st.randoms(use_true_random=False))
def test_order_of_images_does_not_matter(batch: tuple[Tensor, Tensor, int], random: object) -> None:
    prediction, target, classes = batch
    order = list(range(len(target)))
    random.shuffle(order)  # type: ignore[attr-defined]
    straight = intersection_union(prediction, target, classes)
    shuffled = intersection_union(prediction[order], target[order], classes)
    for reduce in CONVENTIONS.values():
        assert same(reduce(straight), reduce(shuffled))  # to the last bit


@settings(max_examples=40, deadline=None)
@given(batches())
def test_bounds(batch: tuple[Tensor, Tensor, int]) -> None:
    counts = intersection_union(*batch)
    assert bool((counts.intersection <= counts.union).all())
    for reduce in CONVENTIONS.values():
        per_class = reduce(counts)
        assert per_class.dtype == torch.float64
        defined = per_class[~torch.isnan(per_class)]
        assert bool(((defined >= 0) & (defined <= 1)).all())
    slime, either = reduce_slime(counts, keep_background_only=True), reduce_present_or_predicted(counts)
    both = ~torch.isnan(slime)
    assert bool((slime[both] >= either[both]).all())  # false alarms on absent classes can only cost


@settings(max_examples=40, deadline=None)
@given(batches())
def test_perfect_prediction_is_one(batch: tuple[Tensor, Tensor, int]) -> None:
    _, target, classes = batch
    counts = intersection_union(torch.where(target == 255, 0, target), target, classes)
    for reduce in CONVENTIONS.values():
        per_class = reduce(counts)
        assert set(per_class[~torch.isnan(per_class)].tolist()) <= {1.0}


@settings(max_examples=40, deadline=None)
@given(batches(), st.integers(0, 2**31))
def test_ignored_pixels_do_not_matter(batch: tuple[Tensor, Tensor, int], seed: int) -> None:
    prediction, target, classes = batch
    other = torch.from_numpy(np.random.default_rng(seed).integers(0, 300, target.shape))
    changed = torch.where(target == 255, other, prediction)
    assert equal(intersection_union(prediction, target, classes), intersection_union(changed, target, classes))


def test_ignored_pixels_stay_out_of_other_images() -> None:
    """In a long batch the combined index of label 255 would lie within another image's counts."""
    target = torch.randint(0, 6, (100, 4, 4), generator=torch.Generator().manual_seed(0))
    prediction = target.clone()
    target[0, 0] = 255
    counts = intersection_union(prediction, target, 6)
    assert counts.union.sum(dim=1).tolist() == [12] + [16] * 99
    assert torch.equal(counts.intersection, counts.union)


@settings(max_examples=40, deadline=None)
@given(batches(), st.integers(1, 3))
def test_batches_do_not_matter(batch: tuple[Tensor, Tensor, int], size: int) -> None:
    prediction, target, classes = batch
    whole = intersection_union(prediction, target, classes)
    metric = IouMetric(classes, "dataset")
    parts = []
    for guess, truth in zip(prediction.split(size), target.split(size), strict=True):
        parts.append(intersection_union(guess, truth, classes))
        metric.update(guess, truth)
    assert equal(concatenate(parts), whole)
    assert equal(metric.counts(), whole)
    assert same(metric.compute(), reduce_dataset(whole))


def test_metric_resets_and_starts_empty() -> None:
    prediction, target = toy()
    metric = IouMetric(3)
    assert metric.counts().num_images == 0
    metric.update(prediction, target)
    assert metric.counts().num_images == 2
    assert same(metric.compute(), reduce_slime(intersection_union(prediction, target, 3)))
    metric.reset()
    assert reduce_slime(metric.counts()).isnan().all()


def test_small_integer_types_do_not_overflow() -> None:
    target = torch.arange(20, dtype=torch.uint8).reshape(4, 1, 5)
    counts = intersection_union(target, target, 20)
    assert int(counts.intersection.sum()) == 20
    assert counts.intersection.dtype == torch.int64


@pytest.mark.parametrize(
    ("prediction", "target", "words"),
    [
        ([[[0, 3]]], [[[0, 1]]], ["prediction", "[3]", "0..2"]),
        ([[[0, 1]]], [[[0, 77]]], ["ground truth", "[77]", "0..2", "255"]),
        ([[[0, -1]]], [[[0, 1]]], ["prediction", "[-1]"]),
        ([[[0, 255]]], [[[0, 1]]], ["prediction", "[255]"]),
        ([[[0, 1]]], [[[0], [1]]], ["shape"]),
        ([[0, 1]], [[0, 1]], ["[B,H,W]"]),
        ([[[0.0, 1.0]]], [[[0, 1]]], ["float32"]),
    ],
)
def test_bad_maps_are_named(prediction: list, target: list, words: list[str]) -> None:
    with pytest.raises(LabelError) as caught:
        intersection_union(torch.tensor(prediction), torch.tensor(target), 3)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_bad_joins_and_names() -> None:
    prediction, target = toy()
    with pytest.raises(LabelError):
        concatenate([])
    with pytest.raises(LabelError, match="class counts"):
        concatenate([intersection_union(prediction, target, number) for number in (3, 4)])
    with pytest.raises(LabelError):
        IouCounts(torch.zeros(2, 3), torch.zeros(2, 2), torch.zeros(2, 3))
    with pytest.raises(ConfigError, match=r"metric\.convention=slime"):
        IouMetric(3, "slim")
    assert list(CONVENTIONS) == list(CONVENTION_RULES)


def test_parity_with_the_authors_metric() -> None:
    """20 label maps through the authors' own test and validation steps (float32, 1e-7 in the denominator)."""
    if not GOLDEN.is_file():
        reason = "the golden numbers of the authors' code (shared/golden/slime/metric.npz) are not beside the checkout"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    golden = np.load(GOLDEN)
    prediction, target = (torch.from_numpy(golden[name].astype(np.int64)) for name in ("predictions", "masks"))
    counts = intersection_union(prediction, target, 6)
    test, validation = reduce_slime(counts), reduce_slime(counts, keep_background_only=True)
    np.testing.assert_allclose(test, golden["test_iou_epoch"], atol=1e-6)
    np.testing.assert_allclose(validation, golden["val_iou_epoch"], atol=1e-6)
    np.testing.assert_allclose(image_score(counts), golden["val_mean_iou_epoch"][0], atol=1e-6)
    means = [mean_iou(test), mean_iou(test, background=False)]
    np.testing.assert_allclose(means, golden["derived_mean_over_parts"], atol=1e-6)
    iou = (counts.intersection / counts.union).numpy()
    logged = golden["val_iou_per_image"]
    np.testing.assert_array_equal(counts.present.numpy(), ~np.isnan(logged))
    np.testing.assert_allclose(iou[counts.present.numpy()], logged[~np.isnan(logged)], atol=1e-6)

"""The bootstrap over images: against the metric itself on resampled images, scipy's own bootstrap and tests, and
simulated truth."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from slime_bench.errors import ConfigError
from slime_bench.metrics import CONVENTION_RULES
from slime_bench.metrics.bootstrap import (
    Bounds,
    bounds,
    image_weights,
    nan_mean,
    p_value,
    paired_difference,
    resampled,
)
from slime_bench.metrics.iou import IouCounts, mean_iou, reduction
from slime_bench.metrics.ratio import ratio_terms
from tests.fixtures.interval_coverage import coverage

Counts = tuple[np.ndarray, np.ndarray, np.ndarray]


def some_counts(images: int, classes: int, seed: int = 0) -> Counts:
    """Counts in which classes are absent, missed, or predicted where they are not; the first image is background."""
    rng = np.random.default_rng(seed)
    union = rng.integers(1, 50, (images, classes))
    present = rng.random((images, classes)) < 0.6
    predicted = present | (rng.random((images, classes)) < 0.3)
    present[:, 0] = True
    present[0, 1:] = False  # nothing but background
    union = np.where(predicted | present, union, 0)
    intersection = np.where(present, rng.integers(0, union + 1), 0)
    return intersection, union, present


@st.composite
def counts(draw: st.DrawFn) -> Counts:
    images, classes = draw(st.integers(1, 12)), draw(st.integers(2, 5))
    return some_counts(images, classes, draw(st.integers(0, 2**32 - 1)))


def metric(some: Counts, convention: str, background: bool) -> list[float]:
    """The table's own metric: classes and their average, in percent."""
    per_class = reduction(convention)(IouCounts(*(torch.from_numpy(np.ascontiguousarray(each)) for each in some)))
    return [*(100 * per_class).tolist(), 100 * mean_iou(per_class, background)]


# ------------------------------------------------------------------------------------------------ resampling


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("convention", CONVENTION_RULES)
@settings(max_examples=25, deadline=None)
@given(some=counts(), seed=st.integers(0, 1000))
def test_a_resample_is_the_metric_of_the_images_drawn(
    convention: str, background: bool, some: Counts, seed: int
) -> None:
    """Brute force: every image repeated as often as it was drawn, then the metric of the tables."""
    weights = image_weights(len(some[0]), 4, seed)
    found = resampled(*ratio_terms(*some, convention), weights, background)
    for row, times in zip(found, weights.astype(int), strict=True):
        drawn = tuple(np.repeat(each, times, axis=0) for each in some)
        np.testing.assert_allclose(row, metric(drawn, convention, background), rtol=1e-12, atol=1e-10)  # type: ignore[arg-type]


def test_every_convention_of_the_metric_is_a_ratio() -> None:
    for convention in CONVENTION_RULES:
        assert reduction(convention)
    with pytest.raises(ConfigError, match="convention"):
        ratio_terms(*some_counts(3, 3), "mean")


@given(images=st.integers(1, 40), resamples=st.integers(1, 20), seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_weights_are_draws_with_replacement(images: int, resamples: int, seed: int) -> None:
    weights = image_weights(images, resamples, seed)
    assert weights.shape == (resamples, images) and (weights >= 0).all()
    assert (weights.sum(axis=1) == images).all()
    np.testing.assert_array_equal(weights, image_weights(images, resamples, seed))


def test_weights_have_the_moments_of_a_multinomial() -> None:
    images, resamples = 10, 20_000
    weights = image_weights(images, resamples, 0)
    assert not np.array_equal(weights, image_weights(images, resamples, 1))
    covariance = np.cov(weights.T)
    expected = np.full((images, images), -1 / images) + np.eye(images)
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.03)
    np.testing.assert_allclose(covariance, expected, atol=0.05)


@given(some=counts(), factor=st.integers(2, 9))
@settings(max_examples=25, deadline=None)
def test_larger_pictures_of_the_same_things_change_nothing(some: Counts, factor: int) -> None:
    weights = image_weights(len(some[0]), 5, 0)
    larger = (some[0] * factor, some[1] * factor, some[2])
    for convention in CONVENTION_RULES:
        left, right = (resampled(*ratio_terms(*each, convention), weights) for each in (some, larger))
        np.testing.assert_allclose(left, right, rtol=1e-12)


# ------------------------------------------------------------------------------------------------ intervals


def test_the_interval_is_scipys() -> None:
    """Our ends from scipy's distribution, and our distribution against scipy's."""
    some = some_counts(40, 4, seed=3)
    terms = ratio_terms(*some, "slime")

    def statistic(indices: np.ndarray, axis: int = -1) -> np.ndarray:
        weights = np.apply_along_axis(lambda row: np.bincount(row, minlength=40), axis, indices).astype(float)
        return resampled(*terms, np.atleast_2d(weights))[:, -1].reshape(indices.shape[:-1])

    theirs = scipy.stats.bootstrap(
        (np.arange(40),),
        statistic,
        n_resamples=3000,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = theirs.confidence_interval
    assert bounds(theirs.bootstrap_distribution) == Bounds(pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))
    ours = resampled(*terms, image_weights(40, 3000, 0))[:, -1]
    assert scipy.stats.ks_2samp(ours, theirs.bootstrap_distribution).pvalue > 0.01
    found = bounds(ours)
    assert found is not None
    assert (found.low, found.high) == (
        pytest.approx(low, abs=0.1 * (high - low)),
        pytest.approx(high, abs=0.1 * (high - low)),
    )


def test_undefined_draws_are_left_out() -> None:
    drawn = np.array([np.nan, 1.0, 2.0, 3.0, np.nan])
    assert bounds(drawn) == Bounds(1.05, 2.95)
    assert bounds(np.full(4, np.nan)) is None and p_value(np.full(4, np.nan)) is None
    assert p_value(drawn) == 2 / 4


@pytest.mark.parametrize("convention", ["slime", "dataset"])
@pytest.mark.parametrize("images", [20, 60])
def test_coverage_of_the_truth(images: int, convention: str) -> None:
    """Of 200 test sets, the true average lies in all but a few intervals: the numbers of docs/statistics.md."""
    share, _ = coverage(images, repetitions=200, resamples=300, convention=convention, seed=1)
    # What a coverage between 88 and 96 % gives in 999 of 1000 such tests.
    low, high = scipy.stats.binom.ppf(0.0005, 200, 0.88), scipy.stats.binom.ppf(0.9995, 200, 0.96)
    assert low <= 200 * share <= high


# ------------------------------------------------------------------------------------------------ differences


def drawn_pair(shift: float, images: int = 150, noise: float = 20.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per-image scores of two methods that differ by `shift`, and the differences."""
    rng = np.random.default_rng(5)
    shared = rng.uniform(20, 80, images)
    a, b = shared + shift + rng.normal(0, noise, images), shared + rng.normal(0, noise, images)
    return a, b, a - b


@pytest.mark.parametrize("shift", [0.0, 3.0, 6.0])
def test_p_is_near_that_of_a_permutation_test(shift: float) -> None:
    a, b, difference = drawn_pair(shift)
    weights = image_weights(len(a), 5000, 0) / len(a)
    found = paired_difference(a[None].mean(1), b[None].mean(1), (weights @ a)[None], (weights @ b)[None])
    oracle = scipy.stats.permutation_test(
        (difference,), np.mean, permutation_type="samples", n_resamples=5000, rng=np.random.default_rng(1)
    )
    assert found.p == pytest.approx(oracle.pvalue, abs=0.03)
    assert found.mean == pytest.approx(difference.mean())
    assert found.bounds is not None
    assert (found.p < 0.05) == (found.bounds.low > 0 or found.bounds.high < 0)


@settings(max_examples=30, deadline=None)
@given(
    points=hnp.arrays(float, (3,), elements=st.floats(0, 100)),
    drawn=hnp.arrays(float, (3, 20), elements=st.floats(0, 100)),
)
def test_a_row_and_itself(points: np.ndarray, drawn: np.ndarray) -> None:
    found = paired_difference(points, points, drawn, drawn.copy())
    assert (found.mean, found.std, found.bounds, found.p, found.agree) == (0.0, 0.0, Bounds(0.0, 0.0), 1.0, 3)


@settings(max_examples=30, deadline=None)
@given(
    points=hnp.arrays(float, (2, 3), elements=st.floats(0, 100)),
    drawn=hnp.arrays(float, (2, 3, 20), elements=st.floats(0, 100)),
)
def test_the_other_way_round(points: np.ndarray, drawn: np.ndarray) -> None:
    one = paired_difference(points[0], points[1], drawn[0], drawn[1])
    two = paired_difference(points[1], points[0], drawn[1], drawn[0])
    assert one.mean is not None and one.bounds is not None and two.bounds is not None
    assert (two.mean, two.p, two.agree) == (-one.mean, one.p, one.agree)
    assert (two.bounds.low, two.bounds.high) == pytest.approx((-one.bounds.high, -one.bounds.low), abs=2e-6)


def test_a_difference_by_hand() -> None:
    a, b = np.array([50.0, 54.0, np.nan]), np.array([48.0, 55.0, 10.0])
    drawn_a = np.array([[50.0, 51, 52, 53], [54, 54, 54, 54], [np.nan] * 4])
    drawn_b = np.array([[48.0, 48, 48, 56], [55, 55, 55, 55], [10] * 4])
    found = paired_difference(a, b, drawn_a, drawn_b)
    assert found.mean == 0.5 and found.std == pytest.approx(3 / np.sqrt(2)) and found.agree == 1
    # Differences of the draws: 0.5, 1, 1.5 and -2; one of four is at or below 0.
    assert found.p == 2 * (1 + 1) / (4 + 1)
    assert paired_difference(a[2:], b[2:], drawn_a[2:], drawn_b[2:]).mean is None


def test_one_seed_has_no_deviation() -> None:
    assert paired_difference(np.array([3.0]), np.array([1.0]), np.array([[2.0]]), np.array([[1.0]])).std is None


@settings(max_examples=30, deadline=None)
@given(values=hnp.arrays(float, (3, 4), elements=st.one_of(st.just(np.nan), st.floats(-100, 100))))
def test_mean_of_what_is_defined(values: np.ndarray) -> None:
    found = nan_mean(values, axis=0)
    for column, mean in zip(values.T, found, strict=True):
        defined = column[~np.isnan(column)]
        assert np.isnan(mean) if not len(defined) else mean == pytest.approx(defined.mean(), abs=1e-12)

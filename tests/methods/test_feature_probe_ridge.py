"""Ridge regression and retrieval of the probe against scikit-learn's, and the labels of cells by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestNeighbors

from slime_bench.methods.feature_probe import ridge
from slime_bench.methods.feature_probe.ridge import Moments, Rows

SEEDS = st.integers(0, 2**31 - 1)


def rows(seed: int, count: int, width: int, classes: int = 3) -> Rows:
    """Features of very different scales, one of them constant; soft labels; weights, some of them 0."""
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(count, width)) * 10.0 ** draw.integers(-2, 3, width) + draw.normal(size=width)
    features[:, 0] = 2.5
    weights = draw.uniform(0.5, 2.0, count) * (draw.random(count) < 0.9)
    weights[0] = 1.0
    targets = draw.dirichlet(np.ones(classes), count)
    return Rows(*(torch.from_numpy(each) for each in (features, targets, weights)))


def oracle(data: Rows, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's weighted ridge on features standardised by weighted mean and deviation, as one linear map."""
    x, y, d = (each.numpy() for each in data)
    mean = np.average(x, axis=0, weights=d)
    deviation = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=d))
    deviation[deviation < 1e-6] = 1.0
    model = Ridge(alpha=strength * d.sum(), solver="cholesky").fit((x - mean) / deviation, y, sample_weight=d)
    weight = model.coef_.T / deviation[:, None]
    return weight, model.intercept_ - mean @ weight


@settings(max_examples=25)
@given(SEEDS, st.integers(12, 60), st.integers(2, 10), st.sampled_from([0.01, 0.1, 1.0]), st.integers(1, 3))
def test_ridge_is_scikit_learns(seed: int, count: int, width: int, strength: float, images: int) -> None:
    """By the sums of any number of images, and by the dual system."""
    data = rows(seed, count, width)
    weight, bias = oracle(data, strength)
    parts = [Rows(*each) for each in zip(*(value.tensor_split(images) for value in data), strict=True)]
    sums = Moments.total([Moments.of(each) for each in parts])
    for model in (ridge.ridge(sums, strength), ridge.ridge_dual(data, strength)):
        found = data.features.numpy() @ model.weight.double().numpy() + model.bias.double().numpy()
        # Both solve in float64; what is kept is float32, of products of features up to some hundreds.
        assert found == pytest.approx(data.features.numpy() @ weight + bias, abs=2e-4)


def test_an_image_can_be_taken_out_of_the_sums() -> None:
    parts = [rows(seed, 20, 5) for seed in range(3)]
    sums = [Moments.of(each) for each in parts]
    without = Moments.total(sums).without(sums[1])
    want = Moments.total([sums[0], sums[2]])
    for one, other in zip(without, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@settings(max_examples=15)
@given(SEEDS, st.integers(1, 30), st.integers(1, 8))
def test_retrieval_is_scikit_learns(seed: int, size: int, neighbours: int) -> None:
    draw = np.random.default_rng(seed)
    bank, queries = (draw.normal(size=(n, 6)) for n in (size, 7))
    bank, queries = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (bank, queries))
    targets = draw.dirichlet(np.ones(3), size)
    near = NearestNeighbors(n_neighbors=min(neighbours, size), metric="cosine", algorithm="brute").fit(bank)
    distances, places = near.kneighbors(queries)
    weights = np.exp((1 - distances) / 0.1)
    weights /= weights.sum(1, keepdims=True)
    want = (weights[..., None] * targets[places]).sum(1)
    found = ridge.retrieve(*(torch.from_numpy(each) for each in (queries, bank, targets)), neighbours, 0.1)
    assert found.numpy() == pytest.approx(want, abs=1e-9)


def test_labels_of_cells_by_hand() -> None:
    label = torch.tensor([[[0, 1, 2, 2], [1, 1, 255, 2], [255, 255, 0, 0], [255, 255, 0, 0]]])
    shares, labelled = ridge.cell_labels(label, 3, (2, 2))
    assert labelled[0].tolist() == [[1.0, 0.75], [0.0, 1.0]]
    assert shares[0, :, 0, 0].tolist() == [0.25, 0.75, 0.0]
    assert shares[0, :, 0, 1].tolist() == [0.0, 0.0, 1.0]
    assert shares[0, :, 1, 0].tolist() == [0.0, 0.0, 0.0]


@given(SEEDS, st.floats(0, 1))
def test_the_tilt_keeps_the_sum_of_a_row_and_lifts_the_rare(seed: int, exponent: float) -> None:
    shares = torch.from_numpy(np.random.default_rng(seed).dirichlet([9.0, 1.0, 0.3], 40))
    shares = torch.cat([shares, torch.zeros(40, 1, dtype=torch.float64)], dim=1)  # a class that is absent
    totals = shares.sum(0)
    found = ridge.tilted(shares, totals, exponent)
    torch.testing.assert_close(found.sum(1), shares.sum(1))
    assert float(found[:, 3].abs().max()) == 0
    rare, common = int(totals[:3].argmin()), int(totals[:3].argmax())
    assert bool((found[:, rare] >= shares[:, rare] - 1e-12).all()) and bool(
        (found[:, common] <= shares[:, common] + 1e-12).all()
    )
    assert torch.equal(ridge.tilted(shares, totals, 0.0), shares) or exponent > 0 or torch.allclose(found, shares)


def test_scores_on_each_layers_own_grid_are_those_of_the_hypercolumns() -> None:
    draw = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 5, 4, 4, generator=draw), torch.randn(2, 3, 8, 8, generator=draw)]
    model = ridge.Linear(torch.randn(8, 4, generator=draw), torch.randn(4, generator=draw))
    columns = torch.cat([ridge.resized(each, (8, 8)) for each in maps], dim=1)
    want = torch.einsum("bchw,ck->bkhw", columns, model.weight) + model.bias[None, :, None, None]
    torch.testing.assert_close(ridge.apply(model, maps, (8, 8)), want, rtol=0, atol=1e-5)


def test_descriptors_do_not_see_what_a_whole_image_has_in_common() -> None:
    draw = torch.Generator().manual_seed(1)
    maps = [torch.randn(1, 5, 4, 4, generator=draw), torch.randn(1, 3, 8, 8, generator=draw)]
    found = ridge.descriptors(maps, (8, 8))
    assert found.shape == (1, 64, 8)
    torch.testing.assert_close(found.norm(dim=2), torch.ones(1, 64))
    shifted = ridge.descriptors([each + 3.0 for each in maps], (8, 8))
    torch.testing.assert_close(shifted, found, rtol=0, atol=1e-4)

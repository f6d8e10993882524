"""Maps of queries and keys against sums written out in float64, and what must hold for any input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_bench.attention.capture import LayerAttention
from slime_bench.attention.maps import (
    class_logits,
    class_probabilities,
    grid_size,
    was,
)
from slime_bench.errors import BackboneError

H, D, GRID = 3, 8, (4, 5)
N = GRID[0] * GRID[1]


def layer(seed: int, batch: int = 2, keys: int = N, width: int = D, gain: float = 2.0) -> LayerAttention:
    draw = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(batch, H, n, width, generator=draw, dtype=torch.float64) * gain for n in (N, keys))
    return LayerAttention(query, key, width**-0.5)


def dense_was(layers: list[LayerAttention], maps: torch.Tensor) -> torch.Tensor:
    """Equation 6 with the N x N matrix written out: sum over p of A(q, p) R_k(p)."""
    matrix = torch.stack([(x.query @ x.key.transpose(-1, -2) * x.scale).softmax(-1).mean(1) for x in layers]).mean(0)
    result = torch.zeros_like(maps)
    for image in range(len(maps)):
        for k in range(maps.shape[1]):
            result[image, k] = (matrix[image] * maps[image, k].flatten()[None, :]).sum(1).view(GRID)
    return result


@pytest.mark.parametrize("classes", [1, 6, D, 12])  # fewer than, as many as, and more than a head is wide
def test_was_is_the_dense_sum(classes: int) -> None:
    layers = [layer(1), layer(2)]
    maps = torch.rand(2, classes, *GRID, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(was(layers, maps), dense_was(layers, maps), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("classes", [3, 12])
def test_gradients_of_was_are_those_of_the_dense_sum(classes: int) -> None:
    found, wanted = [], []
    for function, results in ((was, found), (dense_was, wanted)):
        one = layer(4)
        leaves = [one.query.requires_grad_(), one.key.requires_grad_()]
        leaves.append(torch.rand(2, classes, *GRID, dtype=torch.float64, generator=torch.Generator().manual_seed(5)))
        leaves[2].requires_grad_()
        output = function([one], leaves[2])
        weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output)
        results += list(torch.autograd.grad((output * weights).sum(), leaves))
    for ours, theirs in zip(found, wanted, strict=True):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), gain=st.floats(0, 20), low=st.floats(-5, 5), span=st.floats(0, 10))
def test_was_stays_between_the_extremes_of_its_map(seed: int, gain: float, low: float, span: float) -> None:
    maps = low + span * torch.rand(1, 4, *GRID, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    result = was([layer(seed, batch=1, gain=gain), layer(seed + 1, batch=1, gain=gain)], maps)
    assert (result >= maps.amin((2, 3), keepdim=True) - 1e-9).all()
    assert (result <= maps.amax((2, 3), keepdim=True) + 1e-9).all()


def test_class_logits_are_the_mean_over_heads_of_the_scaled_products() -> None:
    one, expected = layer(6, keys=11), torch.zeros(2, 4, *GRID, dtype=torch.float64)
    for image in range(2):
        for k in range(4):
            for n in range(N):
                products = [float(one.query[image, h, n] @ one.key[image, h, k]) * one.scale for h in range(H)]
                expected[image, k, n // GRID[1], n % GRID[1]] = sum(products) / H
    torch.testing.assert_close(class_logits(one, 4, GRID), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("over_all", [True, False])
def test_class_probabilities_by_hand(over_all: bool) -> None:
    one, expected = layer(7, keys=11), torch.zeros(2, 4, *GRID, dtype=torch.float64)
    for image in range(2):
        for n in range(N):
            per_head = []
            for h in range(H):
                tokens = range(11 if over_all else 4)
                powers = [math.exp(float(one.query[image, h, n] @ one.key[image, h, t]) * one.scale) for t in tokens]
                per_head.append([powers[k] / sum(powers) for k in range(4)])
            for k in range(4):
                expected[image, k, n // GRID[1], n % GRID[1]] = sum(head[k] for head in per_head) / H
    found = class_probabilities(one, 4, GRID, over_all)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    total = found.sum(1)
    if over_all:
        assert (total < 1).all()
    else:
        torch.testing.assert_close(total, torch.ones_like(total))


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 130), width=st.integers(1, 130), halvings=st.integers(0, 4))
def test_grid_size_of_any_latent(height: int, width: int, halvings: int) -> None:
    expected = -(-height // 2**halvings), -(-width // 2**halvings)
    assert grid_size(expected[0] * expected[1], (height, width)) == expected


@pytest.mark.parametrize("size", [(16, 16), (5, 5), (9, 14)])
@torch.no_grad()
def test_grid_size_agrees_with_the_model(tiny_backbone: object, size: tuple[int, int]) -> None:
    found = tiny_backbone.attention(  # type: ignore[attr-defined]
        torch.randn(1, 4, *size), torch.tensor([10]), torch.zeros(1, 77, 32), with_noise=False
    )
    quarter, half = ((-(-size[0] // n), -(-size[1] // n)) for n in (4, 2))
    assert found.cross_grids == [quarter, quarter, half, half] and found.self_grids == [size, size]
    for one, grid in zip([*found.cross, *found.self_], [*found.cross_grids, *found.self_grids], strict=True):
        assert one.query.shape[2] == grid[0] * grid[1]


def test_positions_that_form_no_grid_are_refused() -> None:
    with pytest.raises(BackboneError, match="63 positions"):
        grid_size(63, (16, 16))

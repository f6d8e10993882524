"""Maps of queries and keys against sums written out in float64, and what must hold for any input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_bench.attention.capture import LayerAttention
from slime_bench.attention.maps import (
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


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), gain=st.floats(0, 20), low=st.floats(-5, 5), span=st.floats(0, 10))
def test_was_stays_between_the_extremes_of_its_map(seed: int, gain: float, low: float, span: float) -> None:
    maps = low + span * torch.rand(1, 4, *GRID, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    result = was([layer(seed, batch=1, gain=gain), layer(seed + 1, batch=1, gain=gain)], maps)
    assert (result >= maps.amin((2, 3), keepdim=True) - 1e-9).all()
    assert (result <= maps.amax((2, 3), keepdim=True) + 1e-9).all()


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

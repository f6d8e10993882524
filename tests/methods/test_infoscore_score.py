"""InfoScore against two passes over all images in numpy, and what must hold for any stream of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_bench.attention.image_text import class_maps
from slime_bench.errors import BackboneError, ConfigError, DataError
from slime_bench.methods.infoscore.score import InfoScoreMetric, Ranking, entropy, info_marginal, pixel_shares
from tests.fixtures import oracle_infoscore as oracle

LAYERS = ("layer.0", "layer.1", "layer.2")
L, C, GRID, SIZE = len(LAYERS), 5, (3, 4), (9, 14)

seeds = st.integers(0, 2**31 - 1)
PARTS = ("mean_image_entropy", "dataset_entropy", "entropy_ratio", "cov", "score")


def marginals(seed: int, images: int, columns: int = C) -> torch.Tensor:
    """float32 [images,L,columns], each a distribution of its own sharpness."""
    draw = torch.Generator().manual_seed(seed)
    sharpness = torch.tensor([0.5, 2.0, 5.0])[:, None]
    return (torch.randn(images, L, columns, generator=draw) * sharpness).softmax(-1).clamp(min=1e-6)


def ranked(*batches: torch.Tensor) -> Ranking:
    metric = InfoScoreMetric(LAYERS, batches[0].shape[-1])
    for batch in batches:
        metric.update(batch)
    return metric.compute()


def assert_same(one: Ranking, other: Ranking, rel: float = 1e-12) -> None:
    assert one.layers == other.layers and one.images == other.images
    for part in PARTS:
        assert getattr(one, part) == pytest.approx(getattr(other, part), rel=rel, abs=1e-7), part


@given(seeds, st.integers(2, 40), st.integers(2, 9), st.data())
@settings(max_examples=40, deadline=None)
def test_streamed_is_the_plain_way(seed: int, images: int, columns: int, data: st.DataObject) -> None:
    """Whatever the batches and the order of images and columns."""
    every = marginals(seed, images, columns)
    want, size = oracle.infoscore(every.numpy()), data.draw(st.integers(1, images))
    order, places = data.draw(st.permutations(range(images))), data.draw(st.permutations(range(columns)))
    found = ranked(*every[order][..., places].split(size))
    assert found.images == images
    wanted = (want.mean_image_entropy, want.dataset_entropy, want.ratio, want.cov, want.score)
    for part, values in zip(PARTS, wanted, strict=True):
        assert getattr(found, part) == pytest.approx(values.tolist(), rel=1e-10, abs=1e-7), part
    assert found.order() == tuple(LAYERS[place] for place in want.ranking)
    assert min(found.entropy_ratio) >= 1 - 1e-12  # entropy is concave


def test_processes_are_added_up() -> None:
    """As in a run on several devices: the states of all processes come together when the score is asked for."""
    every = marginals(3, 11)
    other = InfoScoreMetric(LAYERS, C)
    other.update(every[4:])
    states = iter([other.images, other.entropies, other.total, other.squares])
    here = InfoScoreMetric(
        LAYERS,
        C,
        dist_sync_fn=lambda state, group: [state, next(states)],
        distributed_available_fn=lambda: True,
    )
    here.update(every[:4])
    assert_same(here.compute(), ranked(every))
    assert float(here.images) == 4  # its own stream goes on


def test_moments_are_those_of_the_population() -> None:
    every = marginals(8, 9)
    metric = InfoScoreMetric(LAYERS, C)
    metric.update(every)
    mean, std = metric.moments()
    assert mean.dtype == std.dtype == torch.float64
    assert mean.numpy() == pytest.approx(every.double().numpy().mean(0), rel=1e-13)
    assert std.numpy() == pytest.approx(every.double().numpy().std(0), rel=1e-9)


def test_small_differences_over_many_images_are_not_lost() -> None:
    """A column near 1 and one near the floor, each varying by a 1e-5th, ten thousand images: in float32 noise."""
    draw = torch.Generator().manual_seed(0)
    every = torch.tensor([0.99, 1e-6], dtype=torch.float64) * (
        1 + 1e-5 * torch.randn(10_000, 1, 2, generator=draw, dtype=torch.float64)
    )
    metric = InfoScoreMetric(["only"], 2)
    for batch in every.split(64):
        metric.update(batch)
    assert metric.moments()[1].numpy()[0] == pytest.approx(every.numpy().std(0)[0], rel=1e-4)


def test_equal_images_have_no_variation() -> None:
    found = ranked(marginals(1, 1).repeat(50, 1, 1))
    assert max(found.cov) < 1e-5 and found.entropy_ratio == pytest.approx((1.0,) * L)


def test_memory_does_not_grow() -> None:
    metric = InfoScoreMetric(LAYERS, C)

    def size() -> int:
        return sum(state.numel() * state.element_size() for state in metric.metric_state.values())

    before = size()
    for seed in range(20):
        metric.update(marginals(seed, 5))
    assert size() == before == 8 * (1 + L + 2 * L * C)


def test_precision_of_the_model_does_not_reach_the_sums() -> None:
    metric = InfoScoreMetric(LAYERS, C)
    torch.nn.ModuleDict({"ranking": metric}).half()
    metric.update(marginals(0, 4).requires_grad_())
    assert all(state.dtype == torch.float64 for state in metric.metric_state.values())
    assert not metric.total.requires_grad
    assert_same(metric.compute(), ranked(marginals(0, 4)))


@given(seeds)
@settings(max_examples=15, deadline=None)
def test_marginal_is_the_plain_way(seed: int) -> None:
    maps = torch.rand(3, C, GRID[0] * GRID[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 9
    found, shares = info_marginal(maps, GRID, SIZE), pixel_shares(maps, GRID, SIZE)
    for image in range(len(maps)):
        assert shares[image].numpy() == pytest.approx(oracle.shares(maps[image].numpy(), GRID, SIZE), abs=1e-12)
        assert found[image].numpy() == pytest.approx(oracle.marginal(maps[image].numpy(), GRID, SIZE), abs=1e-12)
        torch.testing.assert_close(info_marginal(maps[image : image + 1], GRID, SIZE)[0], found[image])
    before = maps.clone()
    pixel_shares(maps, GRID, GRID)  # nothing to enlarge
    assert torch.equal(maps, before)
    assert float(found.min()) >= 1e-6 and float(found.max()) <= 1


def test_marginal_of_empty_maps_is_the_floor() -> None:
    found = info_marginal(torch.zeros(2, C, 12), GRID, SIZE)
    assert found.numpy() == pytest.approx(np.full((2, C), 1e-6), rel=1e-5)
    assert info_marginal(torch.zeros(0, C, 12), GRID, SIZE).shape == (0, C)


def test_entropy() -> None:
    assert float(entropy(torch.full((7,), 1 / 7, dtype=torch.float64))) == pytest.approx(np.log(7))
    assert entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]])).tolist() == pytest.approx([0.0, np.log(2)])
    for row in marginals(0, 4).flatten(0, 1):
        assert float(entropy(row.double())) == pytest.approx(oracle.entropy(row.double().numpy()), rel=1e-12)


def test_over_classes_by_the_same_functions() -> None:
    maps = torch.rand(6, L, C, 12, generator=torch.Generator().manual_seed(2)) ** 5
    spans = [(0, 3), (3, 5)]
    every = torch.stack([info_marginal(class_maps(maps[:, i], spans), GRID, SIZE) for i in range(L)], 1)
    want = oracle.infoscore(
        np.array([[oracle.marginal(oracle.class_map(m.numpy(), spans), GRID, SIZE) for m in image] for image in maps])
    )
    assert ranked(every).score == pytest.approx(want.score.tolist(), rel=1e-4)


def ranking(*score: float) -> Ranking:
    layers = tuple(f"layer.{index}" for index in range(len(score)))
    return Ranking(layers, score, score, score, score, score, images=9)


def test_order_is_best_first_and_ties_in_running_order() -> None:
    found = ranking(1.0, 3.0, 2.0, 3.0, 1.0)
    assert found.order() == ("layer.1", "layer.3", "layer.2", "layer.0", "layer.4")
    assert found.top(2) == ("layer.1", "layer.3") and found.top(5) == found.order()


@pytest.mark.parametrize("k", [0, -1, 6])
def test_top_of_too_many_or_none(k: int) -> None:
    with pytest.raises(ConfigError, match=r"1\.\.5"):
        ranking(1.0, 3.0, 2.0, 3.0, 1.0).top(k)


@pytest.mark.parametrize(("layers", "columns"), [([], 3), (["a", "a"], 3), (["a"], 1), (["a"], 0)])
def test_nothing_to_rank(layers: list[str], columns: int) -> None:
    with pytest.raises(ConfigError):
        InfoScoreMetric(layers, columns)


@pytest.mark.parametrize("shape", [(2, L, C + 1), (2, L + 1, C), (L, C), (2, C, L)])
def test_marginals_of_something_else(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="marginals"):
        InfoScoreMetric(LAYERS, C).update(torch.rand(shape))


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("images", [0, 1])
def test_one_image_is_not_enough(images: int) -> None:
    with pytest.raises(DataError, match="several images") as caught:
        ranked(marginals(0, images))
    assert caught.value.found == f"{images} image(s)"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_layer_that_is_not_finite_is_named(value: float) -> None:
    every = marginals(0, 5)
    every[3, 1, 2] = value
    with pytest.raises(BackboneError, match=r"layer\.1") as caught:
        ranked(every)
    assert caught.value.path == "layer.1"

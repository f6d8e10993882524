"""The numbers of the ranking experiment: selections of layers, ranks, rho, bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slime_bench.methods.infoscore.layer_study import (
    correlation,
    draws,
    percent,
    ranks,
    resampled_miou,
    resampled_scores,
    selections,
    study,
)
from slime_bench.methods.infoscore.score import InfoScoreMetric, Ranking
from slime_bench.metrics import CONVENTION_RULES
from slime_bench.metrics.iou import IouCounts

LAYERS = ("a", "b", "c", "d", "e")


def ranking(score: tuple[float, ...]) -> Ranking:
    zeros = (0.0,) * len(score)
    return Ranking(LAYERS[: len(score)], zeros, zeros, zeros, zeros, score, 4)


def counts(seed: int, images: int = 12, classes: int = 3, quality: float = 0.5) -> IouCounts:
    drawn = torch.Generator().manual_seed(seed)
    union = torch.randint(1, 90, (images, classes), generator=drawn)
    union[0, 1] = union[3, 2] = 0
    share = (quality + 0.3 * torch.rand(images, classes, generator=drawn)).clamp(0, 1)
    present = (torch.rand(images, classes, generator=drawn) < 0.8) & (union > 0)
    intersection = (union * share).long() * present
    return IouCounts(intersection, union, present)


def test_selections() -> None:
    found = selections(ranking((1.0, 5.0, 3.0, 2.0, 4.0)), pairs=4, seed=0)
    assert [found[name] for name in LAYERS] == [(name,) for name in LAYERS]
    assert found["top-1"] == ("b",) and found["top-2"] == ("b", "e") and found["top-5"] == ("b", "e", "c", "d", "a")
    assert found["last"] == ("e",) and found["middle"] == ("c",) and found["all"] == LAYERS
    pairs = [found[name] for name in found if name.startswith("pair-")]
    assert len(pairs) == len(set(pairs)) == 4 and all(len(set(pair)) == 2 for pair in pairs)
    assert {"b", "e"} not in [set(pair) for pair in pairs]
    again = selections(ranking((1.0, 5.0, 3.0, 2.0, 4.0)), pairs=4, seed=0)
    assert again == found != selections(ranking((1.0, 5.0, 3.0, 2.0, 4.0)), pairs=4, seed=1)


def test_there_are_no_more_pairs_than_there_are() -> None:
    found = selections(ranking((1.0, 5.0, 3.0)), pairs=100, seed=0)
    assert {frozenset(found[name]) for name in found if name.startswith("pair")} == {frozenset("ab"), frozenset("ac")}
    assert not [name for name in selections(ranking((1.0,)), pairs=9, seed=0) if name.startswith("pair")]


def test_ranks() -> None:
    assert ranks([10.0, 30.0, 20.0]) == [3, 1, 2]
    assert ranks([5.0, 5.0, 1.0]) == [1.5, 1.5, 3]


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=8, unique=True), st.randoms())
def test_rho_of_distinct_values(scores: list[int], random: object) -> None:
    """1 - 6 sum d^2 / (n (n^2 - 1)), by hand."""
    values = list(scores)
    random.shuffle(values)  # type: ignore[attr-defined]
    n = len(scores)
    squares = sum((a - b) ** 2 for a, b in zip(ranks(scores), ranks(values), strict=True))
    assert correlation(scores, values) == pytest.approx(1 - 6 * squares / (n * (n * n - 1)))


def test_rho_that_is_not_defined() -> None:
    assert correlation([1.0], [2.0]) is None
    assert correlation([1.0, 1.0], [2.0, 3.0]) is None
    assert correlation([1.0, 2.0], [2.0, 2.0]) is None
    assert correlation([1.0, 2.0], [2.0, math.nan]) is None


@pytest.mark.parametrize("convention", CONVENTION_RULES)
def test_the_fast_way_is_the_exact_one(convention: str) -> None:
    each = counts(3)
    rows = torch.tensor([0, 3, 3, 5, 7, 0, 11, 2])
    some = IouCounts(each.intersection[rows], each.union[rows], each.present[rows])
    drawn = torch.bincount(rows, minlength=12).double()[None]
    assert float(resampled_miou(each, drawn, convention)) == pytest.approx(percent(some, convention), abs=1e-9)


def test_scores_of_a_resample_are_those_of_its_images() -> None:
    marginals = torch.rand(7, 3, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
    rows = torch.tensor([0, 0, 3, 6, 6, 6, 2])
    score = InfoScoreMetric(LAYERS[:3], 4)
    score.update(marginals[rows])
    found = resampled_scores(marginals, torch.bincount(rows, minlength=7).double()[None])
    assert found[0].tolist() == pytest.approx(score.compute().score, rel=1e-9)


def test_draws() -> None:
    drawn = draws(np.random.default_rng(0), 9, 20)
    assert (
        drawn.shape == (20, 9) and bool((drawn.sum(1) == 9).all()) and len({tuple(row) for row in drawn.tolist()}) > 15
    )


class TestStudy:
    def numbers(self, resamples: int = 60, same: bool = False) -> dict:  # type: ignore[type-arg]
        drawn = np.random.default_rng(0)
        # Layers whose columns vary more from image to image segment better.
        spread = torch.tensor([0.02, 0.3, 0.1, 0.2])[None, :, None]
        marginals = torch.from_numpy(0.25 + 0.25 * drawn.uniform(-1, 1, (12, 4, 4))).float()
        marginals = 0.25 + (marginals - 0.25) * spread / 0.25
        score = InfoScoreMetric(LAYERS[:4], 4)
        score.update(marginals)
        chosen = selections(score.compute(), pairs=2, seed=0)
        table = {"a": 0.1, "b": 0.6, "c": 0.3, "d": 0.45}
        every = {
            name: counts(seed, quality=sum(table[layer] for layer in layers) / len(layers))
            for seed, (name, layers) in enumerate(chosen.items())
        }
        return study(every, chosen, score.compute(), marginals, same, resamples, seed=0)

    def test_order_and_rho(self) -> None:
        found = self.numbers()
        assert found["order"] == ["b", "d", "c", "a"] and found["info_rank"] == [4, 1, 3, 2]
        assert set(found["conventions"]) == set(CONVENTION_RULES)
        for each in found["conventions"].values():
            assert each["single_rank"] == [4, 1, 3, 2] and each["rho"] == pytest.approx(1)
            low, high = each["interval"]
            assert -1 <= low <= high <= 1 and high == pytest.approx(1)
            assert each["single"] == [each["selections"][layer]["miou"] for layer in "abcd"]
            assert each["selections"]["top-2"]["layers"] == ["b", "d"]
            assert all(0 <= one["miou"] <= 100 for one in each["selections"].values())

    def test_is_a_function_of_its_seed(self) -> None:
        assert self.numbers() == self.numbers()

    def test_the_same_images_are_drawn_together(self) -> None:
        apart, together = self.numbers(), self.numbers(same=True)
        assert "each" in apart["bootstrap"]["over"] and "alike" in together["bootstrap"]["over"]

    def test_the_two_best_beside_random_pairs(self) -> None:
        for each in self.numbers()["conventions"].values():
            pairs = [one["miou"] for name, one in each["selections"].items() if name.startswith("pair-")]
            above = each["above_pairs"]
            assert above["difference"] == pytest.approx(each["selections"]["top-2"]["miou"] - sum(pairs) / len(pairs))
            low, high = above["interval"]
            assert low < above["difference"] < high and high - low < 40

    def test_factors(self) -> None:
        """InfoScore that follows one of its factors alone."""
        made = Ranking(LAYERS[:3], (1.0,) * 3, (1.0,) * 3, (3.0, 2.0, 1.0), (1.0, 20.0, 300.0), (3.0, 40.0, 300.0), 4)
        chosen = selections(made, pairs=0, seed=0)
        every = {name: counts(1, quality=0.1 + 0.2 * LAYERS.index(layers[0])) for name, layers in chosen.items()}
        marginals = torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
        found = study(every, chosen, made, marginals, False, 5, seed=0)["conventions"]["slime"]
        assert found["factors"] == {"entropy_ratio": pytest.approx(-1), "cov": pytest.approx(1)}
        assert found["rho"] == pytest.approx(1) and found["above_pairs"] is None

    def test_without_a_bootstrap(self) -> None:
        assert self.numbers(resamples=0)["conventions"]["slime"]["interval"] is None

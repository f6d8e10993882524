"""DiffSeg: attention aggregated as the formula says, merging against plain loops and SciPy, k-means against
scikit-learn, the three ways to name clusters, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import Tensor
from torch.nn import functional as F

from slime_bench.attention.capture import LayerAttention
from slime_bench.backbones.diffusion import BackboneFacts
from slime_bench.config.compose import plan
from slime_bench.errors import BackboneError, ConfigError
from slime_bench.methods.diffseg import names
from slime_bench.methods.diffseg.aggregate import aggregate, block_rows, token_maps
from slime_bench.methods.diffseg.config import DiffSegConfig, DiffSegDescription, nouns_of
from slime_bench.methods.diffseg.merge import (
    anchors,
    distances,
    half_decisions,
    half_distances,
    k_means,
    merge,
)
from slime_bench.methods.diffseg.method import DiffSeg, cross_weights
from tests.contract.test_contract import StandInData, batch
from tests.fixtures.rounding import same

CLASSES = ["background", "wheel", "window"]
LAYERS = {"down_blocks.0.attentions.0": 0, "up_blocks.1.attentions.0": 1,
          "up_blocks.2.attentions.0": 0, "up_blocks.2.attentions.1": 0}  # fmt: skip
FACTS = BackboneFacts(num_tokens=77, num_timesteps=1000, text_width=32, downscale=4, layers=LAYERS)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distributions(count: int, positions: int, sharp: float = 1.5, seed: int = 0) -> Tensor:
    """Rows around a few centres, float64 [count,positions], sums of 1."""
    centres = drawn(4, positions, seed=seed).repeat(count // 4 + 1, 1)[:count]
    return (sharp * centres + drawn(count, positions, seed=seed + 1) / 2).double().softmax(dim=1)


# -- aggregation -------------------------------------------------------------------------------------------------------


def layer(side: int, keys: int | None = None, seed: int = 0) -> LayerAttention:
    query, key = drawn(1, 3, side * side, 8, seed=seed), drawn(1, 3, keys or side * side, 8, seed=seed + 50)
    return LayerAttention(query, key, 0.4)


def plain_aggregate(layers: list[LayerAttention], side: int, weights: list[float]) -> Tensor:
    """The formula, one query after the other."""
    found = torch.zeros(side * side, side * side, dtype=torch.float64)
    by_side: dict[int, list[Tensor]] = {}
    for each in layers:
        maps = (each.query[0].double() @ each.key[0].double().transpose(1, 2) * each.scale).softmax(-1).mean(0)
        by_side.setdefault(int(len(maps) ** 0.5), []).append(maps)
    for weight, here in zip(weights, sorted(by_side, reverse=True), strict=True):
        mean = torch.stack(by_side[here]).mean(0)
        for row in range(side):
            for column in range(side):
                own = mean[(row * here // side) * here + column * here // side].view(1, 1, here, here)
                fine = F.interpolate(own, (side, side), mode="bilinear", align_corners=False).flatten()
                found[row * side + column] += weight * fine / fine.sum()
    return found


@pytest.mark.parametrize("budget", [1, 20_000, 10**9])
def test_aggregation_is_the_formula_whatever_the_blocks(budget: int) -> None:
    layers = [layer(8, seed=1), layer(4, seed=2), layer(8, seed=3), layer(2, seed=4)]
    found = aggregate(layers, (8, 8), budget, None)
    expected = plain_aggregate(layers, 8, [8 / 14, 4 / 14, 2 / 14])
    same(found, expected, terms=64, steps=4, dtype=torch.float32, magnitude=expected)
    same(found.sum(1), torch.ones(64, dtype=torch.float64), terms=64, steps=4, dtype=torch.float32)
    own = aggregate(layers, (8, 8), budget, [1, 0.5, 0])
    same(own, plain_aggregate(layers, 8, [1, 0.5, 0]), terms=64, steps=4, dtype=torch.float32)


def test_blocks_keep_to_their_memory() -> None:
    assert block_rows(1000, 12 * 5000) == 5 and block_rows(1000, 1) == 1
    assert block_rows(1000, 10**12) == 2**22 // 1000


def test_tokens_are_the_weighted_mean_of_each_resolution() -> None:
    layers = [(layer(4, 6, seed=1), 1 / 3), (layer(4, 6, seed=2), 1 / 6), (layer(2, 6, seed=3), 1.0)]
    found = token_maps(layers, torch.tensor([0, 2]), (4, 4), (16, 16), 10**6)
    whole = token_maps(layers, torch.arange(6), (4, 4), (16, 16), 10**6)
    same(whole.sum(0), torch.full((16, 16), 2.0), terms=6, steps=4)  # the authors' division would change nothing
    maps = [(one.query[0] @ one.key[0].transpose(1, 2) * one.scale).softmax(-1).mean(0).T for one, _ in layers]
    fine = (maps[0] * 2 + maps[1]).view(1, 6, 4, 4) / 3
    resized = [F.interpolate(each, (16, 16), mode="bilinear") for each in (fine, maps[2].view(1, 6, 2, 2))]
    same(found, torch.stack(resized).sum(0)[0, [0, 2]], terms=16, steps=4)


# -- merging -----------------------------------------------------------------------------------------------------------


def test_distances_are_scipys() -> None:
    x, y = distributions(3, 40), distributions(5, 40, seed=7)
    expected = torch.tensor([[(entropy(a, b) + entropy(b, a)) / 2 for b in y.numpy()] for a in x.numpy()])
    same(distances(x, y), expected, terms=40, steps=4, magnitude=10.0)
    zero = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]], dtype=torch.float64)
    assert distances(zero, zero).isfinite().all() and distances(zero, zero).diagonal().abs().max() < 1e-9


def test_anchors() -> None:
    first, step = anchors(16, (64, 64)).view(16, 16), 4
    assert first[0].tolist() == [64 + 1 + step * i for i in range(16)] and int(first[-1, -1]) == 61 * 65
    assert anchors(2, (4, 6)).tolist() == [0, 5, 18, 23]


@pytest.mark.parametrize("sharp", [0.7, 1.5, 3.0])
@pytest.mark.parametrize("quantile", [0.05, 0.3, 0.6])
def test_decisions_in_half_precision_are_those_of_every_pair(sharp: float, quantile: float) -> None:
    """The pairs that products decide would be decided so in float16 as well, also where numbers vanish."""
    maps = distributions(96, 256, sharp)
    gone = maps.clone()
    gone[::7, 3] = 1e-9
    for some in (maps, gone):
        every = torch.stack([half_distances(one.half().expand(96, -1), some.half()) for one in some[:24]])
        threshold = float(every.float().nanquantile(quantile))
        assert torch.equal(half_decisions(some[:24], some, threshold), every < torch.tensor(threshold).half())
    assert every[::7].isnan().all() and every[:, ::7].isnan().all()


def plain_merge(maps: np.ndarray, start: list[int], thresholds: list[float]) -> np.ndarray:
    """The authors' steps as loops, in float64."""

    def near(x: np.ndarray, y: np.ndarray, threshold: float) -> bool:
        return float(entropy(x, y) + entropy(y, x)) / 2 < threshold

    found = [np.mean([y for y in maps if near(maps[at], y, thresholds[0])], axis=0) for at in start]
    for threshold in thresholds[1:]:
        marked, kept = set[int](), []
        for i, x in enumerate(found):
            if i in marked:
                continue
            own = [j for j, y in enumerate(found) if near(x, y, threshold)]
            kept.append(np.mean([found[j] for j in own], axis=0))
            marked |= set(own)
        found = kept
    return np.stack(found)


@pytest.mark.parametrize("thresholds", [[0.4], [0.3, 0.2], [0.25, 0.1, 0.2]])
def test_merging_is_the_plain_loop(thresholds: list[float]) -> None:
    maps, start = distributions(36, 36, 1.0), anchors(3, (6, 6))
    expected = torch.from_numpy(plain_merge(maps.numpy(), start.tolist(), thresholds))
    found = merge(maps, start, thresholds, "exact")
    assert 1 <= len(found) == len(expected)
    same(found, expected, terms=36, steps=len(thresholds))
    same(found.sum(1), torch.ones(len(found), dtype=torch.float64), terms=36, steps=4)


def test_anchors_that_vanish_in_half_precision_are_left_out() -> None:
    maps, start = distributions(36, 36, 1.0), anchors(3, (6, 6))
    whole = merge(maps, start, [1e-3], "half")
    assert len(whole) == 9
    maps[start[4], 0] = 1e-9
    assert len(merge(maps, start, [1e-3], "half")) == 8 and len(merge(maps, start, [1e-3], "exact")) == 9
    maps[:, 0] = 1e-9
    with pytest.raises(ConfigError, match="float16") as caught:
        merge(maps, start, [1e-3], "half")
    assert "method.first_step=exact" in str(caught.value.remedy)


def test_k_means_is_scikit_learns() -> None:
    from sklearn.cluster import KMeans

    maps = distributions(80, 25, 1.0)
    start = maps[:6]
    theirs = KMeans(6, init=start.numpy(), n_init=1).fit(maps.numpy())
    labels = torch.from_numpy(theirs.labels_).long()
    found = k_means(maps, start)
    expected = torch.stack([maps[labels == k].mean(0) for k in range(6)])
    same(found, expected, terms=80, steps=2)
    assert len(k_means(maps, torch.cat([start, torch.full((1, 25), 9.0, dtype=torch.float64)]))) == 6, "an empty one"


# -- names -------------------------------------------------------------------------------------------------------------


def test_matching_is_the_best_of_all_assignments() -> None:
    draw = np.random.default_rng(0)
    clusters, label = (torch.from_numpy(draw.integers(0, n, (9, 9))) for n in (4, 3))
    label[0] = 255
    found = names.matched_names(clusters, label, 3)
    assert sorted(found.tolist()) == [0, 1, 2, 3], "one cluster is left over, and is of no class"

    def right(order: tuple[int, ...]) -> int:
        return sum(int(((clusters == cluster) & (label == k)).sum()) for cluster, k in enumerate(order))

    assert right(tuple(found.tolist())) == max(right(order) for order in permutations(range(4)))
    assert len(names.matched_names(torch.zeros(3, 3).long(), torch.zeros(3, 3).long(), 5)) == 1


def test_pixels_without_a_class_are_missing_and_no_false_alarm() -> None:
    metric = names.MatchedIou(2)
    metric.update(torch.tensor([[[0, 2, 1, 2]]]), torch.tensor([[[0, 0, 1, 255]]]))
    counts = metric.counts()
    assert counts.intersection.tolist() == [[1, 1]] and counts.union.tolist() == [[2, 1]]
    assert metric.confusion.tolist() == [[1, 0], [0, 1]]


def test_the_strongest_cluster_of_a_name_counts() -> None:
    clusters = drawn(5, 6, 7).double().exp()
    given = torch.tensor([2, 0, 2, 3, 0])
    found = names.named_scores(clusters, given, 4)
    assert torch.equal(found.argmax(0), given[clusters.argmax(0)]) and not found[1].any()
    assert found.dtype == torch.float32 and float(found.min()) >= 0 and float(found.max()) <= 1


def test_prototypes_by_hand() -> None:
    """A region's features are the mean of its cells' unit vectors, layer by layer; an absent class is never nearest."""
    maps = [drawn(3, 4, 4, seed=1), drawn(2, 2, 2, seed=2)]
    region = torch.zeros(1, 8, 8, dtype=torch.bool)
    region[0, :2, :4] = True  # two cells of the finer layer, half of one of the coarser
    found = names.region_features(maps, region)[0]
    unit = [each / each.norm(dim=0) for each in maps]
    expected = torch.cat([(unit[0][:, 0, 0] + unit[0][:, 0, 1]) / 16, unit[1][:, 0, 0] / 2 / 4])
    same(found, expected, terms=16, steps=3)
    prototypes = torch.stack([torch.zeros(5), -found, found + 0.01])
    assert names.nearest_names(found[None], prototypes).tolist() == [2]


def test_nouns_by_mean_and_by_median() -> None:
    maps = torch.zeros(3, 1, 5)
    maps[0, 0, :2], maps[1, 0, 2], maps[2, 0, 3:] = 1.0, 1.0, 1.0
    clusters = torch.zeros(1, 5, dtype=torch.long)
    assert names.noun_of_clusters(maps, clusters, "median").tolist() == [1], "the middle one's number, not the majority"
    assert names.noun_of_clusters(maps, clusters, "mean").tolist() == [0]


def test_weights_of_the_cross_attention() -> None:
    first, middle, *up = (f"{name}.transformer_blocks.0.attn2" for name in LAYERS)
    assert cross_weights(LAYERS, "equal") == dict.fromkeys([first, middle, *up], 1.0)
    assert cross_weights(LAYERS, "code") == {first: 1 / 3, middle: 1.0, up[0]: 1 / 2, up[1]: 1 / 2}


# -- the method --------------------------------------------------------------------------------------------------------


@pytest.fixture
def make(tiny_backbone: Any) -> Callable[..., DiffSeg]:
    """make(settings) -> the method on the tiny backbone."""

    def made(**settings: Any) -> DiffSeg:
        small: dict[str, Any] = {"grid": 4, "thresholds": [0.01, 0.01], "prompts": "mini_car", **settings}
        classes = [*CLASSES, "body", "light", "plate"] if settings["naming"] == "nouns" else CLASSES
        method = DiffSeg(DiffSegConfig(**small), None, tiny_backbone, classes, 0, 2)
        method.prepare(StandInData(1), "cpu")
        return method

    return made


@pytest.mark.parametrize("settings", [{}, {"k_means": True}, {"add_noise": True}, {"first_step": "exact"}])
def test_images_do_not_depend_on_their_batch(make: Callable[..., DiffSeg], settings: dict[str, Any]) -> None:
    method, images = make(naming="prototypes", **settings), batch()["image"]
    both = method.scores(images, ["a", "b"])
    alone = torch.cat([method.scores(images[i : i + 1], [name]) for i, name in enumerate("ab")])
    assert both.shape == (2, 3, 64, 64) and (both.argmax(1) == alone.argmax(1)).double().mean() > 0.99
    assert not method.backbone.unet._forward_hooks


def test_the_oracle_alone_sees_labels(make: Callable[..., DiffSeg]) -> None:
    """Its names depend on them; outside a test it refuses, before and after one."""
    method, seen = make(naming="oracle"), batch()
    with pytest.raises(ConfigError, match="labels of the images") as caught:
        method.scores(seen["image"], seen["id"])
    assert "method.naming=prototypes" in str(caught.value.remedy)
    method.test_step(seen, 0)
    moved = {**seen, "label": torch.where(seen["label"] == 255, 255, (seen["label"] + 1) % 3)}
    method.test_step(moved, 1)
    first, second = method.examples
    assert first["maps"].shape == (3, 64, 64)
    assert not torch.equal(method.test_metric.counts().union[0], method.test_metric.counts().union[2])
    assert set(first["prediction"].unique().tolist()) <= {0, 1, 2, 255}
    with pytest.raises(ConfigError, match="labels of the images"):
        method.scores(seen["image"], seen["id"])
    honest = make(naming="prototypes")
    honest.test_step(seen, 0)
    before = honest.examples[0]["prediction"]
    honest.test_step(moved, 1)
    assert second is not first and len(honest.examples) == 2 and torch.equal(before, honest.examples[0]["prediction"])
    whole = make(naming="oracle", unmatched="background")
    whole.test_step(seen, 0)
    assert int(whole.examples[0]["prediction"].max()) < 3


@pytest.mark.parametrize("vote", ["mean", "median"])
def test_nouns_need_no_support(make: Callable[..., DiffSeg], vote: str) -> None:
    method = make(naming="nouns", vote=vote)
    assert method.scores(batch()["image"], ["a", "b"]).shape == (2, 6, 64, 64) and method.learned_state() == {}
    words, classes = nouns_of("mini_car", method.classes)
    assert words[classes.index(1) :] == ["wheel", "window", "body", "light", "plate"] and classes[-5:] == [
        1,
        2,
        3,
        4,
        5,
    ]
    ids = method.backbone.tokenizer(" ".join(words)).input_ids
    for word, tokens in zip(words, method._tokens, strict=True):
        assert method.backbone.tokenizer.decode([ids[token] for token in tokens]).strip() == word


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_is_refused_before_any_weights() -> None:
    def refused(shots: int = 1, kind: type[Exception] = ConfigError, **settings: Any) -> Any:
        with pytest.raises(kind) as caught:
            DiffSegDescription.check(DiffSegConfig(**settings), FACTS, CLASSES, 64, shots)
        return caught.value

    assert refused(shots=0).path == "shots"
    for naming, words in (("oracle", "labels of the test images"), ("nouns", "by words")):
        error = refused(naming=naming)
        assert error.path == "method.naming" and words in error.summary and "prototypes" in error.remedy
    assert refused(t=1000).path == "method.t"
    assert "2 to 16" in refused(grid=17).expected
    assert "2 numbers" in refused(weights=[1.0, 1.0, 1.0]).expected and refused(weights=[0.0, 0.0])
    assert refused(kind=BackboneError, layers=["up_blocks.9"]).path == "method.layers"
    assert "no prompt words" in refused(shots=0, naming="nouns", prompts="face").summary
    DiffSegDescription.check(DiffSegConfig(weights=[1.0, 0.0]), FACTS, CLASSES, 64)
    DiffSegDescription.check(DiffSegConfig(naming="nouns"), FACTS, CLASSES, 64, 0)


def test_segment_refuses_the_oracle_in_clear_words() -> None:
    from slime_bench.segment.segmenter import Segmenter

    image, mask = np.zeros((16, 16, 3), np.uint8), np.eye(16, dtype=np.uint8)
    with pytest.raises(ConfigError, match="labels of the test images") as caught:
        Segmenter.fit(image, mask, overrides=["method=diffseg", "method.naming=oracle"], device="cpu")
    assert "method.naming=prototypes" in str(caught.value.remedy)


def test_rows_say_what_names_the_clusters() -> None:
    assert DiffSegDescription.label(DiffSegConfig(naming="oracle"), 0) == "DiffSeg (oracle: sees the test labels)"
    assert "TEST LABELS" in DiffSegDescription.stated(DiffSegConfig(naming="oracle"))["names of clusters"]
    assert DiffSegDescription.label(DiffSegConfig(), 1) == "DiffSeg (prototypes)"
    assert DiffSegDescription.fingerprints(DiffSegConfig()) == {}
    assert list(DiffSegDescription.fingerprints(DiffSegConfig(naming="nouns"))) == ["prompts"]


def test_presets_bring_what_goes_with_it() -> None:
    (paper,) = plan(["preset=paper", "method=diffseg"]).trials
    assert (paper.backbone.name, paper.protocol.name, paper.method.thresholds) == ("sd14", "none", [0.9, 0.9, 0.9])
    (mini,) = plan(["preset=mini", "method=diffseg"]).trials
    assert (mini.backbone.name, mini.method.first_step) == ("mini_sd", "half")

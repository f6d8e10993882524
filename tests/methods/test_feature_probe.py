"""The hypercolumn probe and the label propagation on a tiny backbone: what is learned, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from slime_bench.errors import BackboneError, ConfigError, DataError
from slime_bench.methods.description import NoSwitches
from slime_bench.methods.feature_knn.config import FeatureKnnConfig
from slime_bench.methods.feature_knn.method import FeatureKnn, kept_channels
from slime_bench.methods.feature_probe.config import DetailPart, FeatureProbeConfig, SemanticPart
from slime_bench.methods.feature_probe.method import FeatureProbe
from slime_bench.methods.features import ABSENT

CLASSES = ("background", "left", "right", "nowhere")
SIZE = 64
FIXED = {"choose_strength": "fixed"}


class Data:
    """A data module with coloured halves: class 1 on the left, class 2 on the right, and a border."""

    def __init__(self, count: int) -> None:
        draw = torch.Generator().manual_seed(3)
        self.images = torch.rand(count, 3, SIZE, SIZE, generator=draw) * 0.3
        self.labels = torch.zeros(count, SIZE, SIZE, dtype=torch.long)
        for row in range(count):
            cut = 24 + 4 * row
            self.images[row, 0, 8:56, 8:cut] += 0.7
            self.images[row, 2, 8:56, cut:56] += 0.7
            self.labels[row, 8:56, 8:cut], self.labels[row, 8:56, cut:56] = 1, 2
        self.labels[:, :2] = 255
        self.ids = [f"p{row}" for row in range(count)]

    def support_dataloader(self) -> list[dict[str, Any]]:
        return [
            {"image": self.images[row : row + 2], "label": self.labels[row : row + 2], "id": self.ids[row : row + 2]}
            for row in range(0, len(self.ids), 2)
        ]


@pytest.fixture
def make(tiny_backbone: Any) -> Callable[..., FeatureProbe]:
    def made(shots: int = 1, **settings: Any) -> FeatureProbe:
        # At a high noise level random weights say nothing of an image.
        config = FeatureProbeConfig(**{"draws": 2, "test_draws": 1, **settings})
        config.a.t, config.b.t = 5, [5, 10]
        probe = FeatureProbe(config, NoSwitches("none"), tiny_backbone, CLASSES, seed=0)
        probe.prepare(Data(shots), "cpu")
        return probe

    return made


def test_it_tells_the_halves_and_never_names_what_the_support_lacks(make: Callable[..., FeatureProbe]) -> None:
    for shots in (1, 3):
        data = Data(shots)
        found = make(shots).predict(data.images, data.ids)
        inside = data.labels != 255
        assert float((found == data.labels)[inside].float().mean()) > 0.8
        assert not bool((found == 3).any())


def test_one_image_is_part_a_alone_and_more_are_the_weighted_sum(make: Callable[..., FeatureProbe]) -> None:
    data = Data(2)
    images, ids = data.images, ["x", "y"]
    torch.testing.assert_close(make(1).scores(images, ids), make(1, parts="a").scores(images, ids), rtol=0, atol=0)
    both, a, b = (make(3, parts=parts, **FIXED).scores(images, ids) for parts in ("both", "a", "b"))
    share = (3 - 1) / (3 + 3)
    torch.testing.assert_close(both[:, :3], (1 - share) * a[:, :3] + share * b[:, :3], rtol=1e-4, atol=1e-5)
    assert bool((both[:, 3] == ABSENT).all())


@pytest.mark.parametrize("shots", [1, 2])
def test_an_image_is_scored_by_itself(shots: int, make: Callable[..., FeatureProbe]) -> None:
    """Whatever it stands beside; its noise follows from its id."""
    probe, data = make(shots), Data(3)
    whole = probe.scores(data.images, data.ids)
    for row, name in enumerate(data.ids):
        alone = probe.scores(data.images[row : row + 1], [name])
        torch.testing.assert_close(alone, whole[row : row + 1], rtol=1e-3, atol=1e-3)
    other = probe.scores(data.images, ["another", *data.ids[1:]])
    assert float((other[0, :3] - whole[0, :3]).abs().max()) > 1e-4
    torch.testing.assert_close(other[1:], whole[1:], rtol=1e-3, atol=1e-3)


def test_the_size_of_a_call_changes_nothing(
    make: Callable[..., FeatureProbe], tiny_backbone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(3).learned_state()
    monkeypatch.setattr(tiny_backbone, "images_per_call", lambda size: 2)
    for name, value in make(3).learned_state().items():
        torch.testing.assert_close(value, whole[name], rtol=1e-2, atol=2e-3, msg=name)


def test_the_strength_is_chosen_on_the_image_left_out(
    make: Callable[..., FeatureProbe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An absurd strength gives one class everywhere, so that any other is better; one image has none to leave out."""
    sane = make(3, parts="b", choose_strength="leave_one_out", strengths=[1e6, 0.05])
    fixed = make(3, parts="b", b=DetailPart(strength_few=0.05), **FIXED)
    torch.testing.assert_close(sane.learned_state()["b.weight"], fixed.learned_state()["b.weight"])
    alone = make(1, parts="b", choose_strength="leave_one_out", strengths=[1e6])
    torch.testing.assert_close(
        alone.learned_state()["b.weight"], make(1, parts="b", **FIXED).learned_state()["b.weight"]
    )


def test_few_rows_are_solved_in_the_dual_form(make: Callable[..., FeatureProbe]) -> None:
    """256 cells of more than 256 features."""
    layers = ["up_blocks.1", "up_blocks.2", "up_blocks.3"]
    few = make(1, parts="a", draws=1, a=SemanticPart(flip=False, retrieval=0, layers=layers), **FIXED)
    assert len(few.learned_state()["a.weight"]) > 16 * 16
    data = Data(1)
    rows = few.scores(data.images, data.ids)
    assert float((rows.argmax(1) == data.labels)[data.labels != 255].float().mean()) > 0.8


def test_a_linear_probe_of_another_library_agrees(make: Callable[..., FeatureProbe], tiny_backbone: Any) -> None:
    """scikit-learn's logistic regression on the same hidden states, a different loss: mostly the same labels."""
    data, probe = Data(2), make(2, parts="a", a=SemanticPart(retrieval=0, flip=False), **FIXED)
    noise = torch.zeros(2, 4, 16, 16)
    maps = tiny_backbone.features(data.images, torch.tensor([5, 5]), noise, probe._a).values()
    columns = torch.cat([torch.nn.functional.interpolate(each, (16, 16), mode="bilinear") for each in maps], dim=1)
    cells = columns.permute(0, 2, 3, 1).flatten(0, 2).numpy()
    labels = data.labels[:, 2::4, 2::4].flatten().numpy()
    cells = (cells - cells.mean(0)) / cells.std(0)
    model = LogisticRegression(C=0.1, max_iter=200).fit(cells[:256], labels[:256])
    theirs = model.predict(cells[256:])
    ours = probe.predict(data.images, data.ids)[1, 2::4, 2::4].flatten().numpy()
    assert np.mean(theirs == ours) > 0.8


def test_the_state_is_all_that_it_needs(make: Callable[..., FeatureProbe]) -> None:
    probe, fresh, data = make(2), make(1), Data(2)
    fresh.load_learned_state(probe.learned_state())
    torch.testing.assert_close(fresh.scores(data.images, data.ids), probe.scores(data.images, data.ids), rtol=0, atol=0)
    with pytest.raises(ConfigError, match="another method, backbone or class list"):
        fresh.load_learned_state({"present": torch.ones(7, dtype=torch.bool)})
    with pytest.raises(ConfigError, match="another method, backbone or class list") as caught:
        fresh.load_learned_state({"embeddings": torch.ones(3, 4)})
    assert "embeddings" in str(caught.value.found)


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_support_without_a_part_is_refused(tiny_backbone: Any) -> None:
    data = Data(1)
    data.labels[:] = 255
    for method in (
        FeatureProbe(FeatureProbeConfig(), NoSwitches("none"), tiny_backbone, CLASSES, seed=0),
        FeatureKnn(FeatureKnnConfig(), NoSwitches("none"), tiny_backbone, CLASSES, seed=0),
    ):
        with pytest.raises(DataError, match="none of the parts") as caught:
            method.prepare(data, "cpu")
        assert caught.value.path == "p0" and "left, right" in str(caught.value.expected)


def test_a_fit_beyond_the_memory_is_refused_before_the_first_pass(
    make: Callable[..., FeatureProbe], tiny_backbone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    features = tiny_backbone.features

    def counted(images: torch.Tensor, *rest: Any) -> Any:
        sizes.append(tuple(images.shape))
        return features(images, *rest)

    monkeypatch.setattr(tiny_backbone, "features", counted)
    with pytest.raises(ConfigError, match="more memory") as caught:
        make(2, memory_gb=0.001)
    assert caught.value.path == "method.memory_gb" and "2 support images" in str(caught.value.found)
    assert sizes and max(size[-1] for size in sizes) < SIZE, "told from a small image"


@pytest.mark.parametrize(
    ("settings", "error", "path"),
    [
        ({"a": SemanticPart(t=1000)}, ConfigError, "method.a.t"),
        ({"b": DetailPart(t=[100, 1000])}, ConfigError, "method.b.t"),
        ({"a": SemanticPart(layers=["up_blocks.9"])}, BackboneError, "method.a.layers"),
        ({"a": SemanticPart(retrieval_layers=["up_blocks.0"])}, BackboneError, "method.a.retrieval_layers"),
        ({"b": DetailPart(layers=["up_blocks.2.resnets"])}, BackboneError, "method.b.layers"),
    ],
)
def test_what_cannot_be_is_refused_before_the_weights_are_loaded(
    settings: dict[str, Any], error: type[Exception], path: str, tiny_backbone: Any
) -> None:
    facts = type(tiny_backbone).describe(tiny_backbone.config)
    facts = replace(facts, layers={name: at for name, at in facts.layers.items() if not name.startswith("up_blocks.0")})
    with pytest.raises(error) as caught:
        FeatureProbe.check(FeatureProbeConfig(**settings), facts, CLASSES, SIZE)
    assert caught.value.path == path and caught.value.remedy  # type: ignore[attr-defined]


def test_a_layer_of_the_encoder_that_is_not_there(make: Callable[..., FeatureProbe]) -> None:
    with pytest.raises(BackboneError, match="no module of this name") as caught:
        make(2, b=DetailPart(encoder_layers=["mid_block.resnets.7"]))
    assert caught.value.path == "method.b.encoder_layers"


# -- label propagation -------------------------------------------------------------------------------------------------


def test_propagation_finds_the_parts_of_the_support_itself(tiny_backbone: Any) -> None:
    data = Data(2)
    config = FeatureKnnConfig(t=5)  # as above
    method = FeatureKnn(config, NoSwitches("none"), tiny_backbone, CLASSES, seed=0)
    method.prepare(data, "cpu")
    found = method.predict(data.images, data.ids)
    for k, least in ((0, 0.2), (1, 0.8), (2, 0.8)):
        assert float((found == k)[data.labels == k].float().mean()) > least
    scores = method.scores(data.images, data.ids)
    torch.testing.assert_close(scores[:, 0], torch.full_like(scores[:, 0], 0.1))
    assert bool((scores[:, 3] == ABSENT).all())
    assert float(scores[:, 1:3].min()) >= 0 and float(scores[:, 1:3].max()) <= 1 + 1e-6
    fresh = FeatureKnn(config, NoSwitches("none"), tiny_backbone, CLASSES, seed=0)
    fresh.load_learned_state(method.learned_state())
    torch.testing.assert_close(fresh.scores(data.images, data.ids), scores, rtol=0, atol=0)


def test_channels_that_vary_within_a_part_are_left_out() -> None:
    """Twenty channels: eighteen say which side a cell is on, two are loud noise and come last."""
    draw = np.random.default_rng(0)
    part = np.arange(200) < 60
    features = np.where(part[:, None], 1.0, -1.0) + draw.normal(size=(200, 20)) * 0.1
    features[:, [3, 11]] = draw.normal(size=(200, 2)) * 30
    kept = kept_channels(torch.from_numpy(features).float(), torch.from_numpy(part), 0.85)
    assert not kept[3] and not kept[11] and int(kept.sum()) >= 17
    assert bool(kept_channels(torch.ones(5, 4), torch.zeros(5, dtype=torch.bool), 0.85).all())

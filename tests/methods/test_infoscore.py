"""The second paper's method on a small random BLIP: passes, lists of prompts, ranking, tuning, errors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from slime_bench.backbones.blip import BlipBackbone
from slime_bench.errors import BackboneError, ConfigError, DataError
from slime_bench.methods.infoscore.config import InfoScoreConfig
from slime_bench.methods.infoscore.maps import Reading
from slime_bench.methods.infoscore.method import InfoScore
from slime_bench.methods.infoscore.protocol import InfoScoreProtocol
from slime_bench.methods.infoscore.ranking import STUDY_FILE, InfoScoreRanking, InfoScoreRankingConfig
from slime_bench.metrics.iou import intersection_union, mean_iou, reduce_slime
from slime_bench.refine.config import Crf
from tests.fixtures.blip_toys import save_blip

SIDE = 32
CLASSES = ["background", "wheel", "window"]
PROMPTS = """
template: Image of {}.
background: [sky, traffic sign]
related:
  wheel: [traffic wheel of image]
  window: []
"""
CODE = dict(
    attention="scores", heads="max", tokens="all", token_reduction="sum", match="all", softmax_over="prompts",
    background="sum", foreground="max", align_corners=True, normalise="after", info_over="prompts",
)  # fmt: skip
Make = Callable[..., InfoScore]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture
def words(tmp_path: Path) -> str:
    path = tmp_path / "words.yaml"
    path.write_text(PROMPTS)
    return str(path)


@pytest.fixture
def make(weights: Path, words: str, monkeypatch: pytest.MonkeyPatch) -> Make:
    def made(data: Data | None = None, protocol: dict[str, Any] | None = None, **settings: Any) -> InfoScore:
        backbone = BlipBackbone(BlipBackbone.Config(weights=str(weights), image_size=SIDE))
        settings = {"prompts": words, **settings}
        kind, config = (
            (InfoScore, InfoScoreConfig) if "pairs" not in settings else (InfoScoreRanking, InfoScoreRankingConfig)
        )
        method = kind(
            config(**settings), InfoScoreProtocol(name="t", **{**CODE, **(protocol or {})}), backbone, CLASSES, 0
        )
        monkeypatch.setattr(method, "log", lambda *_, **__: None)
        if data is not None:
            method.prepare(data, "cpu")
        return method

    return made


class Data:
    """A data module of random pictures."""

    def __init__(self, shots: int = 0, train: int = 6, test: int = 5) -> None:
        self.shots, self.train, self.test = shots, pictures("train", train), pictures("test", test)
        self.support = batches(pictures("support", max(1, shots)), 2)

    def unlabelled_dataloader(self, limit: int | None) -> Iterator[dict[str, Any]]:
        return iter(batches({name: value[:limit] for name, value in self.train.items()}, 4))

    def test_dataloader(self) -> Iterator[dict[str, Any]]:
        return iter(batches(self.test, 2))

    def support_dataloader(self) -> Iterator[dict[str, Any]]:
        return iter(self.support)


def pictures(name: str, count: int) -> dict[str, Any]:
    drawn = torch.Generator().manual_seed(len(name))
    labels = torch.randint(0, len(CLASSES), (count, SIDE, SIDE), generator=drawn)
    labels[:, :3] = 255
    images = torch.rand(count, 3, SIDE, SIDE, generator=drawn)
    return {"image": images, "label": labels, "id": [f"{name}-{index}" for index in range(count)]}


def batches(every: dict[str, Any], size: int) -> list[dict[str, Any]]:
    return [{key: value[at : at + size] for key, value in every.items()} for at in range(0, len(every["id"]), size)]


def weights_of(method: InfoScore) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in method.backbone.state_dict().items()}


def test_scores(make: Make) -> None:
    data = Data()
    method = make(data)
    found = method.scores(data.test["image"], data.test["id"])
    assert found.shape == (5, 3, SIDE, SIDE) and found.dtype == torch.float32
    method.backbone.double()  # sums over tokens enter an exponent, which turns rounding into relative errors
    found = method.scores(data.test["image"], data.test["id"])
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.sum(1), torch.ones(5, SIDE, SIDE, dtype=torch.float64))
    one = torch.cat(
        [method.scores(image[None], [name]) for image, name in zip(data.test["image"], data.test["id"], strict=True)]
    )
    torch.testing.assert_close(one, found, rtol=0, atol=1e-9)
    assert method.epochs == 0 and method.learned_state() == {}


def test_a_single_list_is_read_as_part_of_the_longer_one(make: Make) -> None:
    """Also where the longer list is padded further: positions beyond the shorter list's padding are not looked at."""
    data, layers = Data(), ["layer.0", "layer.2"]
    for match in ("all", "tokens", "cls"):
        alone, both = (make(data, {"match": match}, layers=layers, multi_prompt=multi) for multi in (False, True))
        for method in (alone, both):  # sums over tokens enter an exponent, which turns rounding into relative errors
            method.backbone.double()
        assert both._prompts.ids.shape[1] > alone._prompts.ids.shape[1]
        mine = alone._read(data.test["image"], None)
        theirs = both._read(data.test["image"], None)
        want = alone._views["single"].layer_maps(mine, alone.protocol)
        found = both._views["single"].layer_maps(theirs, both.protocol)
        assert list(found) == list(alone.backbone.layers)
        for name, maps in found.items():
            assert maps.dtype == torch.float64
            torch.testing.assert_close(maps, want[name], rtol=0, atol=1e-9)
    assert (
        both.scores(data.test["image"], data.test["id"])
        .sub(alone.scores(data.test["image"], data.test["id"]))
        .abs()
        .max()
        > 1e-3
    )


class TestRanking:
    def test_takes_the_best(self, make: Make) -> None:
        method = make(Data(), top=2)
        assert method.ranking is not None and method.ranking.images == 6
        assert set(method.layers) == set(method.ranking.order()[:2])
        assert list(method.layers) == sorted(method.layers)
        assert len(set(method.ranking.score)) == 3

    def test_named_layers_are_not_ranked(self, make: Make) -> None:
        method = make(Data(), layers=["layer.2", "layer.0"])
        assert method.ranking is None and method.layers == ("layer.0", "layer.2") and method.forwarded == 0

    def test_annotation_is_not_looked_at(self, make: Make) -> None:
        data = Data()
        want = make(data).ranking
        data.train["label"] = torch.full_like(data.train["label"], 77)
        del data.train["label"]
        assert make(data).ranking == want

    def test_on_the_train_side_unless_asked(self, make: Make) -> None:
        data = Data()
        usual, other = make(data).ranking, make(data, rank_on="test").ranking
        assert usual is not None and other is not None
        assert other.images == 5 and usual.score != other.score
        data.test["image"] = 1 - data.test["image"]
        assert make(data).ranking == usual and make(data, rank_on="test").ranking != other

    def test_at_most_so_many(self, make: Make) -> None:
        ranking = make(Data(), rank_images=3).ranking
        assert ranking is not None and ranking.images == 3

    def test_over_classes(self, make: Make) -> None:
        prompts, classes = make(Data()).ranking, make(Data(), {"info_over": "classes"}).ranking
        assert prompts is not None and classes is not None and prompts.cov != classes.cov

    def test_of_one_image(self, make: Make) -> None:
        with pytest.raises(DataError, match="several images"):
            make(Data(train=1))


class TestPasses:
    """Ranking on the test images and segmenting them: one pass, with the numbers of two."""

    @pytest.mark.parametrize(("keep", "passes"), [(2.0, 5), (0.0, 10), (40e3 / 1e9, 10)])
    def test_an_image_is_read_once(self, make: Make, keep: float, passes: int) -> None:
        data = Data()
        method = make(data, rank_on="test", keep_gb=keep)
        assert method.forwarded == 5
        found = torch.cat([method.scores(each["image"], each["id"]) for each in data.test_dataloader()])
        if keep != 40e3 / 1e9:  # some of the images fit
            assert method.forwarded == passes
        plain = make(data, layers=list(method.layers))
        want = torch.cat([plain.scores(each["image"], each["id"]) for each in data.test_dataloader()])
        assert torch.equal(found, want)

    def test_nothing_is_kept_of_train_images_or_before_tuning(self, make: Make) -> None:
        assert not make(Data())._readings and not make(Data(shots=1), rank_on="test")._readings

    def test_memory_is_bounded(self, make: Make) -> None:
        size = make(Data(), rank_on="test")._readings["test-0"].size()
        assert len(make(Data(), rank_on="test", keep_gb=2.5 * size / 1e9)._readings) == 2


class TestTuning:
    def fit(self, method: InfoScore, groups: Sequence[dict[str, Any]], passes: int) -> list[float]:
        optimiser, losses = method.configure_optimizers(), []
        for _ in range(passes):
            for group in groups:
                loss = method.training_step(group, 0)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses.append(float(loss.detach()))
        return losses

    def test_learns_and_restores(self, make: Make) -> None:
        data = Data(shots=3)
        method = make(data, layers=["layer.0", "layer.2"], lr=1e-2, epochs=7, max_steps=9)
        assert (method.epochs, method.max_steps, method.support_group) == (7, 9, 2)
        before, passes = weights_of(method), []
        encode = method.backbone.encode_images

        def counted(images: Tensor) -> Tensor:
            passes.append(len(images))
            return encode(images)

        method.backbone.encode_images = counted  # type: ignore[method-assign]
        losses = self.fit(method, data.support, 6)
        assert sum(losses[-2:]) < sum(losses[:2])
        assert passes == [1, 1, 1], "the vision tower sees each support image once"
        after = weights_of(method)
        changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert changed == set(method.learned_state())
        assert {name.split(".")[3] for name in changed if "encoder.layer" in name} == {"0", "2"}
        assert all("crossattention" in name or "word_embeddings" in name for name in changed)
        method.restore()
        assert all(torch.equal(value, before[name]) for name, value in weights_of(method).items())
        assert not any(value.requires_grad for value in method.backbone.parameters())

    def test_state_is_all_that_is_needed(self, make: Make) -> None:
        data = Data(shots=1)
        method = make(data, lr=1e-2)
        self.fit(method, data.support, 3)
        want, state = method.scores(data.test["image"], data.test["id"]), method.learned_state()
        fresh = make(data, lr=1e-2)
        assert not torch.equal(fresh.scores(data.test["image"], data.test["id"]), want)
        fresh.load_learned_state({name: value.clone() for name, value in state.items()})
        assert torch.equal(fresh.scores(data.test["image"], data.test["id"]), want)
        other = make(data, layers=["layer.1"])
        for wrong in (state, {}, dict(list(other.learned_state().items())[1:])):
            with pytest.raises(ConfigError, match="another method, backbone or class list"):
                other.load_learned_state(wrong)

    def test_loss(self, make: Make) -> None:
        method = make(Data(), background_weight=0.25)
        found = torch.rand(2, 3, 4, 5, dtype=torch.float64).float()
        found[0, :, 0, 0] = 0  # the floor
        label = torch.randint(0, 3, (2, 4, 5))
        label[1, 2] = 255
        total = weight = 0.0
        for b in range(2):
            for y in range(4):
                for x in range(5):
                    if (k := int(label[b, y, x])) != 255:
                        w = 0.25 if k == 0 else 1.0
                        total -= w * float(found[b, k, y, x].double().clamp(min=1e-12).log())
                        weight += w
        assert float(method.loss(found, label)) == pytest.approx(total / weight, rel=1e-5)

    @pytest.mark.parametrize("rule", ["none", "root", "balanced"])
    def test_class_weights(self, make: Make, rule: str) -> None:
        data = Data(shots=3)
        labels = torch.cat([batch["label"] for batch in data.support])
        labels[labels == 2] = 1  # a class that no support image shows
        labels[0, 5:9] = 0
        data.support = [{"label": labels[:2]}, {"label": labels[2:]}]
        method = make(data, class_weights=rule, background_weight=0.5)
        pixels = [sum(int(each) == k for each in labels.flatten()) for k in range(3)]
        expected = [sum(pixels) / (2 * count) if count else 0.0 for count in pixels]
        expected = {"none": [1.0, 1.0, 1.0], "root": [each**0.5 for each in expected], "balanced": expected}[rule]
        expected[0] *= 0.5
        assert method.class_weights(data).tolist() == pytest.approx(expected)
        found = torch.tensor([[[[0.2, 0.6]], [[0.7, 0.3]], [[0.1, 0.1]]]])
        loss = float(method.loss(found, torch.tensor([[[0, 1]]])))
        ours = sum(-expected[k] * math.log(float(found[0, k, 0, k])) for k in (0, 1)) / (expected[0] + expected[1])
        assert loss == pytest.approx(ours)

    def test_augmented_images_are_never_taken_for_seen_ones(self, make: Make) -> None:
        data = Data(shots=2)
        method = make(data, augment=True)
        assert method.support_group is None
        batch = data.support[0]
        first = float(method.training_step(batch, 0).detach())
        varied = {**batch, "image": batch["image"].flip(3)}  # of the same name
        assert float(method.training_step(varied, 0).detach()) != first
        assert float(method.training_step(batch, 0).detach()) == first

    def test_all_layers_can_be_tuned_while_some_segment(self, make: Make) -> None:
        data = Data(shots=2)
        method = make(data, layers=["layer.1"], tuned_layers="all", lr=1e-2)
        before = weights_of(method)
        self.fit(method, data.support, 2)
        changed = {name for name, value in weights_of(method).items() if not torch.equal(value, before[name])}
        assert method.layers == ("layer.1",)
        assert {name.split(".")[3] for name in changed if "encoder.layer" in name} == {"0", "1", "2"}

    @pytest.mark.parametrize("precision", ["bf16", "fp16"])
    def test_half_precision_loses_the_steps(self, make: Make, precision: str) -> None:
        method = make()
        method.backbone.to({"bf16": torch.bfloat16, "fp16": torch.float16}[precision])
        with pytest.raises(ConfigError, match="full precision"):
            method.prepare(Data(shots=1), "cpu")
        method.prepare(Data(shots=0), "cpu")

    def test_background_of_no_weight(self, make: Make) -> None:
        method = make(Data(), background_weight=0.0)
        assert float(method.loss(torch.rand(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long))) == 0

    def test_a_group_without_annotation_moves_nothing_by_its_loss(self, make: Make) -> None:
        method = make(Data())
        found = torch.rand(1, 3, 4, 4, requires_grad=True)
        loss = method.loss(found, torch.full((1, 4, 4), 255))
        loss.backward()
        assert float(loss.detach()) == 0 and found.grad is not None and not found.grad.any()


def test_crf(make: Make) -> None:
    data = Data()
    method = make(data)
    images, ids = data.test["image"], data.test["id"]
    plain = method.refined_scores(images, ids)
    assert torch.equal(plain, method.scores(images, ids))
    method.refine = Crf(final_softmax=True)
    smooth = method.refined_scores(images, ids)
    assert not torch.equal(plain, smooth)
    torch.testing.assert_close(smooth.sum(1), torch.ones(5, SIDE, SIDE))


class TestStudy:
    def test_every_selection_is_what_a_trial_of_it_would_give(self, make: Make) -> None:
        data = Data()
        method = make(data, pairs=2, resamples=20, rank_on="test")
        for batch in data.test_dataloader():
            method.test_step(batch, 0)
        assert method.forwarded == 5, "ranks, the result and every selection come from one pass"
        study = json.loads(method.extra_files()[STUDY_FILE])
        assert study["info_rank"] == [1 + list(study["order"]).index(name) for name in study["layers"]]
        selections = study["conventions"]["slime"]["selections"]
        # Three layers have three pairs; the two best are no random pair.
        assert {"layer.0", "top-1", "top-3", "last", "middle", "all", "pair-0", "pair-1"} <= set(selections)
        assert selections["last"]["layers"] == ["layer.2"] and selections["middle"]["layers"] == ["layer.1"]
        for name, each in selections.items():
            plain = make(data, layers=each["layers"])
            predicted = plain.predict(data.test["image"], data.test["id"])
            counts = intersection_union(predicted, data.test["label"], len(CLASSES))
            assert each["miou"] == pytest.approx(100 * mean_iou(reduce_slime(counts)), abs=1e-9), name
        assert set(selections["top-2"]["layers"]) == set(study["order"][:2])
        counts = method.test_metric.counts()
        assert selections["top-2"]["miou"] == pytest.approx(100 * mean_iou(reduce_slime(counts)))

    def test_learns_nothing(self, weights: Path, words: str) -> None:
        facts = BlipBackbone.describe(BlipBackbone.Config(weights=str(weights), image_size=SIDE))
        with pytest.raises(ConfigError, match="learns nothing"):
            InfoScoreRanking.check(InfoScoreRankingConfig(prompts=words), facts, CLASSES, SIDE, 1)
        with pytest.raises(ConfigError, match="more layers"):  # all are ranked, whichever are used
            InfoScoreRanking.check(
                InfoScoreRankingConfig(prompts=words, top=9, layers=["layer.0"]), facts, CLASSES, SIDE, 0
            )


class TestCheck:
    @pytest.fixture
    def facts(self, weights: Path) -> Any:
        return BlipBackbone.describe(BlipBackbone.Config(weights=str(weights), image_size=SIDE))

    def test_fits(self, facts: Any, words: str) -> None:
        InfoScore.check(InfoScoreConfig(prompts=words), facts, CLASSES, SIDE, 0)
        InfoScore.check(InfoScoreConfig(prompts=words, mode="one_shot"), facts, CLASSES, SIDE, 1)
        assert InfoScore.fingerprints(InfoScoreConfig(prompts=words)).keys() == {"prompts"}

    @pytest.mark.parametrize(("mode", "shots"), [("zero_shot", 1), ("one_shot", 0)])
    def test_mode(self, facts: Any, words: str, mode: str, shots: int) -> None:
        with pytest.raises(ConfigError, match="does not fit") as caught:
            InfoScore.check(InfoScoreConfig(prompts=words, mode=mode), facts, CLASSES, SIDE, shots)
        assert "method.mode=auto" in str(caught.value.remedy)

    @pytest.mark.parametrize("layers", [[], ["layer.3"], ["layer.1", "layer.1"]])
    def test_layers(self, facts: Any, words: str, layers: list[str]) -> None:
        with pytest.raises(BackboneError):
            InfoScore.check(InfoScoreConfig(prompts=words, layers=layers), facts, CLASSES, SIDE, 0)

    def test_more_than_there_are(self, facts: Any, words: str) -> None:
        with pytest.raises(ConfigError, match="more layers") as caught:
            InfoScore.check(InfoScoreConfig(prompts=words, top=4), facts, CLASSES, SIDE, 0)
        assert "1 to 3" in str(caught.value.expected)

    def test_a_class_without_a_prompt(self, facts: Any, words: str) -> None:
        with pytest.raises(ConfigError, match="prompt"):
            InfoScore.check(InfoScoreConfig(prompts=words), facts, [*CLASSES, "plate"], SIDE, 0)


def test_a_reading_of_one_image() -> None:
    whole = Reading({"a": torch.arange(12.0).view(2, 2, 3), "b": torch.zeros(2, 2, 3)}, torch.ones(2, 2, 4))
    one = whole.rows(1)
    assert torch.equal(one.maps["a"], torch.arange(6.0, 12.0).view(1, 2, 3)) and one.size() == 4 * (6 + 6 + 8)
    assert list(one.only(["b"]).maps) == ["b"]

"""What every refinement keeps, and that whatever asks a method for label maps asks its refinement too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from slime_bench.config.compose import plan
from slime_bench.config.schema import load_target
from slime_bench.errors import ConfigError
from slime_bench.imagenet import IMAGENET
from slime_bench.methods.base import SegmentationMethod
from slime_bench.methods.batch import BatchedMethod, TrialBatch
from slime_bench.refine.config import Crf, GuidedFilter, NoRefinement, Refinement
from slime_bench.refine.crf import crf_kernel, mean_field
from slime_bench.trial import spec

SIZE = (24, 32)
SHIPPED: list[Refinement] = [
    NoRefinement(),
    GuidedFilter(),
    Crf(blur=2, iterations=5),
    Crf(iterations=0),
    Crf(iterations=1),
]
ABSENT = -1e3  # as the probe marks a class that no support image shows


def images(batch: int = 2) -> Tensor:
    """Half of them flat, as the mini world's are."""
    drawn = torch.rand(batch, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    drawn[..., : SIZE[1] // 2] = 0.5
    return drawn


def scores(classes: int = 3, batch: int = 2) -> Tensor:
    return torch.rand(batch, classes, *SIZE, generator=torch.Generator().manual_seed(1)).softmax(1)


@pytest.mark.parametrize("refine", SHIPPED, ids=repr)
class TestEveryRefinement:
    def test_form(self, refine: Refinement) -> None:
        given, pictures = scores(), images()
        before = given.clone(), pictures.clone()
        found = refine(given, pictures)
        assert found.shape == given.shape and found.dtype == torch.float32 and found.isfinite().all()
        assert torch.equal(given, before[0]) and torch.equal(pictures, before[1])
        assert refine.stated(64) and "\n" not in refine.stated(64)

    def test_images_do_not_see_each_other(self, refine: Refinement) -> None:
        whole = refine(scores(), images())
        for row in range(2):
            one = refine(scores()[row : row + 1], images()[row : row + 1])
            torch.testing.assert_close(one[0], whole[row], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("column", [0, 1, 2])
    def test_an_absent_class_stays_unpredicted(self, refine: Refinement, column: int) -> None:
        given = scores()
        given[:, column] = ABSENT
        assert (refine(given, images()).argmax(1) != column).all()


def test_no_refinement_is_none() -> None:
    given = scores()
    assert NoRefinement()(given, images()) is given


def test_the_crf_sees_imagenets_colours() -> None:
    config = Crf(blur=2, iterations=3)
    mean, std = (torch.tensor(each)[:, None, None] for each in IMAGENET)
    want = mean_field(scores(), crf_kernel((images() - mean) / std, config), config)
    assert torch.equal(config(scores(), images()), want)


@pytest.mark.parametrize(
    ("refine", "words"),
    [(NoRefinement(), "none"), (Crf(), "CRF, 20 iterations"), (Crf(iterations=1), "CRF, 1 iteration"),
     (GuidedFilter(), "guided filter, radius 4, 2 passes")],
)  # fmt: skip
def test_captions(refine: Refinement, words: str) -> None:
    assert refine.stated(128) == words


# -- where it is applied -----------------------------------------------------------------------------------------------


@dataclass
class Swap(Refinement):
    """A refinement of somebody else's: the classes in another order, where the picture is bright."""

    name: str = "swap"

    def __call__(self, scores: Tensor, images: Tensor) -> Tensor:
        return torch.where(images.mean(1, keepdim=True) > 0.5, scores.flip(1), scores)


class Constant(BatchedMethod):
    """Always the same scores."""

    def __init__(self) -> None:
        super().__init__(["background", "part", "other"], keep_maps=1)

    @classmethod
    def score_maps(cls, trials: Any, images: Any, ids: Any) -> list[Tensor]:
        return [scores(batch=len(each)) for each in images]

    def learned_state(self) -> dict[str, Tensor]:
        return {}

    def load_learned_state(self, state: Any) -> None: ...

    @classmethod
    def training_terms(cls, trials: Any, batches: Any) -> Any:
        raise NotImplementedError

    @classmethod
    def trials_per_batch(cls, backbone: Any, image_size: int, images: int, device: str) -> int:
        raise NotImplementedError


def batch() -> dict[str, Any]:
    label = torch.zeros(2, *SIZE, dtype=torch.long)
    return {"image": images(), "label": label, "id": ["a", "b"]}


def observed(methods: Sequence[SegmentationMethod], monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """Label maps that each of the methods counts from now on."""
    found: list[list[Tensor]] = [[] for _ in methods]
    for each, own in zip(methods, found, strict=True):
        monkeypatch.setattr(each, "observe", lambda prediction, label, own=own: own.append(prediction))
    return found


def test_validation_test_and_kept_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Constant()
    method.refine = Swap()
    want = Swap()(scores(), images())
    assert torch.equal(method.predict(images(), ["a", "b"]), want.argmax(1))
    (seen,) = observed([method], monkeypatch)
    method.validation_step(batch(), 0)
    method.test_step(batch(), 0)
    assert torch.equal(seen[0], want.argmax(1))
    assert torch.equal(method.examples[0]["maps"], want[0])
    assert torch.equal(method.examples[0]["prediction"], want.argmax(1)[0].float())
    plain = scores().argmax(1)
    assert not torch.equal(plain, want.argmax(1))
    counted = method.test_metric.counts().intersection[:, 0]
    assert counted.tolist() == (want.argmax(1) == 0).flatten(1).sum(1).tolist()


def test_trials_of_one_batch_have_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Constant(), Constant()
    two.refine = Swap()
    seen = observed([one, two], monkeypatch)
    TrialBatch([one, two]).validation_step([batch(), batch()], 0)
    assert torch.equal(seen[0][0], scores().argmax(1)) and torch.equal(seen[1][0], two.predict(images(), []))


# -- as it is chosen ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["preset=mini"], NoRefinement()),
        (["preset=mini_infoscore"], Crf(blur=2, iterations=5)),
        (["preset=paper_infoscore"], Crf(blur=4, iterations=20)),
        (["preset=mini_infoscore", "method=infoscore_ranking", "shots=0"], NoRefinement()),
        (["preset=mini_infoscore", "refine=none"], NoRefinement()),
        (["preset=mini", "refine=crf"], Crf(blur=2, iterations=5)),
        (["preset=paper", "refine=guided", "refine.radius=8"], GuidedFilter(radius=8)),
        (["experiment=debug/smoke", "method=infoscore"], Crf(blur=2, iterations=5)),
    ],
    ids=str,
)
def test_the_methods_choose_what_their_papers_do(overrides: list[str], expected: Refinement) -> None:
    (cfg,) = plan(overrides).trials
    assert cfg.refine == expected
    assert spec.table_facts(cfg)["stated"]["refinement"] == expected.stated(cfg.data.image_size)


def test_what_is_no_refinement_is_refused() -> None:
    other = "slime_bench.methods.description.NoSwitches"
    (cfg,) = plan(["preset=mini", f"refine._target_={other}"]).trials
    with pytest.raises(ConfigError, match="no refinement") as caught:
        spec.check_parts(cfg)
    assert load_target(other).__name__ in str(caught.value.found)


@pytest.mark.parametrize(
    ("override", "path"),
    [("refine.window=14", "refine.window"), ("refine.blur=0", "refine.blur"), ("refine.radius=3", "refine.radius")],
)
def test_bad_values_are_refused_at_the_door(override: str, path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(["preset=mini_infoscore", override])
    assert caught.value.path == path and caught.value.remedy

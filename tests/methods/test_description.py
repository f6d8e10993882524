"""What methods declare of themselves: without torch, in plain JSON values, and for a method of somebody else's too."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from slime_bench.config.parts import Part
from slime_bench.config.schema import implementation_of
from slime_bench.methods.base import SegmentationMethod
from slime_bench.methods.description import MethodDescription
from slime_bench.methods.infoscore.config import (
    InfoScoreConfig,
    InfoScoreDescription,
    InfoScoreRankingConfig,
    InfoScoreRankingDescription,
)
from slime_bench.methods.infoscore.method import InfoScore
from slime_bench.methods.infoscore.ranking import InfoScoreRanking
from slime_bench.methods.slime.config import SlimeConfig, SlimeDescription
from slime_bench.methods.slime.method import Slime

SHIPPED: dict[type[MethodDescription], type[SegmentationMethod]] = {
    SlimeDescription: Slime,
    InfoScoreDescription: InfoScore,
    InfoScoreRankingDescription: InfoScoreRanking,
}


def test_nothing_heavy_is_imported(repository: Path) -> None:
    modules = sorted({each.__module__ for each in SHIPPED})
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert not {"torch", "lightning", "numpy", "scipy", "hydra"} & set(done.stdout.split())


@pytest.mark.parametrize("light", SHIPPED, ids=lambda each: each.__name__)
def test_a_description_names_the_class_that_computes(light: type[MethodDescription]) -> None:
    heavy = SHIPPED[light]
    assert implementation_of(light) is heavy is implementation_of(heavy)
    assert issubclass(heavy, light) and heavy.Config is light.Config
    own = type("Own", (heavy,), {})
    assert implementation_of(own) is own, "a subclass of somebody else's computes by itself"
    assert issubclass(light.Backbone, Part) and not issubclass(light.Backbone, torch.nn.Module)


def test_facts_of_slime() -> None:
    assert Slime.facts(SlimeConfig(), 1) == SlimeDescription.facts(SlimeConfig(), 1) == {
        "label": "slime", "least_shots": 1, "only_shots": None, "own_report": None, "table_order": 0, "stated": {},
    }  # fmt: skip


def test_facts_of_infoscore() -> None:
    found = [InfoScoreDescription.facts(InfoScoreConfig(prompts="mini_car"), shots) for shots in (0, 1, 5)]
    assert [each["label"] for each in found] == ["InfoScore zero-shot", "InfoScore 1-shot", "InfoScore 5-shot"]
    assert InfoScoreDescription.label(InfoScoreConfig(name="mine"), 0) == "mine"
    assert {each["least_shots"] for each in found} == {0} and {each["own_report"] for each in found} == {None}
    assert found[0]["stated"] == {
        "layers": "the best 2 by InfoScore, ranked on up to 100 unlabelled images of the training side",
        "prompts": "mini_car, single (one word for each class)",
        "tuning": "plain support images, class weights none, cross-attention of these",
    }
    varied = InfoScoreConfig(augment=True, class_weights="root", tuned_layers="all")
    assert InfoScoreDescription.stated(varied)["tuning"] == (
        "augmented support images, class weights root, cross-attention of all layers"
    )
    ranking = InfoScoreRankingDescription.facts(InfoScoreRankingConfig(), 0)
    assert (ranking["label"], ranking["own_report"], ranking["only_shots"]) == ("infoscore_ranking", "ranking", [0])


@pytest.mark.parametrize(
    ("settings", "heading", "words"),
    [
        ({"layers": ["layer.7", "layer.6"]}, "layers", "named: layer.7, layer.6"),
        ({"rank_on": "test", "top": 3}, "layers", "the best 3 by InfoScore, ranked on TEST IMAGES (transductive)"),
        (
            {"rank_images": None, "multi_prompt": True},
            "layers",
            "the best 2 by InfoScore of single prompts, ranked on all unlabelled images of the training side",
        ),
        (
            {"prompts": "/some/where/words.yaml", "multi_prompt": True},
            "prompts",
            "words.yaml, multi (with related words)",
        ),
    ],
)
def test_what_captions_state(settings: dict[str, Any], heading: str, words: str) -> None:
    assert InfoScoreDescription.stated(InfoScoreConfig(**settings))[heading] == words


class Foreign(SegmentationMethod):
    """A method of somebody else's, in one class."""

    least_shots = 0
    table_order = 7

    @dataclass
    class Config:
        name: str = "foreign"

    def scores(self, images: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        return images[:, :2]

    def learned_state(self) -> dict[str, torch.Tensor]:
        return {}

    def load_learned_state(self, state: Any) -> None:
        pass


def test_facts_of_a_method_in_one_class() -> None:
    assert implementation_of(Foreign) is Foreign
    found = Foreign.facts(Foreign.Config(), 0)
    assert (found["label"], found["least_shots"], found["table_order"]) == ("foreign", 0, 7)
    assert Foreign.fingerprints(Foreign.Config()) == {} and Foreign(["background", "part"]).support_group is None


def test_facts_are_plain_json() -> None:
    for light in SHIPPED:
        facts = light.facts(light.Config(), 0)
        assert json.loads(json.dumps(facts, allow_nan=False)) == facts

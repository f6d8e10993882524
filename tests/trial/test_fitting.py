"""What a fit is made of: of the backbone cache the same one or a new one, never two, and none after a failure."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from slime_bench.config.schema import MetricConfig, TrainerConfig, TrialConfig
from slime_bench.trial.fitting import backbone_of, drop_backbone


@dataclass
class Settings:
    name: str
    size: int = 1


class Backbone:
    Config = Settings
    made: ClassVar[list[weakref.ref[Backbone]]] = []

    def __init__(self, config: Settings) -> None:
        gc.collect()
        self.alive_before = sum(each() is not None for each in Backbone.made)
        Backbone.made.append(weakref.ref(self))
        self.partner: Any = self  # a circle, as a trainer and its module make


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    drop_backbone()
    Backbone.made = []
    yield
    drop_backbone()


def use(size: int = 1, content: str = "abc", device: str = "cpu") -> Backbone:
    with backbone_of(spec(size, device, content)) as backbone:
        return backbone


def spec(size: int = 1, device: str = "cpu", content: str = "abc") -> Any:
    parts = {"backbone": Backbone, "method": Settings, "data": Settings, "protocol": Settings, "refine": Settings}
    rest = {name: Settings(name) for name in ("method", "data", "protocol", "refine")}
    cfg = TrialConfig(
        "mini", MetricConfig("slime"), TrainerConfig(device), backbone=Settings("toy", size), parts=parts, **rest
    )
    return SimpleNamespace(cfg=cfg, fingerprints={"backbone": content})


def test_the_same_one_again() -> None:
    assert use() is use() and len(Backbone.made) == 1


@pytest.mark.parametrize("other", [{"size": 2}, {"content": "def"}, {"device": "cuda"}])
def test_another_one_where_anything_differs_and_the_first_is_gone_by_then(other: dict[str, Any]) -> None:
    use()
    second = use(**other)
    assert len(Backbone.made) == 2 and second.alive_before == 0
    assert use(**other) is second


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_none_is_cached_from_a_trial_that_failed(error: type[BaseException]) -> None:
    with pytest.raises(error), backbone_of(spec()):
        raise error
    assert use().alive_before == 0 and len(Backbone.made) == 2

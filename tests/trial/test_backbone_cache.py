"""The backbone that is kept from trial to trial: the same one or a new one, never two, and none after a failure."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from omegaconf import DictConfig, OmegaConf

from slime_bench.trial import backbone_cache as warm


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
    warm.drop()
    Backbone.made = []
    yield
    warm.drop()


def use(size: int = 1, content: str = "abc", device: str = "cpu") -> Backbone:
    with warm.kept(node(size), OmegaConf.to_container(node(size)), content, device) as backbone:  # type: ignore[arg-type]
        return backbone


def node(size: int = 1) -> DictConfig:
    return OmegaConf.create({"_target_": f"{__name__}.Backbone", "name": "toy", "size": size})


def test_the_same_one_again() -> None:
    assert use() is use() and len(Backbone.made) == 1


@pytest.mark.parametrize("other", [{"size": 2}, {"content": "def"}, {"device": "cuda"}])
def test_another_one_where_anything_differs_and_the_first_is_gone_by_then(other: dict[str, Any]) -> None:
    use()
    second = use(**other)
    assert len(Backbone.made) == 2 and second.alive_before == 0
    assert use(**other) is second


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_none_is_kept_from_a_trial_that_failed(error: type[BaseException]) -> None:
    with pytest.raises(error), warm.kept(node(), {}, "abc", "cpu"):
        raise error
    assert use().alive_before == 0 and len(Backbone.made) == 2


def test_drop_frees_it() -> None:
    use()
    warm.drop()
    assert Backbone.made[0]() is None

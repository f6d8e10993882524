"""The trials of a command: each is identified once; which of them are fitted in one batch. Nothing is fitted here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slime_bench.config.compose import plan
from slime_bench.config.schema import TrialConfig
from slime_bench.sweep import trials as module
from slime_bench.sweep.trials import Trials
from slime_bench.trial import batching, checkpoint
from slime_bench.trial.batching import is_pending


def trial(seed: int, *overrides: str) -> TrialConfig:
    return plan([f"seed={seed}", "trainer=cpu", *overrides]).trials[0]


ANOTHER = ("preset=mini_infoscore",)
HALF = ("trainer.precision=fp16",)


@pytest.fixture
def identified(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Seeds of the trials that were identified, as they come; each is its own signature, and unfinished."""
    seeds: list[int] = []

    def spec_of(cfg: TrialConfig) -> Any:
        seeds.append(cfg.seed)
        name = str(cfg.seed)
        prints = {"data": "d", "backbone": "b"}
        return SimpleNamespace(cfg=cfg, fingerprints=prints, signature=name, folder=tmp_path / name)

    monkeypatch.setattr(module, "spec_of", spec_of)
    monkeypatch.setattr(module, "check", lambda spec: None)
    return seeds


@pytest.fixture
def candidates(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Signatures of the candidates of each batch; all of them are said to be fitted."""
    found: list[list[str]] = []

    def fit_batch(batch: Any, limit: int | None, begun: bool) -> dict[str, dict[str, Any]]:
        found.append([spec.signature for spec in batch])
        return {name: {"of": name} for name in found[-1]}

    monkeypatch.setattr(batching, "fit_batch", fit_batch)
    return found


class TestFittedAlone:
    def test_among_others(self, identified: list[int], candidates: list[list[str]]) -> None:
        trials = Trials([trial(0), trial(1, *ANOTHER), trial(2, *HALF), trial(3)], None)
        assert [trials.fitted(index) for index in range(4)] == [{"of": "0"}, None, None, {"of": "3"}]
        assert candidates == [["0", "3"]]

    def test_one_that_cannot_run_keeps_no_other_from_its_batch(
        self, identified: list[int], candidates: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The trial itself will say so."""

        def check(spec: Any) -> None:
            if spec.cfg.seed == 1:
                raise ValueError("it cannot")

        monkeypatch.setattr(module, "check", check)
        trials = Trials([trial(seed) for seed in range(3)], None)
        assert [trials.fitted(index) for index in range(3)] == [{"of": "0"}, None, {"of": "2"}]

    def test_where_batches_are_not_wanted(self, identified: list[int], candidates: list[list[str]]) -> None:
        trials = Trials([trial(0), trial(1)], 1)
        assert [trials.fitted(index) for index in range(2)] == [None, None] and identified == candidates == []


class TestCandidates:
    def test_each_is_identified_once(self, identified: list[int], candidates: list[list[str]]) -> None:
        sizes = (16, 8, 16, 8)
        trials = Trials([trial(seed, f"method.train_map_size={size}") for seed, size in enumerate(sizes)], None)
        assert [trials.fitted(index) for index in range(4)] == [{"of": str(index)} for index in range(4)]
        assert [trials.spec(index).cfg.seed for index in range(4)] == [0, 1, 2, 3]
        assert candidates == [["0", "2"], ["1", "3"]] and sorted(identified) == [0, 1, 2, 3]


def test_the_code_is_hashed_only_where_there_is_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec: Any = SimpleNamespace(cfg=trial(0), folder=tmp_path, signature="0" * 16)
    monkeypatch.setattr(batching, "origin_of", lambda _: pytest.fail("the code is hashed"))
    assert is_pending(spec)
    checkpoint.write(tmp_path / checkpoint.FILE, {}, {"signature": "mine"})
    assert is_pending(spec, begun=True)
    for name, pending in (("mine", False), ("another's", True)):
        monkeypatch.setattr(batching, "origin_of", lambda _, name=name: {"signature": name})
        assert is_pending(spec) == pending

"""Which trials of a command are fitted in one batch; nothing is fitted here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from slime_bench.config.compose import plan
from slime_bench.trial import batching as together
from slime_bench.trial import checkpoint
from slime_bench.trial.batching import Batches, is_pending

SLIME, VLM = "slime_bench.methods.slime.method.Slime", "slime_bench.methods.infoscore.method.InfoScore"


def trial(seed: int, target: str = SLIME, precision: str = "fp32", **method: Any) -> DictConfig:
    return OmegaConf.create(
        {"seed": seed, "force": False, "trainer": {"precision": precision}, "method": {"_target_": target, **method}}
    )


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Seeds of the trials that were identified, as they come; each is its own signature, and unfinished."""
    seeds: list[int] = []

    def identify(cfg: DictConfig, _: Any) -> Any:
        seeds.append(cfg.seed)
        name = str(cfg.seed)
        return SimpleNamespace(
            cfg=cfg, plain=OmegaConf.to_container(cfg), fingerprints={"data": "d", "backbone": "b"},
            signature=name, folder=tmp_path / name,
        )  # fmt: skip

    monkeypatch.setattr(together, "on_device", lambda cfg: cfg)
    monkeypatch.setattr(together, "prepared_data", lambda cfg: None)
    monkeypatch.setattr(together, "check", lambda known: None)
    monkeypatch.setattr(together, "identify", identify)
    return seeds


@pytest.fixture
def candidates(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Signatures of the candidates of each batch; all of them are said to be fitted."""
    found: list[list[str]] = []

    def fit_together(batch: Any, limit: int | None, begun: bool) -> dict[str, dict[str, Any]]:
        found.append([known.signature for known in batch])
        return {name: {"of": name} for name in found[-1]}

    monkeypatch.setattr(together, "fit_together", fit_together)
    return found


class TestFittedAlone:
    """What the configuration tells by itself is no reason to read data or weights."""

    def test_a_method_that_shares_no_pass_is_not_looked_at(self, looked_at: list[int]) -> None:
        trials = plan(["preset=mini_infoscore", "seed=0,1", "trainer=cpu"], sweep=True).trials
        batches = Batches(trials, None)
        assert [batches.fitted(index) for index in range(2)] == [None, None] and looked_at == []

    def test_half_precision_is_not_looked_at(self, looked_at: list[int], candidates: list[list[str]]) -> None:
        batches = Batches([trial(0, precision="fp16"), trial(1, precision="fp16")], None)
        assert [batches.fitted(index) for index in range(2)] == [None, None]
        assert looked_at == [] and candidates == []

    def test_nor_are_such_trials_among_others(self, looked_at: list[int], candidates: list[list[str]]) -> None:
        batches = Batches([trial(0), trial(1, VLM), trial(2, precision="fp16"), trial(3)], None)
        assert [batches.fitted(index) for index in range(4)] == [{"of": "0"}, None, None, {"of": "3"}]
        assert looked_at == [0, 3] and candidates == [["0", "3"]]

    @pytest.mark.parametrize("target", ["slime_bench.methods.slime.method.Slim", "no_such_package.Method", "", None])
    def test_a_method_that_cannot_be_loaded(
        self, looked_at: list[int], candidates: list[list[str]], target: Any
    ) -> None:
        """The trial itself will say so."""
        batches = Batches([trial(0, target), trial(1), trial(2, target), trial(3)], None)
        assert [batches.fitted(index) for index in range(4)] == [None, {"of": "1"}, None, {"of": "3"}]
        assert looked_at == [1, 3] and candidates == [["1", "3"]]


class TestCandidates:
    def test_each_trial_once_and_in_order(self, looked_at: list[int], candidates: list[list[str]]) -> None:
        batches = Batches([trial(seed) for seed in (2, 1, 2, 0, 1)], None)
        assert batches.fitted(0) == {"of": "2"} and candidates == [["2", "1", "0"]]
        assert batches.fitted(3) == {"of": "0"} and batches.fitted(1) == {"of": "1"}

    def test_the_kind_of_a_trial_is_found_out_once(
        self, looked_at: list[int], candidates: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen, real = [], together.kind

        def kind(known: Any) -> str | None:
            seen.append(known.cfg.seed)
            return real(known)

        monkeypatch.setattr(together, "kind", kind)
        sizes = (16, 8, 16, 8)
        batches = Batches([trial(seed, train_map_size=size) for seed, size in enumerate(sizes)], None)
        assert [batches.fitted(index) for index in range(4)] == [{"of": str(index)} for index in range(4)]
        assert candidates == [["0", "2"], ["1", "3"]]
        assert sorted(seen) == sorted(looked_at) == [0, 1, 2, 3]


def test_the_code_is_hashed_only_where_there_is_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known: Any = SimpleNamespace(cfg=trial(0), folder=tmp_path, signature="0" * 16)
    monkeypatch.setattr(together, "made_by", lambda _: pytest.fail("the code is hashed"))
    assert is_pending(known)
    checkpoint.write(tmp_path / checkpoint.FILE, {}, {"signature": "mine"})
    assert is_pending(known, begun=True)
    for name, pending in (("mine", False), ("another's", True)):
        monkeypatch.setattr(together, "made_by", lambda _, name=name: {"signature": name})
        assert is_pending(known) == pending

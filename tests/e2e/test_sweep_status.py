"""`slime-bench status`: what the folders say of a sweep, without running, loading or writing anything."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from slime_bench.backbones.stable_diffusion import StableDiffusionBackbone
from slime_bench.config.schema import MetricConfig
from slime_bench.lock import held
from slime_bench.results.result import write_result
from slime_bench.results.status import MISSING, TrialStatus
from slime_bench.sweep import launcher
from slime_bench.sweep import status as status_module
from slime_bench.trial import runner as trial
from tests.e2e.conftest import Bench, Outcome, command, contents
from tests.e2e.quick import Quick

SWEEP = ("shots=1", "seed=0,1")


@pytest.fixture(scope="module")
def done(tiny_sd: Path, car_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Two finished trials, seeds 0 and 1. Read only."""
    bench = Bench(tiny_sd, car_pictures, tmp_path_factory.mktemp("done"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "_compute", Quick())
        for seed in (0, 1):  # the files of a real trial that matter here
            assert bench(f"seed={seed}").code == 0
    return bench


@pytest.fixture
def bench(done: Bench, tmp_path: Path) -> Bench:
    shutil.copytree(done.outputs, tmp_path / "outputs")
    return replace(done, outputs=tmp_path / "outputs")


def status(bench: Bench, *overrides: str) -> Outcome:
    return command("status", *bench.settings, *overrides)


def states(bench: Bench, *overrides: str) -> list[dict[str, Any]]:
    outcome = status(bench, "--json", *overrides)
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    counted = {each["state"] for each in found["trials"]}
    assert set(found["count"]) == counted and sum(found["count"].values()) == len(found["trials"])
    return found["trials"]


class TestStates:
    def test_the_table(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        def loads(*_: object) -> None:
            raise AssertionError("status must load no weights")

        monkeypatch.setattr(StableDiffusionBackbone, "__init__", loads)
        facts = {"type": "DataError", "status": "failed", "summary": "a file went missing\nand more"}
        (bench.folder(1, 1) / "error.json").write_text(json.dumps(facts))
        (bench.folder(1, 1) / "result.json").unlink()
        before = contents(bench.outputs)
        rate = bench.result().config["method"]["lr"]
        outcome = status(bench, "shots=1", f"method.lr={rate},{2 * rate}", "seed=0,1")
        head, *rows = outcome.out.splitlines()
        assert outcome.code == 0 and head == "4 trials: 1 done, 1 failed, 2 missing"
        assert rows[0].split()[:7] == ["done", "slime", "tiny_car", "1-shot", "seed", "0", f"method.lr={rate}"]
        score = 100 * bench.result().average  # type: ignore[operator]
        assert rows[0].endswith(f"mIoU {score:.1f}")
        assert "failed" in rows[1] and rows[1].endswith("DataError: a file went missing")
        assert contents(bench.outputs) == before, "status must write nothing"

    def test_the_score_follows_the_metric_that_is_asked_for(self, bench: Bench) -> None:
        result = bench.result()
        for convention, background in product(result.conventions, (True, False)):
            found = states(bench, "seed=0", f"metric={convention}", f"metric.background={background}")
            score = result.under(convention, background).average
            assert score is not None and found[0]["detail"] == f"mIoU {100 * score:.1f}"
        scores = {100 * (table["average"] or 0) for table in result.conventions.values()}
        assert len({f"{score:.1f}" for score in scores}) > 1, "one number for all would show nothing"
        older = replace(result, conventions={"slime": result.conventions["slime"]})
        write_result(bench.folder(), older)
        assert [each["detail"] for each in states(bench, "seed=0", "metric=dataset")] == [""]

    def test_running_and_killed(self, bench: Bench) -> None:
        (bench.folder(1, 1) / "result.json").unlink()
        with held(bench.folder()):  # computed once more, by force
            found = states(bench, *SWEEP)
        assert [each["state"] for each in found] == ["running", "missing"]
        assert f"process {os.getpid()} on " in found[0]["detail"]
        child = os.fork()
        if child == 0:
            with held(bench.folder(1, 1)):
                os._exit(0)
        os.waitpid(child, 0)
        found = states(bench, *SWEEP)
        assert [each["state"] for each in found] == ["done", "killed"] and str(child) in found[1]["detail"]

    def test_a_trial_that_was_interrupted(self, tmp_path: Path) -> None:
        folder = tmp_path / "runs/a/b/1-shot/seed0-0123456789abcdef"
        folder.mkdir(parents=True)
        (folder / "error.json").write_text('{"type": "KeyboardInterrupt", "status": "interrupted", "summary": ""}')
        found = status_module.of_folder(folder, TrialStatus("", "b", "a", 1, 0, MISSING), MetricConfig("slime"))
        assert (found.state, found.detail) == ("killed", "interrupted")


class TestElsewhere:
    def test_a_trial_that_auto_ran_on_another_device(self, bench: Bench) -> None:
        """On the login node of a cluster `auto` is the CPU; the trials ran on the nodes' GPUs."""
        assert [each["state"] for each in states(bench, *SWEEP, "trainer=auto")] == ["done", "done"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(status_module, "pick_device", lambda name: "cuda")
            assert [each["state"] for each in states(bench, *SWEEP, "trainer=auto")] == ["done", "done"]
        assert [each["state"] for each in states(bench, *SWEEP, "trainer=cuda")] == ["missing", "missing"]

    @pytest.mark.parametrize("what", ["data.root", "backbone.weights"])
    def test_data_or_weights_that_are_not_here(self, bench: Bench, what: str, tmp_path: Path) -> None:
        outcome = status(bench, "seed=0,1,2", f"{what}={tmp_path / 'nowhere'}")
        head, first, second, third, note = outcome.out.splitlines()
        assert outcome.code == 0 and head == "3 trials: 2 done, 1 unknown"
        assert "mIoU" in first and "mIoU" in second and "nowhere" in third
        assert note.startswith("note: taken for this trial by its configuration alone: ")


@pytest.mark.parametrize(
    ("arguments", "trials", "composed"), [(("seed=0",), 1, 2), (("--multirun", "seed=0,1,2"), 3, 5)]
)
def test_a_configuration_is_composed_checked_and_identified_once(
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    trials: int,
    composed: int,
) -> None:
    """Beside the trials Hydra composes what tells it the mode, and of a sweep what tells it how it is swept."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    # Every key stands in a YAML file: for one that does not, Hydra is asked a second time.
    weights, data = f"backbone.weights={bench.sd}", f"data.root={bench.data}"
    listed = [weights, data, "data=pascal_part_car", "trainer=cpu", f"output_root={tmp_path / 'once'}"]
    listed.append("launcher.trials_per_batch=1")
    counts: Counter[str] = Counter()
    monkeypatch.setattr(trial, "_compute", Quick())
    for name, owner, attribute in (
        ("composed", ConfigLoaderImpl, "_load_configuration_impl"),
        ("checked", launcher, "validate"),
        ("identified", trial, "identify"),
    ):
        real = getattr(owner, attribute)

        def counted(*given: Any, name: str = name, real: Any = real, **named: Any) -> Any:
            counts[name] += 1
            return real(*given, **named)

        monkeypatch.setattr(owner, attribute, counted)
    assert command(*arguments, *listed).code == 0
    assert counts == {"composed": composed, "checked": trials, "identified": trials}

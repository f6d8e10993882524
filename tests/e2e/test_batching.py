"""Trials fitted in one batch: the sweep finds them, each result is that of the trial alone, and nothing is lost when
the batch fails or its process is killed."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from slime_bench.backbones.stable_diffusion import StableDiffusionBackbone
from slime_bench.config.compose import plan
from slime_bench.lock import held
from slime_bench.methods.batch import TrialBatch
from slime_bench.methods.slime.method import Slime
from slime_bench.sweep.trials import Trials
from slime_bench.trial import batching, checkpoint, resume, runner
from slime_bench.trial.batching import even_share
from slime_bench.trial.fitting import drop_backbone
from tests.e2e.conftest import Bench

FILES = ("result.json", "state.safetensors", "per_image.parquet", "curves.csv", "confusion.json")
SEEDS = (0, 1, 2)
SWEEP = ("--multirun", "seed=0,1,2")


class Killed(BaseException):
    """Stands in for the end of the process: nothing in the bench catches it."""


@pytest.fixture
def empty(tiny_sd: Path, car_pictures: Path, tmp_path: Path) -> Bench:
    return Bench(tiny_sd, car_pictures, tmp_path / "outputs")


@pytest.fixture(scope="module")
def batched(tiny_sd: Path, car_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Three trials of 1 shot that were fitted in one batch. Read only."""
    bench = Bench(tiny_sd, car_pictures, tmp_path_factory.mktemp("batched"))
    outcome = bench(*SWEEP, "method.epochs=6")
    assert outcome.code == 0 and "in one batch" not in outcome.err, outcome.err
    return bench


@pytest.fixture(scope="module")
def alone(tiny_sd: Path, car_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The same trials, each fitted by itself. Read only."""
    bench = Bench(tiny_sd, car_pictures, tmp_path_factory.mktemp("alone"))
    assert bench(*SWEEP, "method.epochs=6", "launcher.trials_per_batch=1").code == 0
    return bench


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many trials each fit of a batch had, as they come."""
    found: list[int] = []
    real = batching._fit

    def watched(batch: Any, *rest: Any) -> Any:
        found.append(len(batch))
        return real(batch, *rest)

    monkeypatch.setattr(batching, "_fit", watched)
    return found


def environment(bench: Bench, seed: int, shots: int = 1) -> dict[str, Any]:
    return json.loads((bench.folder(shots, seed) / "environment.json").read_text())  # type: ignore[no-any-return]


def curve(bench: Bench, seed: int) -> list[dict[str, str]]:
    with (bench.folder(1, seed) / "curves.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def contents(bench: Bench) -> dict[str, bytes]:
    return {
        f"{path.name}/{name}": (path / name).read_bytes()
        for path in sorted(bench.outputs.glob("runs/*/*/*/seed*"))
        for name in FILES
    }


class TestNumbers:
    def test_each_trial_is_the_trial_alone(self, batched: Bench, alone: Bench) -> None:
        for seed in SEEDS:
            one, other = batched.result(1, seed), alone.result(1, seed)
            assert (one.signature, one.support_ids) == (other.signature, other.support_ids)
            ours, theirs = (
                load_file(each.folder(1, seed) / "state.safetensors")["embeddings"] for each in (batched, alone)
            )
            # Adam divides a gradient by its own size. Where that is within rounding of zero, an element may
            # take its step in the other direction; but such elements are few.
            distance = (ours - theirs).abs()
            assert (distance < 5e-3).float().mean() > 0.9 and distance.median() < 1e-4

            rows = list(zip(curve(batched, seed), curve(alone, seed), strict=True))
            assert len(rows) == 6
            for row, same in rows:
                assert row.keys() == same.keys()
                exact = ("step", "epoch", "train/t", "train/lr")
                assert [row[name] for name in exact] == [same[name] for name in exact]
                # Before Adam's first step there is rounding alone; later, what it made of the smallest gradients.
                bar = 1e-4 if row is rows[0][0] else 1e-2
                for name in ("train/loss", "train/was", "train/cross_entropy", "train/diffusion"):
                    assert float(row[name]) == pytest.approx(float(same[name]), rel=bar)
        assert len({row["train/t"] for seed in SEEDS for row in curve(batched, seed)}) > 6

    def test_the_trials_say_with_whom_they_were_fitted(self, batched: Bench, alone: Bench) -> None:
        signatures = [batched.result(1, seed).signature for seed in SEEDS]
        for seed in SEEDS:
            assert environment(batched, seed)["batch"] == signatures
            assert environment(batched, seed)["seconds"]["fit"] > 0
            assert environment(alone, seed)["batch"] == []
        assert list(batched.outputs.rglob("*.pt")) == [], "no checkpoint is left"


class TestWhichTrials:
    def test_shots_are_kept_apart_and_validation_is_each_ones_own(self, empty: Bench, fits: list[int]) -> None:
        assert empty("--multirun", "seed=0,1", "shots=1,2", "data.validation=val", "data.passes_per_epoch=1").code == 0
        assert fits == [2, 2]
        for shots in (1, 2):
            for seed in (0, 1):
                assert empty.result(shots, seed).validation["epoch"] in (0, 1)
                assert len(environment(empty, seed, shots)["batch"]) == 2

    @pytest.mark.parametrize(("count", "limit", "first"), [(3, 4, 3), (4, 3, 2), (7, 3, 3), (5, 1, 1), (1, 8, 1)])
    def test_even_shares(self, count: int, limit: int, first: int) -> None:
        assert even_share(count, limit) == first

    def test_a_trial_that_another_process_computes(self, empty: Bench, fits: list[int]) -> None:
        trials = Trials(plan([*empty.settings, "seed=0,1,2"], sweep=True).trials, None)
        with held(trials.spec(1).folder):
            assert trials.fitted(0) is not None and fits == [2]
            assert trials.fitted(1) is None and trials.fitted(2) is not None

    def test_a_bad_limit(self, empty: Bench) -> None:
        outcome = empty(*SWEEP, "launcher.trials_per_batch=0")
        assert outcome.code == 2 and "launcher.trials_per_batch" in outcome.err and not empty.outputs.exists()


def test_force_computes_all_again_and_the_test_images_are_encoded_for_the_first_trial_alone(
    empty: Bench, batched: Bench, fits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    encode, test_step = StableDiffusionBackbone._posterior, Slime.test_step

    def tested(self: Slime, *arguments: Any) -> None:
        def counted(backbone: StableDiffusionBackbone, images: torch.Tensor) -> Any:
            calls.append(self.seed)
            return encode(backbone, images)

        with monkeypatch.context() as patch:
            patch.setattr(StableDiffusionBackbone, "_posterior", counted)
            test_step(self, *arguments)

    monkeypatch.setattr(Slime, "test_step", tested)
    drop_backbone()  # another test's backbone knows the images
    shutil.copytree(batched.outputs, empty.outputs)
    assert empty(*SWEEP, "method.epochs=6", "force=true").code == 0 and fits == [3]
    assert calls == [0, 0, 0]  # five images, two at a time
    assert contents(empty) == contents(batched)


class TestFaults:
    def test_a_batch_that_fails_leaves_each_trial_to_itself(
        self, empty: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: Any) -> Any:
            raise torch.OutOfMemoryError("the GPU is full")

        monkeypatch.setattr(TrialBatch, "training_step", fails)
        outcome = empty("--multirun", "seed=0,1")
        assert outcome.code == 0 and "2 of 2 trials finished" in outcome.err
        assert all(environment(empty, seed)["batch"] == [] for seed in (0, 1))

    def test_a_trial_that_fails_after_the_fit_fails_alone(self, empty: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        real = Slime.scores

        def sometimes(self: Slime, images: torch.Tensor, ids: Any) -> torch.Tensor:
            if self.seed == 1:
                raise RuntimeError("no more")
            return real(self, images, ids)

        monkeypatch.setattr(Slime, "scores", sometimes)
        assert empty(*SWEEP).code == 1
        assert [(empty.folder(1, seed) / "result.json").exists() for seed in SEEDS] == [True, False, True]
        monkeypatch.undo()
        monkeypatch.setattr(TrialBatch, "training_step", lambda *_: pytest.fail("the fit is repeated"))
        monkeypatch.setattr(Slime, "training_step", lambda *_: pytest.fail("the fit is repeated"))
        assert empty(*SWEEP).code == 0
        assert len(environment(empty, 1)["batch"]) == 3


class TestKilled:
    """What a killed process leaves; the next one ends with the bytes of an undisturbed sweep."""

    @pytest.fixture(autouse=True)
    def no_thrift(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(resume, "SHARE", float("inf"))
        yield

    @pytest.fixture
    def run(self, empty: Bench) -> Callable[..., Any]:
        settings = [*empty.settings, "method.epochs=6", "trainer.checkpoint_every=2"]
        trials = plan([*settings, "seed=0,1,2"], sweep=True).trials

        def once(indices: range = range(3)) -> None:
            own = Trials(trials, None)
            for index in indices:
                runner.run(own.spec(index), own.fitted(index))

        return once

    @pytest.mark.parametrize("damaged", [False, True])
    def test_in_the_fit(
        self, empty: Bench, batched: Bench, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, damaged: bool
    ) -> None:
        real, began = TrialBatch.training_step, []

        def dies(self: TrialBatch, *arguments: Any) -> torch.Tensor:
            if self.trainer.global_step == 3:
                raise Killed
            return real(self, *arguments)

        def goes_on(self: TrialBatch, *arguments: Any) -> torch.Tensor:
            began.append(self.trainer.global_step)
            return real(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(TrialBatch, "training_step", dies)
            with pytest.raises(Killed):
                run()
        if damaged:
            (found,) = empty.outputs.glob(f"runs/*/*/*/*/{checkpoint.BATCH_FILE}")
            found.write_bytes(found.read_bytes()[:1000])
        monkeypatch.setattr(TrialBatch, "training_step", goes_on)
        run()
        assert began == ([0, 1, 2, 3, 4, 5] if damaged else [2, 3, 4, 5])
        assert contents(empty) == contents(batched)

    def test_while_the_batch_hands_over(
        self, empty: Bench, batched: Bench, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, written = checkpoint.write, []

        def dies(path: Path, *arguments: Any) -> None:
            if path.name == checkpoint.FILE:
                if written:
                    raise Killed
                written.append(path)
            real(path, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "write", dies)
            with pytest.raises(Killed):
                run()
        monkeypatch.setattr(TrialBatch, "training_step", lambda *_: pytest.fail("the fit is repeated"))
        run()
        assert contents(empty) == contents(batched)

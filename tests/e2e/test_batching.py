"""Trials fitted in one batch: the sweep finds them, each result is that of the trial alone, and nothing is lost when
the batch fails or its process is killed."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
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
from slime_bench.sweep.trials import Trials, kind
from slime_bench.trial import backbone_cache, batching, checkpoint, resume, runner
from slime_bench.trial.batching import even_share
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


def curve(bench: Bench, seed: int, file: str = "curves.csv") -> list[dict[str, str]]:
    with (bench.folder(1, seed) / file).open(newline="") as stream:
        return list(csv.DictReader(stream))


def merged(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """One row for each step: Lightning logs a step in several."""
    steps: dict[str, dict[str, str]] = {}
    for row in rows:
        steps.setdefault(row["step"], {}).update({name: value for name, value in row.items() if value})
    return list(steps.values())


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

    def test_the_timesteps_are_exactly_its_own_and_the_losses_agree(self, batched: Bench, alone: Bench) -> None:
        for seed in SEEDS:
            rows = list(zip(curve(batched, seed), curve(alone, seed), strict=True))
            assert len(rows) == 6
            for ours, theirs in rows:
                assert ours.keys() == theirs.keys()
                exact = ("step", "epoch", "train/t", "train/lr")
                assert [ours[name] for name in exact] == [theirs[name] for name in exact]
                # Before Adam's first step there is rounding alone; later, what it made of the smallest gradients.
                bar = 1e-4 if ours is rows[0][0] else 1e-2
                for name in ("train/loss", "train/was", "train/cross_entropy", "train/diffusion"):
                    assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=bar)
        assert len({row["train/t"] for seed in SEEDS for row in curve(batched, seed)}) > 6

    def test_the_trials_say_with_whom_they_were_fitted(self, batched: Bench, alone: Bench) -> None:
        signatures = [batched.result(1, seed).signature for seed in SEEDS]
        for seed in SEEDS:
            assert environment(batched, seed)["batch"] == signatures
            assert environment(batched, seed)["seconds"]["fit"] > 0
            assert environment(alone, seed)["batch"] == []

    def test_no_checkpoint_and_no_other_file_is_left(self, batched: Bench, alone: Bench) -> None:
        names = [
            sorted(
                path.relative_to(each.outputs).as_posix() for path in each.outputs.glob("runs/**/*") if path.is_file()
            )
            for each in (batched, alone)
        ]
        assert names[0] == names[1]

    def test_loggers_get_the_curve_of_each(self, tiny_sd: Path, car_pictures: Path, tmp_path: Path) -> None:
        rows = []
        for name, limit in (("one", 1), ("batch", "auto")):
            bench = Bench(tiny_sd, car_pictures, tmp_path / name)
            assert bench("--multirun", "seed=0,1", "logger=csv", f"launcher.trials_per_batch={limit}").code == 0
            rows.append([curve(bench, seed, "log/metrics.csv") for seed in (0, 1)])
        for ours, theirs in (map(merged, each) for each in zip(*rows, strict=True)):
            assert [row["step"] for row in ours] == [row["step"] for row in theirs] and len(ours) == 2
            for one, other in zip(ours, theirs, strict=True):
                assert one.keys() == other.keys() and "train/lr" in one
                assert float(one["train/t"]) == float(other["train/t"])


class TestWhichTrials:
    def test_shots_are_kept_apart_and_validation_is_each_ones_own(self, empty: Bench, fits: list[int]) -> None:
        assert empty("--multirun", "seed=0,1", "shots=1,2", "data.validation=val", "data.passes_per_epoch=1").code == 0
        assert fits == [2, 2]
        for shots in (1, 2):
            for seed in (0, 1):
                assert empty.result(shots, seed).validation["epoch"] in (0, 1)
                assert len(environment(empty, seed, shots)["batch"]) == 2

    def test_points_of_an_ablation_that_the_pass_does_not_depend_on(self, empty: Bench, fits: list[int]) -> None:
        points = ("method.lr=0.1,0.01", "method.loss_weights.beta=0.005,0", "method.t_test=50")
        assert empty("--multirun", *points).code == 0 and fits == [4]
        rates = set()
        for path in empty.outputs.glob("runs/*/*/*/seed*/curves.csv"):
            with path.open(newline="") as stream:
                rates |= {row["train/lr"] for row in csv.DictReader(stream)}
        assert rates == {"0.1", "0.01"}

    def test_points_that_it_depends_on_are_kept_apart(self, empty: Bench, fits: list[int]) -> None:
        assert empty("--multirun", "seed=0,1", "method.train_map_size=16,8").code == 0 and fits == [2, 2]

    def test_a_limit(self, empty: Bench, fits: list[int]) -> None:
        assert empty("--multirun", "seed=0,1,2,3", "launcher.trials_per_batch=3").code == 0
        assert fits == [2, 2]  # of about one size

    @pytest.mark.parametrize(
        ("count", "limit", "first"), [(3, 4, 3), (6, 4, 3), (8, 3, 3), (7, 3, 3), (5, 1, 1), (1, 8, 1)]
    )
    def test_even_shares(self, count: int, limit: int, first: int) -> None:
        assert even_share(count, limit) == first

    def test_finished_and_begun_trials_are_left_alone(self, empty: Bench, fits: list[int]) -> None:
        assert empty("seed=1").code == 0 and fits == []
        before = (empty.folder(1, 1) / "result.json").stat().st_mtime_ns
        assert empty(*SWEEP).code == 0 and fits == [2]
        assert (empty.folder(1, 1) / "result.json").stat().st_mtime_ns == before

    def test_force_computes_all_of_them_again(self, empty: Bench, fits: list[int]) -> None:
        assert empty(*SWEEP).code == 0
        first = contents(empty)
        assert empty(*SWEEP, "force=true").code == 0 and fits == [3, 3]
        assert contents(empty) == first

    def test_without_checkpoints(self, empty: Bench, fits: list[int]) -> None:
        assert empty(*SWEEP, "trainer.checkpoint_every=0").code == 0 and fits == [3]

    def test_a_trial_that_another_process_computes(self, empty: Bench, fits: list[int]) -> None:
        trials = Trials(plan([*empty.settings, "seed=0,1,2"], sweep=True).trials, None)
        with held(trials.spec(1).folder):
            assert trials.fitted(0) is not None and fits == [2]
            assert trials.fitted(1) is None and trials.fitted(2) is not None

    def test_methods_that_cannot_share_a_pass(self) -> None:
        trials = Trials(plan(["preset=mini_infoscore", "seed=0,1", "trainer=cpu"], sweep=True).trials, None)
        assert kind(trials.spec(0)) is None and trials.fitted(0) is None

    def test_half_precision_has_a_scale_of_its_own(self, empty: Bench) -> None:
        (cfg,) = plan(empty.settings).trials
        spec = runner.spec_of(cfg)
        assert kind(spec) is not None
        assert kind(replace(spec, cfg=cfg.replace(trainer={"precision": "fp16"}))) is None

    @pytest.mark.parametrize("limit", ["none", "0", "-1", "1.5", "''"])
    def test_bad_limits(self, empty: Bench, limit: str) -> None:
        outcome = empty(*SWEEP, f"launcher.trials_per_batch={limit}")
        assert outcome.code == 2 and "launcher.trials_per_batch" in outcome.err and not empty.outputs.exists()


def test_the_test_images_are_encoded_for_the_first_trial_alone(empty: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
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
    backbone_cache.drop()  # another test's backbone knows the images
    assert empty(*SWEEP).code == 0
    assert calls == [0, 0, 0]  # five images, two at a time


class TestFaults:
    def test_a_batch_that_fails_leaves_each_trial_to_itself(
        self, empty: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: Any) -> Any:
            raise torch.OutOfMemoryError("the GPU is full")

        monkeypatch.setattr(TrialBatch, "training_step", fails)
        outcome = empty(*SWEEP)
        assert outcome.code == 0 and "3 of 3 trials finished" in outcome.err
        assert all(environment(empty, seed)["batch"] == [] for seed in SEEDS)

    def test_a_trial_with_a_mistake_does_not_spoil_the_others(self, empty: Bench, fits: list[int]) -> None:
        outcome = empty("--multirun", "method.t_test=50,100,5000")
        assert outcome.code == 1 and fits == [2] and "test timestep outside the schedule" in outcome.err
        assert len(list(empty.outputs.glob("runs/**/result.json"))) == 2

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
        fit = TrialBatch.training_step
        monkeypatch.setattr(TrialBatch, "training_step", lambda *_: pytest.fail("the fit is repeated"))
        monkeypatch.setattr(Slime, "training_step", lambda *_: pytest.fail("the fit is repeated"))
        assert empty(*SWEEP).code == 0 and fit is not None
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

    @pytest.fixture
    def die_at(self, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
        """Runs the sweep in a process that ends at a step of the batch's fit."""
        real = TrialBatch.training_step

        def once(step: int) -> None:
            def dies(self: TrialBatch, *arguments: Any) -> torch.Tensor:
                if self.trainer.global_step == step:
                    raise Killed
                return real(self, *arguments)

            with monkeypatch.context() as patch:
                patch.setattr(TrialBatch, "training_step", dies)
                with pytest.raises(Killed):
                    run()

        return once

    @pytest.mark.parametrize("step", [0, 1, 3, 5])
    def test_in_the_fit(
        self,
        empty: Bench,
        batched: Bench,
        run: Callable[..., Any],
        die_at: Callable[[int], None],
        monkeypatch: pytest.MonkeyPatch,
        step: int,
    ) -> None:
        real, began = TrialBatch.training_step, []

        def goes_on(self: TrialBatch, *arguments: Any) -> torch.Tensor:
            began.append(self.trainer.global_step)
            return real(self, *arguments)

        die_at(step)
        monkeypatch.setattr(TrialBatch, "training_step", goes_on)
        run()
        assert began == list(range(step // 2 * 2, 6))
        assert contents(empty) == contents(batched)

    @pytest.mark.parametrize("written", [0, 1, 2])
    def test_while_the_batch_hands_over(
        self, empty: Bench, batched: Bench, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, written: int
    ) -> None:
        real, count = checkpoint.write, 0

        def dies(path: Path, *arguments: Any) -> None:
            nonlocal count
            if path.name == checkpoint.FILE:
                if count == written:
                    raise Killed
                count += 1
            real(path, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "write", dies)
            with pytest.raises(Killed):
                run()
        monkeypatch.setattr(TrialBatch, "training_step", lambda *_: pytest.fail("the fit is repeated"))
        run()
        assert contents(empty) == contents(batched)

    def test_in_the_test_of_a_trial(
        self, empty: Bench, batched: Bench, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = Slime.test_step

        def dies(self: Slime, *arguments: Any) -> None:
            if self.seed == 1:
                raise Killed
            real(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Slime, "test_step", dies)
            with pytest.raises(Killed):
                run()
        monkeypatch.setattr(TrialBatch, "training_step", lambda *_: pytest.fail("the fit is repeated"))
        monkeypatch.setattr(Slime, "training_step", lambda *_: pytest.fail("the fit is repeated"))
        run()
        assert contents(empty) == contents(batched)

    def test_a_damaged_checkpoint_of_the_batch(
        self, empty: Bench, batched: Bench, run: Callable[..., Any], die_at: Callable[[int], None]
    ) -> None:
        die_at(5)
        (found,) = empty.outputs.glob(f"runs/*/*/*/*/{checkpoint.BATCH_FILE}")
        found.write_bytes(found.read_bytes()[:1000])
        run()
        assert contents(empty) == contents(batched)

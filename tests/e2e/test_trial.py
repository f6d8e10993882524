"""One trial through the command line: its files, its reproducibility, its reuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from slime_bench.metrics.iou import CONVENTIONS
from slime_bench.results.artifacts import read_confusion, read_curves, read_qualitative
from slime_bench.results.result import read_per_image
from slime_bench.trial import runner as trial
from tests.e2e.conftest import SIDE, SPLITS, Bench, Outcome, contents
from tests.e2e.quick import Quick
from tests.e2e.quick import quick as quick

FILES = {
    "config.yaml",
    "result.json",
    "per_image.parquet",
    "state.safetensors",
    "environment.json",
    "qualitative.npz",
    "curves.csv",
    "confusion.json",
}


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Shots and seed of the trials that are computed and not read from their file."""
    ran: list[tuple[int, int]] = []
    real = trial._compute

    def counted(spec, *arguments):  # type: ignore[no-untyped-def]
        ran.append((spec.cfg.shots, spec.cfg.seed))
        return real(spec, *arguments)

    monkeypatch.setattr(trial, "_compute", counted)
    return ran


class TestFiles:
    def test_all_of_them_and_no_other(self, swept: tuple[Bench, Outcome]) -> None:
        assert set(contents(swept[0].folder())) == FILES

    def test_the_result_follows_from_the_counts_per_image(self, swept: tuple[Bench, Outcome]) -> None:
        bench = swept[0]
        result = bench.result()
        ids, classes, counts = read_per_image(bench.folder() / "per_image.parquet")
        assert ids == [f"car-test-{index}" for index in range(SPLITS["test"])] and classes == result.classes
        assert result.num_test_images == SPLITS["test"]
        for name, reduce in CONVENTIONS.items():
            values = dict(zip(classes, reduce(counts).tolist(), strict=True))
            stored = result.conventions[name]["per_class"]
            assert {key: pytest.approx(value, abs=1e-12, nan_ok=True) for key, value in values.items()} == {
                key: float("nan") if value is None else value for key, value in stored.items()
            }

    def test_the_confusion_matrix_agrees_with_the_counts_per_image(self, swept: tuple[Bench, Outcome]) -> None:
        folder = swept[0].folder()
        classes, pixels = read_confusion(folder / "confusion.json")
        _, names, counts = read_per_image(folder / "per_image.parquet")
        assert classes == names
        assert pixels.diagonal().tolist() == counts.intersection.sum(0).tolist()
        assert (pixels.sum(0) + pixels.sum(1) - pixels.diagonal()).tolist() == counts.union.sum(0).tolist()
        assert pixels.sum() == SPLITS["test"] * SIDE**2

    def test_the_curves_have_every_step(self, swept: tuple[Bench, Outcome]) -> None:
        curves = read_curves(swept[0].folder() / "curves.csv")
        assert {"train/loss", "train/lr", "train/t", "train/cross_entropy"} <= set(curves)
        steps, losses = curves["train/loss"]
        assert steps == [0, 1] and losses[0] != losses[1]
        assert len(curves["train/lr"][0]) == 2 and "test" not in " ".join(curves)

    def test_the_pictures_are_the_first_test_images(self, swept: tuple[Bench, Outcome]) -> None:
        items, classes = read_qualitative(swept[0].folder() / "qualitative.npz")
        assert [item.image_id for item in items] == [f"car-test-{index}" for index in range(3)]
        assert list(classes) == swept[0].result().classes
        # Else the tests of reproducibility below would compare constants.
        assert len({int(value) for item in items for value in item.prediction.flat}) > 2

    def test_no_path_of_the_machine_in_the_result(self, swept: tuple[Bench, Outcome]) -> None:
        text = (swept[0].folder() / "result.json").read_text()
        assert [part for part in (swept[0].sd, swept[0].data, swept[0].outputs) if str(part) in text] == []

    def test_the_environment_is_recorded_beside_the_result(self, swept: tuple[Bench, Outcome]) -> None:
        facts = json.loads((swept[0].folder() / "environment.json").read_text())
        assert facts["packages"]["torch"] and facts["seconds"]["fit"] > 0


class TestReproducibility:
    def test_the_same_seed_gives_the_same_bytes(self, finished: Bench, computed: list[tuple[int, int]]) -> None:
        """By force, and with the images loaded by other processes."""
        names = ("result.json", "per_image.parquet", "curves.csv", "confusion.json", "state.safetensors")
        before = [(finished.folder() / name).read_bytes() for name in names[:-1]]
        state = load_file(finished.folder() / names[-1])["embeddings"]
        assert finished("force=true", "data.num_workers=2").code == 0 and computed == [(1, 0)]
        assert [(finished.folder() / name).read_bytes() for name in names[:-1]] == before
        assert load_file(finished.folder() / names[-1])["embeddings"].equal(state)

    def test_another_seed_gives_another_result(self, swept: tuple[Bench, Outcome]) -> None:
        bench = swept[0]
        states = [load_file(bench.folder(1, seed) / "state.safetensors")["embeddings"] for seed in (0, 1)]
        assert not states[0].equal(states[1])
        assert bench.result(1, 0).per_class != bench.result(1, 1).per_class
        assert bench.result(1, 0).series == bench.result(1, 1).series

    def test_a_process_of_its_own_gives_the_same_bytes(
        self, swept: tuple[Bench, Outcome], tmp_path: Path, repository: Path
    ) -> None:
        bench = Bench(swept[0].sd, swept[0].data, tmp_path / "elsewhere")
        line = [sys.executable, "-m", "slime_bench.cli", *bench.settings, "trainer.threads=1", "trainer.progress=true"]
        environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
        run = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
        assert run.returncode == 0, run.stderr
        assert (bench.folder() / "result.json").read_bytes() == (swept[0].folder() / "result.json").read_bytes()
        assert "already finished" not in run.stderr
        assert "fit" in run.stderr and "test" in run.stderr and "mIoU" in run.stderr  # progress can be seen
        # What the libraries have to say is not what a newcomer should read first.
        noise = ("GPU available", "accelerate", "litlogger", "Loading weights", "Warning")
        assert [word for word in noise if word in run.stderr] == [], run.stderr


class TestReuse:
    def test_a_finished_trial_is_not_run_again_and_says_so(
        self, finished: Bench, computed: list[tuple[int, int]], caplog: pytest.LogCaptureFixture
    ) -> None:
        before = contents(finished.folder())
        with caplog.at_level("INFO", "slime_bench"):
            assert finished().code == 0 and finished("metric=dataset").code == 0 and computed == []
        assert "already finished" in caplog.text and str(finished.folder()) in caplog.text
        assert contents(finished.folder()) == before

    def test_other_data_at_the_same_place_is_another_trial(self, finished: Bench, quick: Quick) -> None:
        label = finished.data / "test" / "labels" / "car-test-0.png"
        label.write_bytes((finished.data / "test" / "labels" / "car-test-1.png").read_bytes())
        assert finished().code == 0 and quick.computed == [(1, 0)]
        assert len(list((finished.outputs / "runs/tiny_car/slime/1-shot").glob("seed0-*"))) == 2


def test_the_bench_of_methods_measures_trials_in_processes_of_their_own(
    tiny_sd: Path, car_pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from slime_bench.bench import methods

    pictures = ["data=pascal_part_car", "data.name=tiny_car", f"data.root={car_pictures}", f"data.image_size={SIDE}"]
    small = [*pictures, f"backbone.weights={tiny_sd}", f"backbone.image_size={SIDE}", "trainer=cpu"]
    chosen = ["--methods", "feature_knn", "--shots", "1", "--threads", "1"]
    assert methods.main([*small, *chosen, "--out", str(tmp_path)]) == 0
    assert "| feature_knn | 1" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "methods_cpu.json").read_text())["rows"]
    assert row["images"] == SPLITS["test"] and row["fit"] > 0 and row["test"] > 0 and row["peak"] > 10**8

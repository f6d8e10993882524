"""Several trials: one failure leaves the others alone, a repetition runs what is missing, reports read the files."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from slime_bench.backbones.stable_diffusion import StableDiffusionBackbone
from slime_bench.trial import runner as trial
from slime_bench.trial.fitting import drop_backbone
from tests.e2e.conftest import FAILING, Bench, Outcome, command, contents
from tests.e2e.quick import Quick
from tests.e2e.quick import quick as quick


def products(bench: Bench) -> dict[str, bytes]:
    """What a trial computes, as files; the environment says when and how fast."""
    found = contents(bench.outputs / "runs")
    kinds = ("result.json", ".parquet", ".safetensors", ".npz")
    return {name: found[name] for name in found if name.endswith(kinds)}


class TestSweep:
    def test_the_other_trials_finished(self, swept: tuple[Bench, Outcome]) -> None:
        bench, outcome = swept
        assert outcome.code == 1
        done = {path.parent.name.split("-")[0] + path.parent.parent.name for path in bench.outputs.rglob("result.json")}
        assert done == {"seed01-shot", "seed11-shot", "seed02-shot"}
        summary = outcome.err[outcome.err.index("3 of 4 trials finished, 1 failed") :]
        assert "shots=2 seed=1" in summary and "some/image.png" in summary and "put it back" in summary
        assert "Traceback" not in outcome.err

    def test_the_failure_is_recorded_in_its_folder(self, swept: tuple[Bench, Outcome]) -> None:
        folder = swept[0].folder(*FAILING)
        facts = json.loads((folder / "error.json").read_text())
        assert facts["type"] == "DataError" and facts["summary"] == "a file went missing"
        assert "some/image.png" in facts["message"] and "Traceback" in facts["traceback"]
        assert facts["facts"] == swept[0].result().facts
        assert (folder / "config.yaml").is_file() and not (folder / "result.json").exists()

    def test_the_same_command_runs_only_what_is_missing(self, finished: Bench, quick: Quick) -> None:
        assert finished("--multirun", "shots=1,2", "seed=0,1").code == 0
        assert quick.computed == [FAILING]
        assert (finished.folder(*FAILING) / "result.json").is_file()
        assert not (finished.folder(*FAILING) / "error.json").exists()

    def test_a_one_shot_trials_image_is_the_first_of_the_two_shots(self, swept: tuple[Bench, Outcome]) -> None:
        one, two = (swept[0].result(shots).support_ids for shots in (1, 2))
        assert (len(one), len(two)) == (1, 2) and two[:1] == one

    @pytest.mark.parametrize("error", [ZeroDivisionError("by nothing"), KeyboardInterrupt()])
    def test_an_unexpected_end_is_recorded_and_pointed_to(
        self, finished: Bench, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        def fails(*_: object) -> None:
            raise error

        monkeypatch.setattr(trial, "_compute", fails)
        outcome = finished("shots=3")
        facts = json.loads((finished.folder(3) / "error.json").read_text())
        assert facts["type"] == type(error).__name__
        if isinstance(error, KeyboardInterrupt):
            assert outcome.code == 130 and "interrupted" in outcome.err
        else:
            assert (
                outcome.code == 1
                and "by nothing" in outcome.err
                and str(finished.folder(3) / "error.json") in outcome.err
            )


class TestProcesses:
    def test_one_backbone_is_loaded_for_a_sweep_and_gives_the_numbers_of_a_fresh_one(
        self, swept: tuple[Bench, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench = replace(swept[0], outputs=tmp_path)
        loaded: list[str] = []
        real = StableDiffusionBackbone.__init__

        def counted(self: StableDiffusionBackbone, config: StableDiffusionBackbone.Config) -> None:
            loaded.append(config.name)
            real(self, config)

        monkeypatch.setattr(StableDiffusionBackbone, "__init__", counted)
        drop_backbone()
        assert bench("--multirun", "seed=1,0", "launcher.trials_per_batch=1").code == 0 and loaded == ["mini_sd"]
        # In the other order: the first trial of each sweep had a fresh backbone, the second had not.
        assert products(bench) == {name: content for name, content in products(swept[0]).items() if "/1-shot/" in name}

    @pytest.mark.release
    def test_the_workers_of_joblib_give_the_same_bytes(
        self, swept: tuple[Bench, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The real trials; what else launchers have to do is in tests/sweep/test_launchers.py."""
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        bench = replace(swept[0], outputs=tmp_path / "outputs")
        outcome = bench("--multirun", "seed=0,1", "launcher=joblib", "launcher.jobs=1", "trainer.threads=1")
        assert outcome.code == 0, outcome.err
        assert "[2/2] done      seed=1  mIoU" in outcome.err and "2 of 2 trials finished" in outcome.err
        assert products(bench) == {name: content for name, content in products(swept[0]).items() if "/1-shot/" in name}
        again = bench("--multirun", "seed=0,1")
        assert again.code == 0 and "2 of 2 trials finished (2 before)" in again.err


def test_the_report_of_what_is_there(finished: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # no line is folded
    before = contents(finished.outputs / "runs")
    arguments = ["--outputs", str(finished.outputs), "--subject", "car", "--shots", "1,2", "--seeds", "0,1"]
    outcome = command("report", *arguments)
    assert outcome.code == 0, outcome.err
    assert contents(finished.outputs / "runs") == before, "a report changes no trial"
    folder = finished.outputs / "reports/car"
    ours = {row["shots"]: row for row in json.loads((folder / "table.json").read_text()) if not row["published"]}
    assert {key: (row["n"], row["seeds"]) for key, row in ours.items()} == {1: (2, [0, 1]), 2: (1, [0])}
    names = ("method", "backbone", "data", "preset", "protocol", "convention")
    assert [ours[1][name] for name in names] == ["slime", "mini_sd", "tiny_car", "mini", "slime_mini", "slime"]
    averages = [100 * finished.result(1, seed).average for seed in (0, 1)]  # type: ignore[operator]
    expected = {"mean": statistics.mean(averages), "std": statistics.stdev(averages)}
    assert ours[1]["average"] == pytest.approx(expected, abs=1e-9) and ours[2]["average"]["std"] is None
    text = (folder / "table.md").read_text()
    for page in (text, outcome.out):
        plain = re.sub(r"\\(.)", r"\1", page)
        (line,) = [each for each in plain.splitlines() if "MISSING TRIALS" in each]
        # The tiny trials are not the preset's: of their own row one is missing, and the preset's are missing as well.
        assert "train_map_size=16 2-shot seed 1" in line and "train_map_size=16 1-shot seed" not in line
        assert "slime slime_mini 1-shot seed 0, 1; slime slime_mini 2-shot seed 0, 1" in line
        assert "a file went missing" in plain and "OTHER DATA" in plain
    pictures = sorted(folder.glob("qualitative-*.png"))
    assert len(pictures) == 2 and all(path.name in text for path in pictures)  # one for each number of shots
    with Image.open(pictures[0]) as picture:
        assert picture.width > picture.height > 100

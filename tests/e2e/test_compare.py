"""`slime-bench compare` on trials that really ran, and what they say of the machine they ran on."""

from __future__ import annotations

import getpass
import json
import re
from pathlib import Path

import pytest
import torch

from slime_bench.results.environment import ENVIRONMENT_FILE
from tests.e2e.conftest import FAILING, SPLITS, Bench, Outcome, command


def compare(bench: Bench, *arguments: str) -> Outcome:
    return command("compare", *arguments, "--outputs", str(bench.outputs))


def signature(folder: Path) -> str:
    return folder.name.split("-", 1)[1]


def test_two_seeds(swept: tuple[Bench, Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    bench = swept[0]
    outcome = compare(bench, signature(bench.folder(1, 0)), str(bench.folder(1, 1)))
    assert outcome.code == 0 and outcome.err == "", outcome.err
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert "seed 0 1" in lines and "the other settings are the same" in lines
    assert "two seeds of one series; the numbers differ" in lines
    averages = [100 * bench.result(1, seed).average for seed in (0, 1)]  # type: ignore[operator]
    assert f"average {averages[0]:.2f} {averages[1]:.2f} {averages[1] - averages[0]:+.2f}" in lines
    assert f"test images: the same {SPLITS['test']}" in lines
    assert re.search(r"learned state: 1 of 1 tensors differ, by at most \d", outcome.out)
    assert [line for line in outcome.out.splitlines() if len(line) > 80 and str(bench.outputs) not in line] == []


def test_the_same_trial_computed_twice(swept: tuple[Bench, Outcome], finished: Bench) -> None:
    """In another folder, with other things that must not matter: that they do not is what the command is for."""
    assert finished("force=true", "data.batch_size=3", "save_maps=0").code == 0
    files = [bench.folder(1, 0) / "result.json" for bench in (swept[0], finished)]
    outcome = compare(finished, *map(str, files), "--json", "--convention", "dataset")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    assert record["same_trial"] and record["same_numbers"]
    # It has failed in whole runs alone: a failure is to say by how much, and what the two logged.
    curves = [file.with_name("curves.csv").read_text() for file in files]
    assert record["learned"]["equal"], (record["learned"], *curves)
    assert record["images"]["common"] == SPLITS["test"] and record["images"]["differ"] == []
    assert {each["difference"] for each in record["scores"]} <= {0.0, None} and record["convention"] == "dataset"
    assert record["config"] == record["fingerprints"] == record["data"] == record["environment"] == []
    assert {"data.batch_size", "save_maps", "output_root", "force"} <= {each["key"] for each in record["other"]}
    assert {each["key"] for each in record["cost"]} >= {"seconds.fit", "seconds.test", "peak_rss_bytes"}


def test_runs_that_cannot_be_compared(swept: tuple[Bench, Outcome]) -> None:
    bench = swept[0]
    good = str(bench.folder(1, 0))
    for name, said in (
        (str(bench.folder(*FAILING)), "a trial that failed: DataError: a file went missing"),
        ("ffffffffffffffff", "No trial has a signature that begins so."),
        (str(bench.outputs), "3 finished"),
        ("no/such/run", "There is no such run."),
    ):
        outcome = compare(bench, good, name)
        assert outcome.code == 2 and "Traceback" not in outcome.err and outcome.out == ""
        assert said in outcome.err and "what to do" in outcome.err, outcome.err
    assert command("compare", good).code == 2
    misspelt = command("compere", good, good)
    assert misspelt.code == 2 and "did you mean `slime-bench compare`?" in misspelt.err


def test_every_trial_says_where_it_ran_and_names_nobody(swept: tuple[Bench, Outcome]) -> None:
    bench = swept[0]
    text = (bench.folder() / ENVIRONMENT_FILE).read_text()
    facts = json.loads(text)
    assert facts["fingerprints"] == bench.result().fingerprints and {"backbone", "data"} <= set(facts["fingerprints"])
    assert facts["packages"]["torch"] == torch.__version__ and facts["arithmetic"]["deterministic"] is True
    assert facts["peak_rss_bytes"] > 50 * 2**20 and facts["peak_gpu_bytes"] is None and facts["threads"]["torch"] == 1
    assert not re.search(rf"{re.escape(str(Path.home()))}\b", text)
    host = Path("/etc/hostname").read_text().strip() if Path("/etc/hostname").exists() else ""
    names = {getpass.getuser(), host} - {"root", "localhost", ""}
    assert [name for name in names if re.search(rf"\b{re.escape(name)}\b", text)] == []

"""A report on exactly the trials of a sweep's command, and the small parts of the page that need no browser."""

from __future__ import annotations

import base64
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from slime_bench.errors import ConfigError, ResultError
from slime_bench.report.charts import Series, line_chart
from slime_bench.report.collect import collect
from slime_bench.report.command import Asked, run_planned
from slime_bench.report.pictures import gallery, outline
from slime_bench.report.planned import Planned, ablation_among
from slime_bench.results.status import TrialStatus
from slime_bench.sweep.status import planned_trials
from tests.fixtures.toy_results import config_of, make

# ----------------------------------------------------------------------------------------------------- a sweep's trials


def values_of(shots: int, seed: int, method: str = "slime") -> dict[str, Any]:
    return {
        "preset": "mini",
        "shots": shots,
        "seed": seed,
        "method": {"name": method},
        "backbone": {"name": "mini_sd"},
        "protocol": {"name": "slime_mini"},
        "data": {"name": "mini_car", "subject": "car"},
        "metric": {"convention": "slime", "background": True},
        "decided": config_of(seed, shots),
    }


def sweep(root: Path, *states: TrialStatus, overrides: tuple[str, ...] = ("experiment=mini_car",)) -> Planned:
    trials = [(values_of(each.shots, each.seed, each.method), each) for each in states]
    return Planned(list(overrides), trials, root)


def state(
    seed: int, name: str, folder: Path | None = None, detail: str = "", shots: int = 1, **more: str
) -> TrialStatus:
    where = None if folder is None else str(folder)
    return TrialStatus(f"shots={shots} seed={seed}", "slime", "mini_car", shots, seed, name, detail, where, **more)


def folder_of(root: Path, seed: int, shots: int = 1) -> Path:
    (found,) = (root / "runs" / "mini_car" / "slime" / f"{shots}-shot").glob(f"seed{seed}-*")
    return found


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Three trials, one of which the sweep does not ask for."""
    for seed in range(3):
        make(tmp_path, seed, keeps=frozenset({"counts"}))
    return tmp_path


def test_only_the_sweeps_own_trials_are_reported(outputs: Path) -> None:
    killed = folder_of(outputs, 0).with_name(f"seed4-{'a' * 16}")
    found = sweep(
        outputs,
        *(state(seed, "done", folder_of(outputs, seed)) for seed in (0, 1)),
        state(3, "failed", killed.with_name(f"seed3-{'b' * 16}"), "DataError: no such picture"),
        state(4, "killed", killed, "pid 7 on here"),
        state(5, "missing"),
    )
    out = Console(file=io.StringIO(), width=200)
    asked = Asked(out, lambda *_: found.trials, outputs, resamples=50)
    (report,) = run_planned(asked, ["experiment=mini_car"])  # type: ignore[misc]
    (row,) = report.rows
    assert row.seeds == (0, 1) and report.expected_seeds == (0, 1, 3, 4, 5)
    assert [(one.shots, one.seed) for one in report.missing] == [(1, 3), (1, 4), (1, 5)]
    assert [one.summary for one in report.failed] == ["DataError: no such picture"]
    folder = outputs / "reports" / "mini_car"
    assert (folder / "table.md").is_file() and str(folder / "report.html") in out.file.getvalue()  # type: ignore[attr-defined]
    text = (folder / "report.html").read_text()
    assert "Not done: 3 of 5 trials" in text and "slime-bench --multirun experiment=mini_car" in text
    order = [
        text.index(words) for words in ("DataError: no such picture", "pid 7 on here", ">missing<", 'id="results"')
    ]
    assert order == sorted(order)
    assert f"runs/mini_car/slime/1-shot/seed4-{'a' * 16}" in text and str(outputs) not in text


def test_what_a_sweep_lacks_is_no_default_trial(tmp_path: Path) -> None:
    """Its overrides may depart from the preset in all of its trials, and so in none of their names."""
    make(tmp_path, 0, lr=0.3)
    found = sweep(tmp_path, state(0, "done", folder_of(tmp_path, 0)), state(1, "missing"))
    trials = [({**values, "decided": config_of(values["seed"], lr=0.3)}, each) for values, each in found.trials]
    asked = Asked(Console(file=io.StringIO()), lambda *_: trials, tmp_path, resamples=0)
    (report,) = run_planned(asked, ["experiment=mini_car", "method.lr=0.3"])  # type: ignore[misc]
    assert [row.variant for row in report.rows] == [one.variant for one in report.missing] == ["lr=0.3"]


def test_nothing_finished_is_a_typed_error(outputs: Path) -> None:
    found = sweep(outputs, state(7, "missing"), state(8, "running"))
    with pytest.raises(ResultError) as caught:
        found.of(collect(outputs))
    assert "1 missing, 1 running" in str(caught.value) and "slime-bench --multirun experiment=mini_car" in str(
        caught.value
    )


def test_trials_with_a_report_of_their_own(outputs: Path) -> None:
    make(outputs, method="infoscore", facts={"own_report": "ranking"})
    trial = dataclasses.replace(state(1, "missing"), method="infoscore")
    with pytest.raises(ConfigError, match="report --ranking experiment=ranks"):
        sweep(outputs, trial, overrides=("experiment=ranks",)).of(collect(outputs))


def test_folders_are_named_after_the_overrides(tmp_path: Path) -> None:
    def name(*overrides: str) -> str:
        return sweep(tmp_path, overrides=overrides).name

    assert name("experiment=mini_car", f"output_root={tmp_path}") == "mini_car"
    assert name("experiment=table2", "preset=paper") == "table2_preset=paper"
    assert name() == "default"
    odd = [name("experiment=mini_car", text) for text in ("a/b=1", "a b=1", "a_b=1", "../..=1", "x=" + "y" * 300)]
    assert len(set(odd)) == len(odd) and all(
        "/" not in each and ".." not in each[:2] and len(each) < 120 for each in odd
    )


def test_composed_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real composition; how far each trial is comes from tests/e2e/test_sweep_status.py's subject."""
    asked = []

    def answer(_: Any, cfg: Any, name: str) -> TrialStatus:
        asked.append((cfg.output_root, cfg.shots, cfg.seed))
        return TrialStatus(name, cfg.method.name, cfg.data.name, cfg.shots, cfg.seed, "missing")

    monkeypatch.setattr("slime_bench.sweep.status.Sweep.status", answer)
    found = planned_trials(["experiment=mini_car", "seed=0,1"], tmp_path, None)
    assert asked == [(str(tmp_path), shots, seed) for shots in (1, 10) for seed in (0, 1)]
    values, first = found[0]
    assert (values["output_root"], values["metric"]["convention"], first.state) == (str(tmp_path), "slime", "missing")
    assert values["decided"]["method"]["name"] == "slime" and "output_root" not in values["decided"]


def test_an_ablation_among_the_overrides() -> None:
    assert ablation_among(["experiment=mini_car", "ablation=lr"]) == ("lr", ["experiment=mini_car"])
    assert ablation_among(["ablation=null", "seed=1"]) == ("", ["seed=1"])
    for texts in (["ablation=lr,was"], ["ablation=lr", "+ablation=was"]):
        with pytest.raises(ConfigError, match="one ablation"):
            ablation_among(texts)


# ---------------------------------------------------------------------------------------------------- parts of the page


def test_pictures_of_later_seeds_are_left_out_first(tmp_path: Path) -> None:
    for shots in (1, 10):
        for seed in range(2):
            make(tmp_path, seed, shots, keeps=frozenset({"pictures"}))
    found = collect(tmp_path)
    rows = {f"{shots}-shot": [one for one in found.results if one.shots == shots] for shots in (1, 10)}
    whole = gallery(rows, found.folders)
    assert whole is not None and [(one["label"], one["seed"]) for one in whole["trials"]] == [
        ("1-shot", 0), ("1-shot", 1), ("10-shot", 0), ("10-shot", 1),
    ]  # fmt: skip
    one_trial = sum(len(base64.b64decode(each.partition(",")[2])) for each in whole["pictures"].values()) // 4
    small = gallery(rows, found.folders, most=one_trial * 3 // 2)
    assert small is not None and small["leftOut"] == 2
    assert [(one["label"], one["seed"]) for one in small["trials"]] == [("1-shot", 0), ("10-shot", 0)]


def test_an_outline_is_inside_its_region_and_closed() -> None:
    region = np.zeros((7, 7), dtype=bool)
    region[1:6, 2:6] = True
    line = outline(region)
    assert line.sum() == 2 * 5 + 2 * 4 - 4 and not (line & ~region).any() and not line[2:5, 3:5].any()
    assert not outline(np.ones((4, 4), dtype=bool)).any()


def test_a_chart_names_and_escapes_what_it_shows() -> None:
    line = Series("<b>", [0, 1, 2], [1.0, 1000.0, float("nan")], 0)
    text = str(line_chart("loss<script>", "loss & more", [line], "step"))
    assert "(log)" in text and "<script>" not in text and "<b>" not in text and "loss &amp; more, logarithmic" in text
    assert 'role="img"' in text and "nan" not in text.partition("</desc>")[2]
    flat = str(line_chart("lr", "lr", [Series("a", [0, 1], [0.1, 0.1 + 1e-17], 0)], "step"))
    assert 'points="46,80 312,80"' in flat
    assert str(line_chart("x", "x", [Series("a", [0], [float("nan")], 0)], "step")) == ""

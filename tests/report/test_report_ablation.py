"""Ablations: the paper's own grids, results found by their signature, and a table that says what it does not know."""

from __future__ import annotations

import csv
import functools
import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from slime_bench.errors import ConfigError, ResultError
from slime_bench.metrics.iou import IouCounts
from slime_bench.report import command
from slime_bench.report.ablation import AblationReport, Setting, settings_of
from slime_bench.report.collect import collect, provenance
from slime_bench.report.command import Asked, run
from slime_bench.report.statistics import ImageBootstrap
from slime_bench.results.result import TrialResult, from_counts
from tests.fixtures.toy_results import FINGERPRINTS, cells, percent_counts, store

# The grids of Tables 1 and 5-10 (../shared/protocol.md, 1.4), as values of our keys.
PAPER: dict[str, list[dict[str, Any]]] = {
    "was": [{"method.maps": "was"}, {"method.maps": "cross"}],
    "prompt": [
        {"method.start.kind": "words", "method.start.word": "part"},
        {"method.start.kind": "class_names"},
        {"method.start.kind": "words", "method.start.word": ""},
    ],
    "losses": [
        {"method.loss_weights.alpha": alpha, "method.loss_weights.beta": beta}
        for alpha, beta in ((1, 0.5), (1, 0.05), (1, 0.005), (1, 0), (0, 0.005))
    ],
    "t_opt": [{"method.t_opt": [5, high]} for high in (20, 100, 900)],
    "t_test": [{"method.t_test": number} for number in (5, 20, 100)],
    "lr": [{"method.lr": value} for value in (1, 0.1, 0.01, 0.001)],
    "layers": [{"backbone.cross_layers": name} for name in ("early", "middle", "late")],
}
PUBLISHED = {
    "was": {"cross": 62.7},
    "prompt": {"class_names": 68.7, "''": 68.4},
    "losses": {"alpha=1, beta=0.5": 5.3, "beta=0.05": 65.4, "alpha=1, beta=0": 55.8, "alpha=0, beta=0.005": 68.0},
    "t_opt": {"[5, 20]": 66.8, "[5, 900]": 67.8},
    "t_test": {"t_test=5": 65.2, "20": 65.9},
    "lr": {"lr=1": 15.0, "0.01": 67.8, "0.001": 33.7},
    "layers": {"early": 22.2, "late": 63.6},
}


@functools.cache
def settings(name: str, *overrides: str) -> list[Setting]:
    """`settings_of`, once for all tests: composing takes a moment."""
    return settings_of(name, overrides)


def result_of(config: Mapping[str, Any], percent: float | IouCounts, **fingerprints: str) -> TrialResult:
    """The result that a trial of this configuration would write on a CPU; `percent` is the IoU of every class."""
    decided, classes = config["decided"], config["data"]["classes"]
    names = {name: config[name]["name"] for name in ("method", "backbone", "data", "protocol")}
    names |= {"preset": config["preset"], "subject": config["data"]["subject"]}
    made = percent if isinstance(percent, IouCounts) else [percent] * len(classes)
    settings = {**decided, "trainer": {**decided["trainer"], "device": "cpu"}}
    return from_counts(
        made if isinstance(made, IouCounts) else percent_counts(made, made), config=settings, classes=classes,
        fingerprints=FINGERPRINTS | fingerprints, shots=config["shots"], seed=config["seed"], **names,
    )  # fmt: skip


def fill(root: Path, found: Sequence[Setting], values: Sequence[Sequence[float]]) -> list[list[Path]]:
    """Results of every setting: `values[setting][seed]` is the IoU of all classes."""
    return [
        store(root, *(result_of(trial, value) for trial, value in zip(setting.trials.values(), row, strict=False)))
        for setting, row in zip(found, values, strict=False)
    ]


@pytest.fixture(autouse=True)
def composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slime_bench.report.command.settings_of", lambda name, overrides, _: settings(name, *overrides))


def report(root: Path, name: str, *overrides: str, **options: Any) -> tuple[AblationReport, str]:
    """The report, and what is printed, in which captions are folded anywhere: white space as one space."""
    out = io.StringIO()
    made = command.run_ablation(Asked(Console(file=out, width=300), lambda *_: [], root, **options), name, overrides)
    return made, " ".join(out.getvalue().split())


def with_values(trial: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The trial with other values at the top of its configuration."""
    return {**trial, **changes, "decided": trial["decided"] | changes}


# ------------------------------------------------------------------------------------------------ the grids


GRIDS = [*((name, "paper_car") for name in PAPER), ("t_opt", "mini_car"), ("losses", "paper_face")]


@pytest.mark.parametrize(("name", "experiment"), GRIDS)
def test_the_papers_own_grid(name: str, experiment: str) -> None:
    found = [one for one in settings(name, f"experiment={experiment}") if one.in_grid]
    for setting in found:
        assert set(setting.trials) == {0, 1, 2}
        for seed, trial in setting.trials.items():
            assert (trial["seed"], trial["shots"]) == (seed, 10)
            assert f"{trial['preset']}_{trial['data']['subject']}" == experiment
    keys = {key for values in PAPER[name] for key in values}
    have = [{key: setting.values[key] for key in keys} for setting in found]
    for index, values in enumerate(PAPER[name]):
        assert values.items() <= have[index].items(), (name, index)
    # What comes on top of the paper's grid is the preset's own default, and only where that is another.
    extra = found[len(PAPER[name]) :]
    assert [setting.default for setting in extra] == ([True] if (name, experiment) == ("t_opt", "mini_car") else [])
    assert sum(setting.default for setting in found) == 1
    # Nothing but the ablation's keys differs.
    for setting in found[1:]:
        assert {key for key in setting.values if setting.values[key] != found[0].values[key]} <= keys
    assert len({setting.label for setting in found}) == len(found)


def test_the_default_is_looked_up_where_the_grid_lacks_it() -> None:
    words, noise, usual = settings("start", "experiment=mini_car")
    assert (words.in_grid, noise.in_grid, usual.in_grid) == (True, True, False)
    assert usual.default and not words.default and usual.label == "epochs=200, kind=words"
    assert [trial["shots"] for trial in usual.trials.values()] == [10, 10, 10]


def test_a_second_sweep_is_told_by_the_groups_name() -> None:
    found = settings("was", "experiment=mini_car", "protocol=slime_mini,slime_code", "seed=0")
    assert {setting.label for setting in found} == {
        f"maps={maps}, name={protocol}" for maps in ("was", "cross") for protocol in ("slime_mini", "slime_code")
    }
    assert [setting.label for setting in found if setting.default] == ["maps=was, name=slime_mini"]


def test_one_table_holds_one_data_set() -> None:
    with pytest.raises(ConfigError, match="one data set") as caught:
        settings_of("was", ["data=mini_car,mini_horse"])
    assert caught.value.found == "mini_car, preset mini; mini_horse, preset mini"


# ------------------------------------------------------------------------------------------------ beside the paper


@pytest.mark.parametrize(("name", "experiment"), GRIDS[:-1])
def test_every_published_row_finds_its_setting(name: str, experiment: str, tmp_path: Path) -> None:
    found = settings(name, f"experiment={experiment}")
    fill(tmp_path, found, [[50, 52, 54]] * len(found))
    made, _ = report(tmp_path, name, f"experiment={experiment}")
    theirs = {each.setting.label: each.published for each in made.measured if each.published}
    assert len(theirs) == len(PAPER[name])
    default = [label for label, row in theirs.items() if row.setting == ""]
    assert len(default) == 1 and theirs[default[0]].average.mean == 68.3
    for part, average in PUBLISHED[name].items():
        (row,) = [row for label, row in theirs.items() if re.search(rf"{re.escape(part)}(,|$)", label) and row.setting]
        assert row.average.mean == average
    for each in made.measured:
        if each.published:
            expected = each.published.average.mean - 68.3  # type: ignore[operator]
            assert each.published_difference == pytest.approx(expected)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("experiment=mini_horse",), "the paper has no such ablation for the subject horse"),
        (("experiment=mini_car", "shots=1"), "the paper's Table 9 has 10 shots"),
    ],
)
def test_no_published_row_and_it_says_why(overrides: tuple[str, ...], words: str, tmp_path: Path) -> None:
    found = settings("lr", *overrides)
    fill(tmp_path, found, [[50]] * 4)
    made, out = report(tmp_path, "lr", *overrides)
    assert words in out and "OTHER DATA" not in out
    assert all(each.published is None for each in made.measured)


# ------------------------------------------------------------------------------------------------ the table


LR = ("experiment=mini_car",)


def test_numbers_worked_by_hand(tmp_path: Path) -> None:
    # lr 1, 0.1 (default), 0.01, 0.001; seeds 0, 1, 2
    fill(tmp_path, settings("lr", *LR), [[10, 20, 30], [60, 62, 64], [61, 62, 63], [30, 40]])
    made, out = report(tmp_path, "lr", *LR)
    folder = tmp_path / "reports" / "car"
    page = (folder / "mini_car-ablation-lr.md").read_text()
    header = cells(page, "setting |")
    assert header == ["setting", "n", "body", "light", "plate", "wheel", "window", "background", "avg", "Δ", "source"]
    assert cells(page, "**lr=1**")[1:3] == ["3", "20.0±10.0"]
    # Differences seed by seed: -50, -42, -34; 1, 0, -1; for 0.001 only seeds 0 and 1: -30, -22.
    assert cells(page, "**lr=1**")[-3:] == ["20.0±10.0", "-42.0±8.0", "ours"]
    assert cells(page, "**lr=0.1 (default)**")[-3:] == ["62.0±2.0", "-", "ours"]
    assert cells(page, "**lr=0.01**")[-3:] == ["62.0±1.0", "+0.0±1.0", "ours"]
    assert cells(page, "**lr=0.001**")[-3:] == ["35.0±7.1", "-26.0±5.7", "ours"]
    assert cells(page, "published: 1 ")[-3:] == ["15.0±7.4", "-53.3", "Table 9, other data"]
    stated = ["81.5±1.0", "56.8±1.2", "54.8±2.7", "68.3±0.1", "70.3±0.9", "78.4±1.6", "68.3±1.0", "-"]
    assert cells(page, "published: default")[2:] == [*stated, "Table 2, other data"]
    assert cells(page, "published: 0.001")[-2] == "-34.6"
    # Each published row stands under our row of the same setting.
    order = [
        line.split("|")[1].strip().strip("*") for line in page.splitlines() if re.match(r"\| (\*\*|published)", line)
    ]
    assert order[:4] == ["lr=1", "published: 1", "lr=0.1 (default)", "published: default"]
    assert "OTHER DATA" in page and "MISSING TRIALS: lr=0.001 seed 2" in page
    assert "slime-bench --multirun experiment=mini_car ablation=lr" in page
    for words in ("preset mini", "backbone mini_sd", "protocol slime_mini", "10-shot", "n = 2, 3", "20.0±10.0"):
        assert words in out
    assert made.measured[3].missing == [2]

    lines = list(csv.DictReader((folder / "mini_car-ablation-lr.csv").read_text().splitlines()))
    facts = json.loads((folder / "mini_car-ablation-lr.json").read_text())
    ours = [line for line in lines if line["published"] == "False"]
    theirs = [line for line in lines if line["published"] == "True"]
    assert (len(ours), len(theirs)) == (4, 4)
    assert float(ours[3]["difference_std"]) == pytest.approx(8 / math.sqrt(2), abs=1e-9)
    assert (ours[3]["seeds"], ours[3]["missing_seeds"], ours[3]["protocol"]) == ("0 1", "2", "slime_mini")
    assert (theirs[0]["average_mean"], theirs[0]["other_data"], theirs[0]["protocol"]) == ("15.0", "True", "")
    for line, setting in zip(ours, facts["settings"], strict=True):
        assert line["setting"] == setting["setting"] and int(line["n"]) == setting["n"]
        assert float(line["average_mean"]) == setting["average"]["mean"]
        assert float(line["body_mean"]) == setting["per_class"]["body"]["mean"]
    assert facts["settings"][0]["values"] == {"method.lr": 1} and facts["settings"][1]["default"]
    assert facts["settings"][0]["published"]["difference"] == pytest.approx(15 - 68.3)
    assert (facts["provenance"]["devices"], facts["provenance"]["commits"]) == (["a CPU"], ["012345678"])


def test_only_the_same_signature_counts(tmp_path: Path) -> None:
    """Another learning rate, another length, another version of the numbers: not this table's trials."""
    found = settings("lr", *LR)
    trial = found[1].trials[0]
    for changed in ({"max_steps": 7}, {"lr": 0.2}):
        store(tmp_path, result_of(with_values(trial, method=trial["decided"]["method"] | changed), 90))
    with pytest.raises(ResultError) as caught:
        report(tmp_path, "lr", *LR)
    assert "2 result(s) of slime with other settings" in str(caught.value)
    assert "slime-bench --multirun experiment=mini_car ablation=lr" in str(caught.value)
    store(tmp_path, result_of(trial, 60))
    made, _ = report(tmp_path, "lr", *LR)
    assert [each.row.average.mean if each.row else None for each in made.measured] == [
        None,
        pytest.approx(60),
        None,
        None,
    ]


def test_other_weights_are_never_in_the_same_table(tmp_path: Path) -> None:
    found = settings("lr", *LR)
    fill(tmp_path, found, [[10, 20, 30], [60, 62, 64]])
    for seed in (0, 1):
        store(tmp_path, result_of(found[2].trials[seed], 99, backbone="ef" * 32))
    made, out = report(tmp_path, "lr", *LR)
    assert [each.row.n if each.row else 0 for each in made.measured] == [3, 3, 0, 0] and made.left_out == 2
    assert "2 result(s) of these trials on another device, with other weights or data, are left out" in out


def test_of_equal_sets_the_latest_is_taken(tmp_path: Path) -> None:
    trial = settings("lr", *LR)[1].trials[0]
    (old,) = store(tmp_path, result_of(trial, 30))
    store(tmp_path, result_of(trial, 40, backbone="ef" * 32))
    for stamp, expected in ((1, 40), (4_000_000_000, 30)):
        os.utime(old / "result.json", (stamp, stamp))
        made, _ = report(tmp_path, "lr", *LR)
        assert made.measured[1].row.average.mean == pytest.approx(expected)  # type: ignore[union-attr]


def test_the_default_beside_a_grid_that_lacks_it(tmp_path: Path) -> None:
    found = settings("start", *LR)
    fill(tmp_path, found[:2], [[20, 22, 24], [10, 10, 10]])
    _, out = report(tmp_path, "start", *LR)
    assert "(epochs=200, kind=words) is not in the grid and lacks seed 0, 1, 2" in out
    assert "slime-bench --multirun experiment=mini_car shots=10 seed=0,1,2" in out
    assert "missing trials: none of 6" in out and "(default)" not in out
    fill(tmp_path, found[2:], [[60, 60, 60]])
    made, out = report(tmp_path, "start", *LR)
    assert "epochs=200, kind=words (default)" in out and "-38.0±2.0" in out and "is not in the grid" not in out
    assert made.measured[1].difference.mean == pytest.approx(-50)


def with_counts(root: Path, setting: Setting, qualities: Mapping[int, float], images: int = 25) -> list[TrialResult]:
    """Results of a setting with their per-image counts: seed -> the images' mean IoU; one ground truth for all."""
    results = []
    for seed, quality in qualities.items():
        draws = np.random.default_rng([seed, int(100 * quality)]).normal(quality, 0.1, (images, 6))
        counts = percent_counts(*(100 * draws.clip(0, 1)).tolist())
        results.append(result_of(setting.trials[seed], counts))
        store(root, results[-1], counts=counts, ids=[f"car-{index}" for index in range(images)])
    return results


def test_settings_are_paired_with_the_default_image_by_image(tmp_path: Path) -> None:
    usual, other = settings("was", *LR)
    a = with_counts(tmp_path, usual, {0: 0.6, 1: 0.61, 2: 0.59})
    b = with_counts(tmp_path, other, {1: 0.5, 2: 0.52})
    made, out = report(tmp_path, "was", *LR, show_intervals=True, resamples=300)
    folder = tmp_path / "reports/car"
    default, each = json.loads((folder / "mini_car-ablation-was.json").read_text())["settings"]
    assert (default["paired"], default["unpaired"]) == (None, "") and default["interval"]["images"] == 25
    found = collect(tmp_path).folders
    expected = ImageBootstrap(found, 300).paired(b, a, made.convention, made.background)
    assert made.measured[1].paired == expected and expected.seeds == (1, 2)
    assert each["paired"]["average"]["mean"] == pytest.approx(each["difference"]["mean"])
    bounds, p = each["paired"]["average"]["bounds"], each["paired"]["average"]["p"]
    assert bounds["low"] < each["difference"]["mean"] < bounds["high"] < 0 and p == pytest.approx(2 / 301)
    span = f"{bounds['low']:+.1f} to {bounds['high']:+.1f}"
    page = (folder / "mini_car-ablation-was.md").read_text()
    for text in (page, (folder / "mini_car-ablation-was.tex").read_text().replace(r"\ensuremath{-}", "-"), out):
        assert span in text and "2 of 2" in text and "seeds agree" in text
    assert "not adjusted" not in page  # one difference alone
    assert "n = 2, 3 seeds are too few for a claim" in page
    lines = list(csv.DictReader((folder / "mini_car-ablation-was.csv").open()))
    ours = [line for line in lines if line["published"] == "False"]
    assert float(ours[1]["difference_low"]) == bounds["low"] and ours[1]["difference_seeds"] == "1 2"
    assert float(ours[0]["average_low"]) == default["interval"]["average"]["low"] and ours[0]["difference_low"] == ""
    _, plain = report(tmp_path, "was", *LR)
    assert "seeds agree" not in plain and "(--intervals prints them)" in plain


def test_settings_that_cannot_be_paired_say_so(tmp_path: Path) -> None:
    usual, other = settings("was", *LR)
    with_counts(tmp_path, usual, {0: 0.6})
    with_counts(tmp_path, other, {0: 0.5}, images=24)
    made, out = report(tmp_path, "was", *LR)
    assert "not paired with the default: maps=cross: These trials were not tested on the same images" in out
    assert made.measured[1].paired is None


def test_the_configurations_own_output_root(tmp_path: Path) -> None:
    fill(tmp_path, settings("was", *LR), [[10, 20, 30], [60, 62, 64]])
    assert command.main(["--ablation", "was", *LR, f"output_root={tmp_path}"], lambda *_: []) == 0
    assert (tmp_path / "reports/car/mini_car-ablation-was.csv").is_file()
    facts = json.loads((tmp_path / "reports/car/mini_car-ablation-was.json").read_text())
    assert facts["command"] == "slime-bench --multirun experiment=mini_car ablation=was", "no folder of this machine"


# ------------------------------------------------------------------------------------------------ provenance


def test_provenance_of_several_machines(tmp_path: Path) -> None:
    facts: list[dict[str, Any] | str] = [
        {"device": "b", "platform": "L", "git": {"commit": "c" * 40, "dirty": True}, "finished": "2026-11-22T01:00:00"},
        {"device": "a", "platform": "L", "git": None, "finished": "2026-11-21T23:00:00"},
        "{",
        {"device": 3},
    ]
    for index, one in enumerate(facts):
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / "environment.json").write_text(one if isinstance(one, str) else json.dumps(one))
    found = provenance(tmp_path / name for name in ("0", "1", "2", "3", "nowhere"))
    assert (found.devices, found.platforms, found.commits) == (["a", "b"], ["L"], ["ccccccccc+changes"])
    assert (found.first, found.last, found.unknown) == ("2026-11-21", "2026-11-22", 3)
    line = "ran on a, b (L); commit ccccccccc+changes; 2026-11-21 to 2026-11-22; 3 trial(s) do not say"
    assert found.line() == line
    assert provenance([]).line() == "machine, commit and date are not recorded"


# ------------------------------------------------------------------------------------------------ the main table


def test_ablations_do_not_clutter_the_main_table(tmp_path: Path) -> None:
    """With the default series and three ablations in outputs, the car table is that of the default."""
    for name in ("lr", "t_test", "prompt"):
        found = settings(name, *LR)
        fill(tmp_path, found, [[60, 62, 64] if setting.default else [10, 20] for setting in found])
    for seed in (0, 1, 2):
        store(tmp_path, result_of(with_values(settings("lr", *LR)[1].trials[0], shots=1, seed=seed), 50 + seed))
    text = tables(tmp_path)
    assert [line[:2] for line in text] == [["slime", "1"], ["slime", "10"]]
    page = (tmp_path / "reports/car/table.md").read_text()
    assert "7 series with other settings not shown; --variants shows them" in page.replace("\\", "")
    assert "missing trials: none (of shots 1, 10; seeds 0, 1, 2)" in page
    rows = [row for row in json.loads((tmp_path / "reports/car/table.json").read_text()) if not row["published"]]
    assert len(rows) == 9 and sorted(row["variant"] for row in rows if row["default"]) == ["", ""]
    assert {row["variant"] for row in rows if not row["default"]} == {
        *("lr=1", "lr=0.01", "lr=0.001", "t_test=5", "t_test=20", "kind=class_names", "word=")
    }
    text = tables(tmp_path, show_variants=True)
    assert len(text) == 9
    page = (tmp_path / "reports/car/table.md").read_text()
    assert "not shown" not in page and "lr=0.001 10-shot seed 2" in page


def tables(root: Path, **options: Any) -> list[list[str]]:
    """Our lines of the car table as cells."""
    run(Asked(Console(file=io.StringIO()), lambda *_: [], root), "car", **options)
    page = (root / "reports/car/table.md").read_text().replace("\\", "")
    lines = [line for line in page.splitlines() if line.startswith("| **")]
    return [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines]


def test_every_grid_of_the_paper_is_here(repository: Path) -> None:
    names = {path.stem for path in (repository / "conf" / "ablation").glob("*.yaml")}
    assert names == {*PAPER, "start", "probe_t", "probe_layers", "probe_parts"}

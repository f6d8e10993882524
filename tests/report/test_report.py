"""Reports: numbers worked by hand, honest captions, published rows, and files that hold what they say."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from slime_bench.errors import ConfigError, ResultError, StorageError
from slime_bench.metrics.iou import IouCounts
from slime_bench.report import command
from slime_bench.report.collect import collect, variants
from slime_bench.report.command import Asked
from slime_bench.report.figures import IGNORED, class_colours, grid_size, paint, qualitative_grid
from slime_bench.report.published import load_published
from slime_bench.report.rows import aggregate, comparison, difference, frame, missing, published_rows
from slime_bench.report.subject import SubjectReport, csv_text, markdown, sections, subject_report, table_json
from slime_bench.results import identity
from slime_bench.results.artifacts import GridItem, read_qualitative, write_qualitative
from slime_bench.results.result import TrialResult, from_counts, write_result

CAR = ["background", "body", "light", "plate", "wheel", "window"]
FINGERPRINTS = {"backbone": "ab" * 32, "data": "cd" * 32}


def counts_of(percent: list[int], images: int = 2) -> IouCounts:
    """Counts whose IoU is `percent` [K] in every image, for every convention; -1 = class nowhere."""
    values = torch.tensor([percent] * images)
    union = torch.where(values < 0, 0, 100)
    return IouCounts(values.clamp(min=0), union, union > 0)


def trial(percent: list[int], seed: int = 0, shots: int = 1, **changes: Any) -> TrialResult:
    names = {
        "method": "slime",
        "backbone": "mini_sd",
        "data": "mini_car",
        "subject": "car",
        "preset": "mini",
        "protocol": "slime_code",
        "classes": CAR,
    }
    overrides, prints = changes.pop("config", {}), changes.pop("fingerprints", FINGERPRINTS)
    names |= changes
    config = {
        "preset": names["preset"],
        "seed": seed,
        "shots": shots,
        "method": {"name": names["method"], "maps": "was", "lr": 0.1},
        "backbone": {"name": names["backbone"]},
        "data": {"name": names["data"]},
        "protocol": {"name": names["protocol"]},
    }
    for key, value in overrides.items():
        group, name = key.split(".")
        config[group][name] = value
    counts = counts_of(percent)
    return from_counts(counts, config=config, fingerprints=prints, seed=seed, shots=shots, **names)


def store(root: Path, *trials: TrialResult) -> list[Path]:
    folders = []
    for one in trials:
        folder = identity.trial_folder(root, one.data, one.method, one.shots, one.seed, one.signature)
        write_result(folder, one)
        folders.append(folder)
    return folders


def main(arguments: list[str], console: Console | None = None) -> int:
    return command.main(arguments, lambda *_: [], console)


def run(root: Path, *, console: Console) -> list[SubjectReport]:
    return command.run(Asked(console, lambda *_: [], root))


def console() -> Console:
    return Console(file=io.StringIO(), width=80)


def printed(out: Console) -> str:
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


# ------------------------------------------------------------------------------------------------ published numbers


@pytest.mark.parametrize("subject", ["car", "horse", "face"])
def test_published_averages_agree_with_their_classes(subject: str) -> None:
    published = load_published(subject)
    assert published is not None
    checked = 0
    for row in [*published.rows, *(row for table in published.ablations for row in table.rows)]:
        means = [stat.mean for stat in row.per_class.values()]
        if None in means or row.average.mean is None:
            assert row.average_gap == 0
            continue
        gap = row.average.mean - math.fsum(means) / len(means)
        # Rounding of the classes and of the average to one decimal explains 0.06 here; more has to be declared.
        assert gap == pytest.approx(row.average_gap, abs=0.06), (row.method, row.shots, row.setting, gap)
        checked += 1
    assert checked >= 5


def test_published_columns_are_our_classes() -> None:
    """The column order is the paper's, the names are those of the data sets."""
    from slime_bench.paths import config_dir

    yaml = pytest.importorskip("yaml")
    for subject in ("car", "horse", "face"):
        published = load_published(subject)
        assert published is not None and published.subject == subject
        classes = yaml.safe_load((config_dir() / "data" / f"mini_{subject}.yaml").read_text())["classes"]
        assert set(published.columns) == set(classes) and published.columns[-1] == "background"


def test_published_numbers_of_the_main_rows() -> None:
    averages = {}
    for subject in ("car", "horse", "face"):
        published = load_published(subject)
        assert published is not None
        for row in published.rows:
            if row.key == "slime":
                assert row.n == 3 and not row.supervised and row.average.std is not None
                averages[subject, row.shots] = row.average.mean
        assert len({(row.method, row.shots, row.source) for row in published.rows}) == len(published.rows)
    expected = {("car", 1): 61.6, ("car", 10): 68.3, ("horse", 1): 56.4, ("horse", 10): 63.3}
    assert averages == expected | {("face", 1): 69.6, ("face", 10): 75.7}


def test_second_hand_rows_say_so() -> None:
    for subject, names in {"car": {"OIParts", "SMITE", "Concept Replacer"}, "horse": {"OIParts", "SMITE"}}.items():
        published = load_published(subject)
        assert published is not None
        assert {row.method for row in published.rows if "second hand" in row.source} == names


def test_unknown_subject_and_broken_file(tmp_path: Path) -> None:
    assert load_published("boat") is None
    (tmp_path / "boat.yaml").write_text("columns: [sail]\nrows: [{method: x}]\n")
    with pytest.raises(ConfigError, match=r"boat\.yaml"):
        load_published("boat", tmp_path)


# ------------------------------------------------------------------------------------------------ aggregation


def test_mean_and_sample_deviation_by_hand() -> None:
    rows = aggregate([trial([80, 60, 20, 40, 50, 50], seed=0), trial([90, 50, 30, 40, 50, 70], seed=1)])
    assert len(rows) == 1
    row = rows[0]
    assert (row.seeds, row.n, row.variant, row.published) == ((0, 1), 2, "", False)
    # Two values a, b: mean (a + b) / 2, sample deviation |a - b| / sqrt(2).
    assert row.per_class["background"].mean == pytest.approx(85)
    assert row.per_class["background"].std == pytest.approx(10 / math.sqrt(2))
    assert row.per_class["plate"].std == 0
    # Averages per seed are 50 and 55; the deviation is over these, not pooled from the classes.
    assert row.average.mean == pytest.approx(52.5)
    assert row.average.std == pytest.approx(5 / math.sqrt(2))


def test_three_seeds_and_one_seed() -> None:
    rows = aggregate([trial([value] * 6, seed=seed) for seed, value in enumerate((40, 50, 60))])
    assert (rows[0].average.mean, rows[0].average.std) == (pytest.approx(50), pytest.approx(10))
    (single,) = aggregate([trial([40] * 6)])
    assert (single.n, single.average.mean, single.average.std) == (1, pytest.approx(40), None)


def test_without_background_and_other_convention() -> None:
    one = trial([100, 50, 50, 50, 50, 50])
    assert aggregate([one], background=False)[0].average.mean == pytest.approx(50)
    assert aggregate([one], "dataset")[0].convention == "dataset"
    with pytest.raises(ResultError, match="nope"):
        aggregate([one], "nope")


def test_the_results_as_one_table() -> None:
    one, other = trial([100, 50, 50, -1, 50, 50]), trial([60] * 6, seed=1)
    table = frame([one, other])
    assert list(table) == ["series", "seed", "convention", "class", "percent"] and len(table) == 2 * 3 * (len(CAR) + 2)
    found = table[table["convention"] == "dataset"].set_index(["seed", "class"])["percent"]
    assert (found[0, "body"], found[0, "average"], found[0, "average without background"]) == pytest.approx(
        (50, 60, 50)
    )
    assert math.isnan(found[0, "plate"]) and found[1, "average"] == pytest.approx(60)


def test_class_undefined_in_some_seeds_is_said() -> None:
    rows = aggregate([trial([50] * 6, seed=0), trial([50, 50, 50, -1, 50, 50], seed=1)])
    assert rows[0].per_class["plate"].mean == pytest.approx(50)
    assert rows[0].per_class["plate"].std is None
    assert rows[0].notes == ("plate is defined in 1 of 2 seeds",)
    rows = aggregate([trial([50, 50, 50, -1, 50, 50])])
    assert rows[0].per_class["plate"].mean is None


def test_what_differs_in_more_than_the_seed_is_never_averaged() -> None:
    trials = [trial([50] * 6), trial([60] * 6, config={"method.maps": "cross"})]
    trials += [trial([70] * 6, protocol="slime_paper"), trial([80] * 6, preset="paper"), trial([90] * 6, shots=10)]
    rows = aggregate(trials)
    assert [row.n for row in rows] == [1] * 5
    assert sorted(row.average.mean for row in rows) == pytest.approx([50, 60, 70, 80, 90])


def test_variant_labels() -> None:
    base, cross = trial([50] * 6), trial([60] * 6, config={"method.maps": "cross"})
    # Of two, neither is the usual one, and both say what they are.
    assert set(variants([base, cross]).values()) == {"maps=was", "maps=cross"}
    slow = trial([60] * 6, config={"method.lr": 0.01})
    assert variants([base, cross, slow]) == {base.series: "", cross.series: "maps=cross", slow.series: "lr=0.01"}
    # Another seed or number of shots is no variant.
    assert variants([base, trial([50] * 6, shots=10)]) == dict.fromkeys(
        [base.series, trial([50] * 6, shots=10).series], ""
    )


def test_variants_that_only_a_secret_sets_apart_are_still_told_apart() -> None:
    """What results record of their configuration is the same for both."""
    trials = [dataclasses.replace(trial([50] * 6), series=digit * 16) for digit in "ab"]
    assert variants(trials) == {"a" * 16: "series=aaaaaaaa", "b" * 16: "series=bbbbbbbb"}


def test_two_results_of_one_seed_are_an_error() -> None:
    with pytest.raises(ResultError, match="same trial"):
        aggregate([trial([50] * 6), trial([60] * 6)])


def test_missing_trials() -> None:
    rows = aggregate([trial([50] * 6, seed=0), trial([50] * 6, seed=2)], expected_seeds=(0, 1, 2))
    assert rows[0].missing_seeds == (1,)
    found = [(one.shots, one.seed) for one in missing(rows, (1, 10), (0, 1, 2))]
    assert found == [(1, 1), (10, 0), (10, 1), (10, 2)]
    assert missing(rows, (1,), (0, 2)) == []


def test_variant_need_not_have_every_shot() -> None:
    trials = [trial([50] * 6), trial([50] * 6, shots=10), trial([40] * 6, shots=10, config={"method.maps": "cross"})]
    assert missing(aggregate(trials), (1, 10), (0,)) == []


# ------------------------------------------------------------------------------------------------ collecting files


def test_collect_lists_what_it_cannot_use(tmp_path: Path) -> None:
    good, other, third = trial([50] * 6, seed=0), trial([60] * 6, seed=1), trial([70] * 6, seed=2)
    folders = store(tmp_path, good, other, third)
    (folders[1] / "result.json").write_text("{")
    (folders[2] / "result.json").unlink()
    (folders[2] / "error.json").write_text(json.dumps({"type": "DeviceError", "message": "no CUDA\nhere"}))
    (folders[0] / "error.json").write_text("{}")  # an earlier failure of a trial that has finished since
    stray = tmp_path / "runs" / "mini_car" / "slime" / "1-shot" / f"seed5-{'0' * 16}"
    write_result(stray, good)
    collected = collect(tmp_path)
    assert collected.results == [good]
    assert collected.folders == {good.signature: folders[0]}
    assert [path for path, _ in collected.invalid] == sorted([folders[1] / "result.json", stray / "result.json"])
    assert [(one.seed, one.summary) for one in collected.failed] == [(2, "DeviceError: no CUDA")]


def test_collect_of_an_empty_folder(tmp_path: Path) -> None:
    collected = collect(tmp_path / "nowhere")
    assert (collected.results, collected.invalid, collected.failed) == ([], [], [])


def test_unreadable_error_file_is_still_a_failure(tmp_path: Path) -> None:
    (folder,) = store(tmp_path, trial([50] * 6))
    (folder / "result.json").rename(folder / "error.json")
    (folder / "error.json").write_bytes(b"\xff")
    assert collect(tmp_path).failed[0].summary == "error.json does not say why"


# ------------------------------------------------------------------------------------------------ tables


def mini_trials() -> list[TrialResult]:
    one = [trial([80, 60, 20, 30, 50, 60], seed=0), trial([80, 60, 30, 30, 50, 80], seed=1)]
    return [*one, trial([90, 70, 40, 50, 60, 70], shots=10)]


def test_command_writes_every_file_and_prints_the_table(tmp_path: Path) -> None:
    store(tmp_path, *mini_trials())
    out = console()
    assert main(["--outputs", str(tmp_path), "--subject", "car"], out) == 0
    text = printed(out)
    for words in ("preset mini", "backbone mini_sd", "protocol slime_code", "convention slime", "OTHER DATA"):
        assert words in " ".join(text.split())
    assert "52.5±3.5" in text and "68.3±1.0" in text  # not folded at the 80 columns that rich guesses for a pipe
    folder = tmp_path / "reports" / "car"
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "pairs.csv",
        "pairs.json",
        "report.html",
        "table.csv",
        "table.json",
        "table.md",
        "table.tex",
        "trials.json",
    ]

    rows = json.loads((folder / "table.json").read_text())
    ours = [row for row in rows if not row["published"]]
    assert [(row["shots"], row["n"], row["seeds"]) for row in ours] == [(1, 2, [0, 1]), (10, 1, [0])]
    assert ours[0]["average"] == {"mean": pytest.approx(52.5), "std": pytest.approx(5 / math.sqrt(2))}
    assert ours[0]["per_class"]["light"] == {"mean": pytest.approx(25), "std": pytest.approx(10 / math.sqrt(2))}
    assert ours[1]["average"]["std"] is None
    keys = {"method", "backbone", "data", "shots", "preset", "protocol", "convention", "seeds", "n", "per_class"}
    assert all(keys | {"average", "published", "variant"} <= set(row) for row in rows)
    assert all(row["unit"] == "percent" and row["difference"] is None for row in rows)
    theirs = [row for row in rows if row["published"]]
    assert len(theirs) == 9 and all(row["other_data"] for row in theirs)

    trials = json.loads((folder / "trials.json").read_text())
    assert [(one["shots"], one["seed"]) for one in trials["missing"]] == [(1, 2), (10, 1), (10, 2)]


def test_markdown_in_the_papers_column_order(tmp_path: Path) -> None:
    store(tmp_path, *mini_trials())
    report = subject_report(collect(tmp_path), "car", load_published("car"))
    lines = markdown(report, ["a.png"]).splitlines()
    header = next(line for line in lines if line.startswith("| method"))
    cells = [cell.strip() for cell in header.strip("|").split("|")]
    assert cells == [
        "method",
        "shots",
        "n",
        "body",
        "light",
        "plate",
        "wheel",
        "window",
        "background",
        "avg",
        "source",
    ]
    ours = next(line for line in lines if line.startswith("| **slime** | 1 "))
    values = [cell.strip() for cell in ours.strip("|").split("|")]
    assert values[2:] == [
        "2",
        "60.0±0.0",
        "25.0±7.1",
        "30.0±0.0",
        "50.0±0.0",
        "70.0±14.1",
        "80.0±0.0",
        "52.5±3.5",
        "ours",
    ]
    assert "| SegGPT\\* | 1 |" in "\n".join(lines) and "Table 2, other data" in "\n".join(lines)
    assert "| 52.15 |" in "\n".join(lines)  # as stated, not rounded again
    table = [line for line in lines if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    caption = "\n".join(line for line in lines if line.startswith("- "))
    assert "MISSING TRIALS" in caption and "slime slime_code 1-shot seed 2" in caption
    assert "slime slime_code 10-shot seed 1, 2" in caption and "n = 1, 2" in caption
    assert "![a.png](a.png)" in lines


def test_csv_holds_every_row_in_full_precision(tmp_path: Path) -> None:
    store(tmp_path, *mini_trials())
    report = subject_report(collect(tmp_path), "car", load_published("car"))
    lines = list(csv.DictReader(io.StringIO(csv_text(report))))
    assert len(lines) == 2 + 9
    assert float(lines[0]["average_std"]) == pytest.approx(5 / math.sqrt(2), abs=1e-12)
    assert (lines[0]["seeds"], lines[0]["missing_seeds"], lines[0]["unit"]) == ("0 1", "2", "percent")
    assert (lines[1]["average_std"], lines[1]["published"], lines[2]["published"]) == ("", "False", "True")


def test_nothing_missing_is_said_too(tmp_path: Path) -> None:
    store(tmp_path, trial([50] * 6))
    report = subject_report(collect(tmp_path), "car", None, expected_shots=(1,), expected_seeds=(0,))
    assert "missing trials: none (of shots 1; seeds 0)" in markdown(report)
    assert report.columns == [*CAR[1:], "background"]


def test_failed_and_invalid_trials_stand_in_the_caption(tmp_path: Path) -> None:
    folders = store(tmp_path, trial([50] * 6), trial([50] * 6, seed=1), trial([50] * 6, seed=2))
    (folders[1] / "result.json").unlink()
    (folders[1] / "error.json").write_text(json.dumps({"summary": "out of memory"}))
    (folders[2] / "result.json").write_text("")
    text = markdown(subject_report(collect(tmp_path), "car", load_published("car")))
    assert "failed: slime on mini_car, 1-shot, seed 1 (out of memory)" in text
    assert "1 result file(s) are not valid" in text


def test_paper_preset_is_compared_with_the_paper(tmp_path: Path) -> None:
    ours = [
        trial([80] * 6, seed=seed, preset="paper", data="pascal_part_car", backbone="sd21_base") for seed in (0, 1, 2)
    ]
    store(tmp_path, *ours, trial([50] * 6))
    report = subject_report(collect(tmp_path), "car", load_published("car"))
    paper, mini = sorted(sections(report), key=lambda section: not section.compared)
    assert paper.compared and not mini.compared
    text = markdown(report)
    assert "| +18.4 | ours |" in text  # 80 - 61.6
    assert text.count("OTHER DATA") == 1
    rows = json.loads(table_json(report))
    gap = next(row for row in rows if row["preset"] == "paper")["difference"]
    assert gap["average"] == pytest.approx(18.4) and gap["per_class"]["light"] == pytest.approx(42.5)
    assert next(row for row in rows if row["preset"] == "mini")["difference"] is None
    assert not any(row["other_data"] for row in rows if row["published"])


def test_captions_say_how_the_data_were_prepared(tmp_path: Path) -> None:
    made = {"rule": "lagm", "test": "horse_val"}
    ours = [dataclasses.replace(trial([80] * 6, seed=seed, data="pascal_part_car"), prepared=made) for seed in (0, 1)]
    store(tmp_path, *ours)
    report = subject_report(collect(tmp_path), "car", load_published("car"))
    assert "data prepared with rule lagm, test horse_val" in markdown(report)
    assert "rule lagm, test horse_val" in csv_text(report)
    assert [row["prepared"] for row in json.loads(table_json(report)) if not row["published"]] == [made]


def test_differently_prepared_data_are_told_apart(tmp_path: Path) -> None:
    for rule in ("lagm", "paper"):
        one = trial([80] * 6, data="pascal_part_car", fingerprints=FINGERPRINTS | {"data": (rule * 64)[:64]})
        store(tmp_path, dataclasses.replace(one, prepared={"rule": rule}))
    text = markdown(subject_report(collect(tmp_path), "car", load_published("car")))
    assert "data prepared with rule lagm; or with rule paper" in text and "rule=lagm" in text and "rule=paper" in text


def test_the_data_sets_and_backbones_to_compare_with_exist() -> None:
    from slime_bench.paths import config_dir

    for subject in ("car", "horse", "face"):
        published = load_published(subject)
        assert published is not None and published.comparable["data"] and published.comparable["backbone"]
        for group in ("data", "backbone"):
            names = published.comparable[group]
            assert all((config_dir() / group / f"{name}.yaml").is_file() for name in names)


def test_only_like_is_compared_with_like() -> None:
    published = load_published("car")
    world = {"preset": "paper", "data": "pascal_part_car", "backbone": "sd21_base"}
    one = trial([80] * 6, **world)
    assert comparison(aggregate([one])[0], published) is not None
    for row in (
        aggregate([trial([80] * 6)])[0],
        aggregate([one], "dataset")[0],
        aggregate([one], background=False)[0],
        aggregate([trial([80] * 6, shots=3, **world)])[0],
        aggregate([trial([80] * 6, method="other", **world)])[0],
        aggregate([trial([80] * 6, **world | {"backbone": "mini_sd"})])[0],
        aggregate([trial([80] * 6, **world | {"data": "own_cars"})])[0],
        aggregate([dataclasses.replace(one, prepared={"limit": "50"})])[0],
        aggregate([dataclasses.replace(one, prepared={"test": "my_cars"})])[0],
    ):
        assert comparison(row, published) is None
        assert difference(row, None) is None
    assert published is not None
    assert comparison(published_rows(published, True)[0], published) is None


def test_columns_appear_where_rows_differ(tmp_path: Path) -> None:
    store(tmp_path, trial([50] * 6), trial([60] * 6, config={"method.maps": "cross"}), trial([60] * 6, backbone="b|x"))
    text = markdown(subject_report(collect(tmp_path), "car", None))
    header = next(line for line in text.splitlines() if line.startswith("| method"))
    assert "backbone" in header and "variant" in header and "protocol" not in header
    assert "maps=cross" in text and "b\\|x" in text


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    store(tmp_path, *mini_trials())
    run(tmp_path, console=console())
    folder = tmp_path / "reports" / "car"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    run(tmp_path, console=console())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert str(tmp_path).encode() not in b"".join(first.values())


def test_all_subjects(tmp_path: Path) -> None:
    store(tmp_path, trial([50] * 6))
    classes = ["background", "head", "neck+torso", "leg", "tail"]
    store(tmp_path, trial([50] * 5, subject="horse", data="mini_horse", classes=classes))
    assert [report.subject for report in run(tmp_path, console=console())] == ["car", "horse"]
    assert (tmp_path / "reports" / "horse" / "table.md").is_file()


def test_terminal_narrower_than_the_table_folds_and_does_not_cut(tmp_path: Path) -> None:
    store(tmp_path, *mini_trials())
    out = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    run(tmp_path, console=out)
    text = printed(out)
    assert "…" not in text
    assert all(word in text for word in ("52.5", "±3.5", "25.0", "±7.1", "OTHER DATA"))
    assert all(len(line.rstrip()) <= 60 for line in text.splitlines()[:-2])


def test_nothing_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    assert main(["--outputs", str(tmp_path)], console()) == 2
    assert "make reproduce-car" in capsys.readouterr().err
    store(tmp_path, trial([50] * 6))
    assert main(["--outputs", str(tmp_path), "--subject", "horse"], console()) == 2
    error = capsys.readouterr().err
    assert "make reproduce-horse" in error and "results for car" in error and "Traceback" not in error
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ResultError):
        main(["--outputs", str(tmp_path), "--subject", "horse"], console())


@pytest.mark.parametrize(
    "arguments", [["--seeds", "a"], ["--shots", "1,"], ["--convention", "slim"], ["--subject", "../x"]]
)
def test_bad_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and arguments[0] in capsys.readouterr().err


def test_full_disk_while_reporting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path, trial([50] * 6))

    def full(*arguments: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="free space"):
        run(tmp_path, console=console())


# ------------------------------------------------------------------------------------------------ pictures


def grid_items(number: int = 2, classes: int = 3, size: int = 8) -> list[GridItem]:
    rng = np.random.default_rng(0)
    return [
        GridItem(
            image=rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
            label=rng.integers(0, classes, (size, size)),
            prediction=rng.integers(0, classes, (size, size)),
            maps=rng.random((classes, 4, 4)).astype(np.float16),
            image_id=f"test-{index:03d}",
        )
        for index in range(number)
    ]


def test_grid_opens_with_its_size(tmp_path: Path) -> None:
    items = grid_items()
    items[0].label[0, 0] = 255
    qualitative_grid(tmp_path / "one.png", items, ["background", "body", "light"], "a title")
    with Image.open(tmp_path / "one.png") as image:
        assert image.format == "PNG"
        assert image.size == grid_size(2, 3) == (780, 390)
        pixels = np.asarray(image.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
    qualitative_grid(tmp_path / "two.png", items, ["background", "body", "light"], "a title")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_colours_and_ignored_pixels() -> None:
    for number in (1, 6, 10, 20):
        assert len(np.unique(class_colours(number), axis=0)) == number
    assert class_colours(77).shape == (77, 3)
    painted = paint(np.array([[0, 2, 255]]), class_colours(3))
    assert painted.shape == (1, 3, 3)
    assert painted[0, 1].tolist() == class_colours(3)[2].tolist()
    assert painted[0, 2].tolist() == list(IGNORED)


def test_qualitative_round_trip(tmp_path: Path) -> None:
    items, path = grid_items(), tmp_path / "qualitative.npz"
    write_qualitative(path, items, ["background", "body", "neck+torso"])
    found, classes = read_qualitative(path)
    assert classes == ["background", "body", "neck+torso"]
    for one, two in zip(found, items, strict=True):
        assert one.image_id == two.image_id
        for name in ("image", "label", "prediction", "maps"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_report_draws_the_first_seed_that_kept_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trials = [trial([50] * 6, seed=seed) for seed in (0, 1, 2)]
    folders = store(tmp_path, *trials)
    (folders[0] / "qualitative.npz").write_bytes(b"broken")
    write_qualitative(folders[1] / "qualitative.npz", grid_items(1, 6), CAR)
    run(tmp_path, console=console())
    folder = tmp_path / "reports" / "car"
    (picture,) = folder.glob("*.png")
    assert picture.name == f"qualitative-mini_car-slime-1-shot-seed1-{trials[1].signature}.png"
    assert f"]({picture.name})" in (folder / "table.md").read_text()
    assert "cannot be read" in caplog.text

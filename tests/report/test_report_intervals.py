"""Intervals and paired differences of result files: honest sentences, every file, and nothing from spoilt counts."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_bench.errors import ResultError
from slime_bench.metrics import CONVENTION_RULES
from slime_bench.metrics.bootstrap import Bounds
from slime_bench.metrics.iou import IouCounts
from slime_bench.report.collect import collect
from slime_bench.report.published import load_published
from slime_bench.report.statistics import MIN_SEEDS, ImageBootstrap, Interval, Paired, claim_lines, row_welch
from slime_bench.report.subject import subject_report
from slime_bench.report.table import Grid, Line, escaped, grid_latex
from slime_bench.results.result import PER_IMAGE_FILE, TrialResult
from tests.fixtures.toy_results import CAR, report_command, store, trial

Folders = dict[str, Path]
IDS = [f"car-{index:04}" for index in range(30)]


def counts_of(quality: float, seed: int, images: int = 30, plates: int = 5) -> IouCounts:
    """Counts of images whose IoU lies around `quality`; `plates` images have a plate. One ground truth for all."""
    rng = np.random.default_rng(seed)
    union = np.full((images, len(CAR)), 1000)
    intersection = (1000 * np.clip(rng.normal(quality, 0.1, union.shape), 0, 1)).astype(np.int64)
    present = np.ones(union.shape, dtype=bool)
    present[plates:, CAR.index("plate")] = False
    intersection[~present] = 0
    union[~present] = 0
    union[-1, CAR.index("plate")] = 10  # seen where there is none: by one convention it counts
    return IouCounts(*(torch.from_numpy(each) for each in (intersection, union, present)))


def add(root: Path, counts: IouCounts, seed: int = 0, ids: Sequence[str] = IDS, **changes: Any) -> TrialResult:
    """A finished trial with its counts, unless there are no `ids`."""
    result = trial(counts, seed, **changes)
    store(root, result, counts=counts, ids=ids[: counts.num_images])
    return result


def intervals(
    results: list[TrialResult],
    folders: Folders,
    convention: str = "slime",
    background: bool = True,
    resamples: int = 50,
) -> dict[str, Interval]:
    """Series -> its interval."""
    bootstrap = ImageBootstrap(folders, resamples)
    return {
        series: bootstrap.interval([one for one in results if one.series == series], convention, background)
        for series in dict.fromkeys(one.series for one in results)
    }


def paired(a: list[TrialResult], b: list[TrialResult], folders: Folders, resamples: int = 50) -> Paired:
    return ImageBootstrap(folders, resamples).paired(a, b, "slime", True)


def report(root: Path, *arguments: str) -> str:
    return report_command(root, "--subject", "car", *arguments)


@pytest.fixture
def two_methods(tmp_path: Path) -> Path:
    for seed in (0, 1, 2):
        add(tmp_path, counts_of(0.6, seed), seed)
        add(tmp_path, counts_of(0.5, 10 + seed), seed, shots=10)
    return tmp_path


# ------------------------------------------------------------------------------------------------ the numbers


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("convention", CONVENTION_RULES)
def test_rows_lie_inside_their_intervals(two_methods: Path, convention: str, background: bool) -> None:
    found = collect(two_methods)
    made = subject_report(
        found, "car", None, convention=convention, background=background, across_shots=True,
        bootstrap=ImageBootstrap(found.folders, 300),
    )  # fmt: skip
    assert len(made.rows) == 2
    for row in made.rows:
        interval = row.interval
        assert interval is not None and interval.images == 30 and not interval.missing
        spans = {**{name: interval.per_class[name] for name in CAR}, "average": interval.average}
        for name, stat in {**row.per_class, "average": row.average}.items():
            span = spans[name]
            assert span is not None and stat.mean is not None and span.low <= stat.mean <= span.high
        counted = 6 if convention != "slime" else 5
        assert interval.class_images == {name: counted if name == "plate" else 30 for name in CAR}
    same = intervals(found.results, found.folders, convention, background, resamples=300)
    assert same == {row.series: row.interval for row in made.rows}
    (pair,) = made.pairs
    assert pair.paired is not None and (pair.a.shots, pair.b.shots) == (10, 1)
    means = [row.average.mean or 0 for row in made.rows]
    assert pair.paired.average.mean == pytest.approx(means[1] - means[0])
    assert pair.paired.average.agree == 3 and pair.paired.average.p == pytest.approx(2 / 301)
    assert pair.paired.seeds == (0, 1, 2) and pair.paired.unpaired_seeds == ()


@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(30)))
def test_the_order_of_the_images_means_nothing(tmp_path_factory: pytest.TempPathFactory, order: list[int]) -> None:
    counts = counts_of(0.6, 0)
    shuffled = IouCounts(*(each[order] for each in (counts.intersection, counts.union, counts.present)))
    found = []
    for some, ids in ((counts, IDS), (shuffled, [IDS[index] for index in order])):
        root = tmp_path_factory.mktemp("runs")
        result = add(root, some, ids=ids)
        found.append(intervals([result], collect(root).folders, resamples=50))
    assert found[0] == found[1]


def test_a_row_paired_with_itself(two_methods: Path) -> None:
    found = collect(two_methods)
    some = [one for one in found.results if one.shots == 1]
    itself = paired(some, some, found.folders, resamples=100)
    for difference in [itself.average, *itself.per_class.values()]:
        assert (difference.mean, difference.bounds, difference.p) == (0.0, Bounds(0.0, 0.0), 1.0)


def test_only_seeds_of_both_are_paired(tmp_path: Path) -> None:
    for seed in (0, 1, 3):
        add(tmp_path, counts_of(0.6, seed), seed)
    for seed in (1, 2, 3):
        add(tmp_path, counts_of(0.5, seed), seed, shots=10)
    found = collect(tmp_path)
    a, b = ([one for one in found.results if one.shots == shots] for shots in (1, 10))
    pair = paired(a, b, found.folders, resamples=20)
    assert (pair.seeds, pair.unpaired_seeds) == ((1, 3), (0, 2))
    gaps = [100 * ((x.average or 0) - (y.average or 0)) for x in a for y in b if x.seed == y.seed]
    assert pair.average.mean == pytest.approx(np.mean(gaps)) and pair.average.std == pytest.approx(np.std(gaps, ddof=1))
    with pytest.raises(ResultError, match="no seed in common"):
        paired(a[:1], b, found.folders)


@pytest.mark.parametrize("what", ["images", "ground truth"])
def test_other_images_are_not_paired(tmp_path: Path, what: str) -> None:
    ids = [f"other-{index}" for index in range(30)] if what == "images" else IDS
    a = add(tmp_path, counts_of(0.6, 0))
    b = add(tmp_path, counts_of(0.5, 1, plates=5 if what == "images" else 6), ids=ids, shots=10)
    found = collect(tmp_path)
    with pytest.raises(ResultError, match="same images"):
        paired([a], [b], found.folders)
    text = report(tmp_path, "--intervals", "--resamples", "20", "--across-shots")
    assert "95 % intervals of the IoU" in text and "paired differences of the average" not in text
    made = subject_report(found, "car", None, bootstrap=ImageBootstrap(found.folders, 20), across_shots=True)
    assert [pair.reason for pair in made.pairs] == [
        "These trials were not tested on the same images with the same ground truth"
    ]


# ------------------------------------------------------------------------------------------------ counts that do not do


def test_results_without_counts_say_so(tmp_path: Path) -> None:
    for seed in (0, 1):
        add(tmp_path, counts_of(0.6, seed), seed, ids=IDS if seed else [])
    add(tmp_path, counts_of(0.5, 5), shots=10)
    text = report(tmp_path, "--intervals", "--resamples", "20", "--across-shots")
    assert f"no interval over test images: slime 1-shot: there is no {PER_IMAGE_FILE} beside the result" in text
    folder = tmp_path / "reports" / "car"
    rows = {row["shots"]: row["interval"] for row in json.loads((folder / "table.json").read_text()) if row["series"]}
    assert rows[1]["missing"] and rows[1]["average"] is None and rows[10]["average"]["low"] > 0
    (line,) = [line for line in csv.DictReader((folder / "table.csv").open()) if line["seeds"] == "0 1"]
    assert line["average_low"] == "" and "per_image" in line["interval_missing"] and line["average_mean"]
    (pair,) = json.loads((folder / "pairs.json").read_text())
    # Seed 0, which both have, lacks its counts.
    assert pair["paired"] is None and "there is no" in pair["reason"]


def test_a_damaged_file_of_counts_is_not_used(tmp_path: Path) -> None:
    result = add(tmp_path, counts_of(0.6, 0))
    folders = collect(tmp_path).folders
    path = folders[result.signature] / PER_IMAGE_FILE
    path.write_bytes(path.read_bytes()[:-50])
    spoilt = intervals([result], folders, resamples=20)[result.series]
    assert spoilt.average is None and spoilt.missing and str(tmp_path) not in spoilt.missing
    assert "no interval over test images: slime 1-shot" in report(tmp_path)


# ------------------------------------------------------------------------------------------------ the files


def test_intervals_stand_in_every_file_and_on_the_console_only_if_asked(two_methods: Path) -> None:
    plain = report(two_methods)
    assert "n = 3 seeds are too few for a claim" in plain and "(--intervals prints them)" in plain
    assert "resamples of the test images" not in plain
    text = report(two_methods, "--intervals")
    folder = two_methods / "reports" / "car"
    row = next(row for row in json.loads((folder / "table.json").read_text()) if row["shots"] == 10 and row["series"])
    average = row["interval"]["average"]
    span = f"{average['low']:.1f} to {average['high']:.1f}"
    page, tex = (folder / "table.md").read_text(), (folder / "table.tex").read_text()
    assert span in text and span in page and span in tex
    lines = {
        line["shots"]: line for line in csv.DictReader((folder / "table.csv").open()) if line["published"] == "False"
    }
    assert float(lines["10"]["average_low"]) == average["low"] and lines["10"]["interval_images"] == "30"
    assert float(lines["10"]["plate_high"]) == row["interval"]["per_class"]["plate"]["high"]
    assert "plate (5)" in page and "plate (5)" in text

    # Rows of different shots are no pairs unless that is asked for.
    assert json.loads((folder / "pairs.json").read_text()) == [] and "A − B" not in page + text
    text = report(two_methods, "--intervals", "--across-shots")
    page = (folder / "table.md").read_text()
    (pair,) = json.loads((folder / "pairs.json").read_text())
    found = pair["paired"]["average"]
    (line,) = csv.DictReader((folder / "pairs.csv").open())
    assert float(line["average_mean"]) == found["mean"] and float(line["average_low"]) == found["bounds"]["low"]
    assert (line["a"], line["b"], line["n"], line["seeds"], line["average_agree"]) == (
        "slime 10-shot", "slime 1-shot", "3", "0 1 2", "3"
    )  # fmt: skip
    for words in ("A − B", "3 of 3", f"{found['bounds']['low']:.1f} to {found['bounds']['high']:.1f}", "≤ 0.001"):
        assert words in page and words in text
    assert "of the number of pairs" not in page


def test_rows_of_the_same_shots_are_paired(two_methods: Path) -> None:
    for shots in (1, 10):
        add(two_methods, counts_of(0.4, 20 + shots), shots=shots, config={"method.lr": 0.3})

    def pairs(*arguments: str) -> list[tuple[str, str]]:
        report(two_methods, "--variants", "--resamples", "20", *arguments)
        with (two_methods / "reports" / "car" / "pairs.csv").open() as file:
            return [(line["a"], line["b"]) for line in csv.DictReader(file)]

    same = [("slime 1-shot (lr=0.3)", "slime 1-shot"), ("slime 10-shot (lr=0.3)", "slime 10-shot")]
    assert pairs() == same
    every = pairs("--across-shots")
    assert len(every) == 6 and {*same, ("slime 10-shot", "slime 1-shot")} < set(every)


def test_no_resamples_no_intervals(two_methods: Path) -> None:
    text = report(two_methods, "--resamples", "0")
    assert "interval" not in text.replace(str(two_methods), "") and "too few for a claim" in text
    rows = json.loads((two_methods / "reports" / "car" / "table.json").read_text())
    assert all(row["interval"] is None for row in rows)


def test_differences_to_published_rows_are_tested_where_they_may(tmp_path: Path) -> None:
    names = {"data": "pascal_part_car", "backbone": "sd21_base", "preset": "paper", "prepared": {"test": "regan"}}
    for seed in (0, 1):
        add(tmp_path, counts_of(0.6, seed), seed, **names)
    add(tmp_path, counts_of(0.6, 0), 0, shots=10, **names)
    text = report(tmp_path, "--resamples", "20")
    folder, published = tmp_path / "reports" / "car", load_published("car")
    by_shots = {row["shots"]: row for row in json.loads((folder / "table.json").read_text()) if row["series"]}
    theirs = published.main_row("slime", 1) if published else None
    assert published is not None and theirs is not None and theirs.average.std is not None
    values = [100 * (one.average or 0) for one in collect(tmp_path).results if one.shots == 1]
    oracle = scipy.stats.ttest_ind_from_stats(
        np.mean(values), np.std(values, ddof=1), 2, theirs.average.mean, theirs.average.std, 3, equal_var=False
    )
    assert by_shots[1]["welch"] == {
        "statistic": pytest.approx(oracle.statistic), "p": pytest.approx(oracle.pvalue)
    }  # fmt: skip
    assert by_shots[10]["welch"] is None  # one seed
    lines = {line["shots"]: line for line in csv.DictReader((folder / "table.csv").open()) if line["seeds"]}
    assert float(lines["1"]["welch_p"]) == pytest.approx(oracle.pvalue) and lines["10"]["welch_p"] == ""
    assert float(lines["10"]["average_minus_published"]) == by_shots[10]["difference"]["average"]
    assert "slime 1-shot (n = 2): t =" in text and "10-shot (n = 1): t" not in text
    # Without a published deviation there is a difference and no test.
    row = subject_report(collect(tmp_path), "car", published).rows[0]
    stated = dataclasses.replace(theirs, average=dataclasses.replace(theirs.average, std=None))
    assert row_welch(row, dataclasses.replace(published, rows=[stated])) is None


# ------------------------------------------------------------------------------------------------ tests on means


def test_fewest_seeds_for_an_exact_test() -> None:
    """The reason for MIN_SEEDS: the smallest p of an exact two-sided test of as many against as many seeds."""

    def least(n: int) -> float:
        sides = np.arange(n, dtype=float), np.arange(n, dtype=float) + 100

        def difference(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
            return np.asarray(a.mean(axis) - b.mean(axis))

        return float(scipy.stats.permutation_test(sides, difference, vectorized=True, n_resamples=np.inf).pvalue)

    assert least(MIN_SEEDS - 1) > 0.05 > least(MIN_SEEDS)


# ------------------------------------------------------------------------------------------------ sentences and LaTeX


def test_sentences_for_too_few() -> None:
    assert claim_lines([("a", 4, 20), ("b", 5, None)]) == []
    (line,) = claim_lines([("a", 3, 100), ("b", 4, 100)])
    assert line.startswith("n = 3 seeds (a) are too few for a claim")
    (line,) = claim_lines([("a", 1, None), ("b", 3, None)])
    assert line.startswith("n = 1, 3 seeds are too few for a claim")
    (line,) = claim_lines([("a", 4, 19)])
    assert line.startswith("19 test images are too few for a claim: below 20")


def test_latex_has_the_cells_of_the_table_and_booktabs() -> None:
    grid = Grid(
        "car: 95 % & more", ["method", "avg", "Δ"],
        [Line(["slime_a {x}", "79.6±0.4", "-1.2"], True), Line(["[5,20]", "1", "-"], False)], ["seen 2026-11-21: a_b"],
    )  # fmt: skip
    text = grid_latex(grid)
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")
    assert r"{}\textbf{slime\_a \{x\}} & 79.6\ensuremath{\pm}0.4 & \ensuremath{-}1.2 \\" in text
    assert r"{}[5,20] & 1 & - \\" in text and r"\begin{tabular}{lrr}" in text
    assert r"\caption{car: 95 \% \& more}" in text and r"seen 2026-11-21: a\_b" in text


@settings(deadline=None)
@given(st.text(alphabet='ab12 \\{}$&%#_^~<>|"±Δ−-', max_size=30))
def test_latex_obeys_nothing_in_a_cell(text: str) -> None:
    """After our own commands are taken out, no sign is left that LaTeX would obey, and braces are in balance."""
    made = escaped(text)
    rest = re.sub(r"\\[&%$#_{}]", "", made)
    rest = re.sub(r"\\text[a-z]+\{\}|\\ensuremath\{(\\[a-zA-Z]+|-)\}", "", rest)
    assert not re.search(r"[\\{}$&%#_^~]", rest)

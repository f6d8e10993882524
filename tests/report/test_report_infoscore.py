"""Rows of the second paper's method in the main tables: beside SLiMe, with their own shots and reservations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.fixtures.toy_results import facts_of, report_command, store, trial

STATED = {
    "refinement": "CRF, 5 iterations",
    "layers": "the best 2 by InfoScore, ranked on up to 20 unlabelled images of the training side",
    "prompts": "mini_car, single (one word for each class)",
}
VLM = {"name": "infoscore", "prompts": "mini_car", "multi_prompt": False, "layers": None, "top": 2}
VLM |= {"rank_on": "train", "rank_images": 20}


def add(root: Path, percent: int, seed: int, shots: int, **method: Any) -> None:
    """A finished trial of SLiMe, or of the other method where its settings are given."""
    said, refine = method.pop("stated", {}), method.pop("refine", {"name": "crf", "iterations": 5})
    names, facts = {}, facts_of("slime", shots)
    if method:
        names = {"method": "infoscore", "backbone": "mini_blip", "protocol": "infoscore_mini"}
        facts, names["config"] = (
            facts_of("infoscore", shots, stated=STATED | said),
            {"method": VLM | method, "refine": refine},
        )
    store(root, trial([percent] * 6, seed, shots, facts=facts, **names))


def table(root: Path, *arguments: str) -> str:
    report_command(root, "--subject", "car", "--resamples", "0", *arguments)
    return (root / "reports" / "car" / "table.md").read_text().replace("\\", "")


def ours(page: str) -> list[list[str]]:
    lines = [line for line in page.splitlines() if line.startswith("| **")]
    return [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines]


def both(root: Path, zero_shot: bool = True) -> None:
    for seed in (0, 1, 2):
        for shots, percent in ((1, 60), (10, 66)):
            add(root, percent + seed, seed, shots)
        for shots, percent in ((0, 30), (1, 40), (10, 50)) if zero_shot else ((1, 40), (10, 50)):
            add(root, percent + seed, seed, shots, name="infoscore")


def test_rows_stand_beside_slime_by_shots(tmp_path: Path) -> None:
    both(tmp_path)
    page = table(tmp_path)
    assert [(line[0], line[1], line[-2]) for line in ours(page)] == [
        ("InfoScore zero-shot", "0", "31.0±1.0"),
        ("slime", "1", "61.0±1.0"),
        ("InfoScore 1-shot", "1", "41.0±1.0"),
        ("slime", "10", "67.0±1.0"),
        ("InfoScore 10-shot", "10", "51.0±1.0"),
    ]
    # Each method has one backbone and protocol: no column for them.
    assert "| backbone |" not in page and "backbone mini_blip, mini_sd; protocol infoscore_mini, slime_mini" in page
    assert "missing trials: none (of shots 0, 1, 10; seeds 0, 1, 2)" in page
    # Fully supervised published rows, which have no number of shots, still come first.
    lines = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    assert lines[1].endswith("*") and lines.index("**InfoScore zero-shot**") > 1


def test_zero_shot_is_missed_of_the_method_that_can_do_it(tmp_path: Path) -> None:
    both(tmp_path, zero_shot=False)
    page = table(tmp_path)
    assert "MISSING TRIALS (of shots 0, 1, 10; seeds 0, 1, 2): infoscore infoscore_mini 0-shot seed 0, 1, 2\n" in page
    trials = json.loads((tmp_path / "reports" / "car" / "trials.json").read_text())
    assert {(one["method"], one["shots"]) for one in trials["missing"]} == {("infoscore", 0)}
    assert trials["expected"]["shots"] == [0, 1, 10]
    assert "missing trials: none (of shots 1, 10; seeds 0, 1, 2)" in table(tmp_path, "--shots", "1,10")


def test_rows_of_other_settings_say_theirs(tmp_path: Path) -> None:
    add(tmp_path, 40, 0, 0, name="infoscore")
    layers = "the best 2 by InfoScore of single prompts, ranked on TEST IMAGES (transductive)"
    said = {"refinement": "none", "layers": layers}
    add(tmp_path, 45, 0, 0, rank_on="test", refine={"name": "none"}, stated=said)
    page = table(tmp_path, "--variants")
    (line,) = [line for line in page.splitlines() if "TEST IMAGES" in line]
    assert line.startswith("- InfoScore zero-shot (") and "rank_on=test" in line and "refine=none" in line
    assert f"layers {layers}; prompts mini_car, single (one word for each class); refinement none" in line
    (other,) = [line for line in page.splitlines() if "training side" in line]
    assert "refinement CRF, 5 iterations" in other and "single" in other


def test_a_method_that_nobody_knows_says_itself_what_tables_need(tmp_path: Path) -> None:
    """One with 0 shots of least, a label, and an order behind all others; and one that says nothing at all."""
    facts = {"label": "Foreign", "least_shots": 0, "own_report": None, "table_order": 99, "stated": {"prompts": "none"}}
    for name, said in (("foreign", facts), ("silent", {})):
        store(tmp_path, trial([50] * 6, method=name, facts=said))
    add(tmp_path, 60, 0, 1)
    page = table(tmp_path, "--seeds", "0")
    assert [line[0] for line in ours(page)] == ["slime", "silent", "Foreign"]  # slime stands beside the published row
    assert "- Foreign: prompts none" in page.splitlines()
    assert "foreign slime_mini 0-shot seed 0; foreign slime_mini 10-shot seed 0; silent slime_mini 10-shot" in page

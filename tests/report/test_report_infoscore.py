"""Rows of the second paper's method in the main tables: beside SLiMe, with their own shots and reservations."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from slime_bench.metrics.iou import IouCounts
from slime_bench.report.command import main
from slime_bench.results import identity
from slime_bench.results.result import TrialResult, from_counts, write_result
from tests.fixtures.toy_results import facts_of

CAR = ["background", "body", "light", "plate", "wheel", "window"]
FINGERPRINTS = {"backbone": "ab" * 32, "data": "cd" * 32}
STATED = {
    "crf": "on, 20 iterations",
    "layers": "the best 2 by InfoScore, ranked on up to 100 unlabelled images of the training side",
    "prompts": "mini_car, single (one word for each class)",
}
VLM = {"name": "infoscore", "prompts": "mini_car", "multi_prompt": False, "layers": None, "top": 2}
VLM |= {"rank_on": "train", "rank_images": 100, "crf": {"enabled": True, "iterations": 20}}
SLIME = {"name": "slime", "maps": "was", "lr": 0.1}


def store(root: Path, percent: int, seed: int, shots: int, preset: str = "mini", **method: Any) -> TrialResult:
    """A finished trial of SLiMe, or of the other method where its settings are given."""
    said = method.pop("stated", {})
    settings = VLM | method if method.get("name", "infoscore") == "infoscore" and method else SLIME
    names = {"method": settings["name"], "backbone": "mini_blip" if "crf" in settings else "mini_sd"}
    names |= {"data": "mini_car", "preset": preset, "protocol": "infoscore_mini" if "crf" in settings else "slime_mini"}
    if preset == "paper":
        names |= {"data": "pascal_part_car", "backbone": "sd21_base"}
    config: dict[str, Any] = {"preset": preset, "seed": seed, "shots": shots, "method": settings}
    config |= {group: {"name": names[group]} for group in ("backbone", "data", "protocol")}
    union = torch.full((2, len(CAR)), 100)
    counts = IouCounts(union * percent // 100, union, union > 0)
    stated = STATED | said if "crf" in settings else {}
    result = from_counts(
        counts, config=config, fingerprints=FINGERPRINTS, seed=seed, shots=shots, subject="car", classes=CAR,
        facts=facts_of(names["method"], shots, stated=stated), **names,
    )  # fmt: skip
    folder = identity.trial_folder(root, result.data, result.method, shots, seed, result.signature)
    write_result(folder, result)
    return result


def table(root: Path, *arguments: str) -> str:
    assert (
        main(["--outputs", str(root), "--subject", "car", *arguments], lambda *_: [], Console(file=io.StringIO())) == 0
    )
    return (root / "reports" / "car" / "table.md").read_text().replace("\\", "")


def ours(page: str) -> list[list[str]]:
    lines = [line for line in page.splitlines() if line.startswith("| **")]
    return [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines]


def both(root: Path, zero_shot: bool = True) -> None:
    for seed in (0, 1, 2):
        for shots, percent in ((1, 60), (10, 66)):
            store(root, percent + seed, seed, shots)
        for shots, percent in ((0, 30), (1, 40), (10, 50)) if zero_shot else ((1, 40), (10, 50)):
            store(root, percent + seed, seed, shots, name="infoscore")


def test_rows_stand_beside_slime_by_shots(tmp_path: Path) -> None:
    both(tmp_path)
    page = table(tmp_path)
    assert [(line[0], line[1], line[2], line[3], line[-2]) for line in ours(page)] == [
        ("InfoScore zero-shot", "0", "mini_blip", "infoscore_mini", "31.0±1.0"),
        ("slime", "1", "mini_sd", "slime_mini", "61.0±1.0"),
        ("InfoScore 1-shot", "1", "mini_blip", "infoscore_mini", "41.0±1.0"),
        ("slime", "10", "mini_sd", "slime_mini", "67.0±1.0"),
        ("InfoScore 10-shot", "10", "mini_blip", "infoscore_mini", "51.0±1.0"),
    ]
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
    store(tmp_path, 40, 0, 0, name="infoscore")
    said = {"crf": "off", "layers": "the best 2 by InfoScore of single prompts, ranked on TEST IMAGES (transductive)"}
    store(tmp_path, 45, 0, 0, rank_on="test", crf={"enabled": False, "iterations": 20}, stated=said)
    page = table(tmp_path, "--variants")
    (line,) = [line for line in page.splitlines() if "TEST IMAGES" in line]
    assert line.startswith("- InfoScore zero-shot (") and "rank_on=test" in line
    assert f"CRF off; layers {said['layers']}; prompts mini_car, single" in line
    (other,) = [line for line in page.splitlines() if "training side" in line]
    assert "CRF on, 20 iterations" in other and "single" in other


def test_a_method_that_nobody_knows_says_itself_what_tables_need(tmp_path: Path) -> None:
    """One with 0 shots of least, a label, and an order behind all others; and one that says nothing at all."""
    facts = {"label": "Foreign", "least_shots": 0, "own_report": None, "table_order": 99, "stated": {"prompts": "none"}}
    for name, said in (("foreign", facts), ("silent", {})):
        names = {"method": name, "backbone": "mini_sd", "data": "mini_car", "preset": "mini", "protocol": "slime_mini"}
        config = {"preset": "mini", "seed": 0, "shots": 1, **{key: {"name": names[key]} for key in names}}
        union = torch.full((2, len(CAR)), 100)
        result = from_counts(
            IouCounts(union // 2, union, union > 0), config=config, fingerprints=FINGERPRINTS, seed=0, shots=1,
            subject="car", classes=CAR, facts=said, **names,
        )  # fmt: skip
        write_result(identity.trial_folder(tmp_path, "mini_car", name, 1, 0, result.signature), result)
    store(tmp_path, 60, 0, 1)
    page = table(tmp_path, "--seeds", "0")
    assert [line[0] for line in ours(page)] == ["silent", "slime", "Foreign"]
    assert "- Foreign: prompts none" in page.splitlines()
    assert "foreign slime_mini 0-shot seed 0; foreign slime_mini 10-shot seed 0; silent slime_mini 10-shot" in page

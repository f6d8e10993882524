"""From the downloads of a user to a table of the paper preset, on synthetic twins in the true raw layouts."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.e2e.conftest import command
from tests.fixtures.plain_make import run_make
from tests.fixtures.twins.celebamask import write_celebamask_twin
from tests.fixtures.twins.pascal import EXPECTED, KEPT, expected, write_pascal_twin

TRAIN, VAL, FACES = 13, 4, 30


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data/` and `outputs/` of a user, with the three downloads in data/raw."""
    root = tmp_path_factory.mktemp("user")
    raw = root / "data" / "raw"
    raw.mkdir(parents=True)
    write_pascal_twin(root / "cars", "car", TRAIN, VAL)
    write_pascal_twin(root / "horses", "horse", TRAIN, VAL)
    with tarfile.open(raw / "VOCtrainval_03-May-2010.tar", "w") as archive:
        archive.add(root / "horses" / "VOCdevkit", "VOCdevkit")
    with tarfile.open(raw / "trainval.tar.gz", "w:gz") as archive:
        archive.add(root / "horses" / "Annotations_Part", "Annotations_Part")
    faces = root / "faces" / "CelebAMask-HQ"
    write_celebamask_twin(faces, FACES, distinct=12)
    with zipfile.ZipFile(raw / "CelebAMask-HQ.zip", "w") as archive:
        for file in sorted(faces.rglob("*")):
            archive.write(file, file.relative_to(faces.parent))
    return root


@pytest.fixture(scope="module")
def make(repository: Path, place: Path):  # type: ignore[no-untyped-def]
    """make(arguments) -> the finished process, in this checkout, on the user's data and outputs."""
    stamp = repository / ".venv" / ".stamp"
    newest = max((repository / name).stat().st_mtime for name in ("pyproject.toml", "constraints.txt"))
    if not stamp.is_file() or stamp.stat().st_mtime < newest:
        if os.environ.get("CI") == "true":
            pytest.fail("`make setup` has not been run")
        pytest.skip("the commands run in .venv, which `make setup` has not finished")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        places = {"SLIME_BENCH_DATA": str(place / "data"), "SLIME_BENCH_OUTPUTS": str(place / "outputs")}
        return run_make(repository, *arguments, **places)

    return run


def cars(place: Path) -> list[str]:
    return [f"VOC={place}/cars/VOCdevkit/VOC2010", f"PARTS={place}/cars/Annotations_Part"]


def manifest(folder: Path) -> dict:  # type: ignore[type-arg]
    return json.loads((folder / "manifest.json").read_text())


@pytest.mark.release
def test_car_from_folders_to_the_table(make, place: Path) -> None:  # type: ignore[no-untyped-def]
    places = [f"data_root={place}/data", f"output_root={place}/outputs"]
    missing = command("--multirun", "experiment=paper_car", "backbone=mini_sd", *places, "trainer=cpu")
    assert missing.code != 0 and "make prepare-car" in missing.err

    done = make("prepare-car", *cars(place))
    assert done.returncode == 0, done.stderr
    folder = place / "data" / "pascal_part" / "car"
    facts = manifest(folder)
    wanted = expected("paper", TRAIN)
    assert facts["settings"]["rule"] == "paper"
    splits = [name.split("/")[0] for name in facts["samples"]]
    counts = {split: splits.count(split) for split in ("support", "val", "test")}
    assert counts == {"support": wanted[KEPT] - 10, "val": 10, "test": expected("paper", VAL)[KEPT]}
    assert facts["dropped"] == {reason: 2 * count for reason, count in wanted.items() if reason != KEPT}
    assert all(reason in done.stdout for reason in facts["dropped"])
    again = make("prepare-car", *cars(place))
    assert again.returncode == 0 and "already" in again.stdout

    verified = command("verify", "data=pascal_part_car", f"data_root={place}/data")
    assert verified.code == 0 and "good" in verified.out, verified.out

    settings = "seed=0 trainer=cpu trainer.threads=1 method.max_steps=2 save_maps=1"
    # The pool of the small twin has fewer complete crops than ten.
    others = ["BACKBONE=mini_sd", "VLM=mini_blip", "METHODS=slime infoscore"]
    done = make("reproduce-car", "PRESET=paper", *others, f"ARGS={settings} shots=1,4")
    assert done.returncode == 0, done.stderr
    assert "preset" in done.stdout and "paper" in done.stdout and "mini_sd" in done.stdout
    assert "data prepared with paint kept, rule paper, test car_val (not ReGAN's Car_TestSet)" in " ".join(
        done.stdout.split()
    )
    results = {
        path.parent.parent.name: json.loads(path.read_text())
        for path in (place / "outputs" / "runs" / "pascal_part_car" / "slime").glob("*/*/result.json")
    }
    assert set(results) == {"1-shot", "4-shot"}
    assert results["1-shot"]["support_ids"] == results["4-shot"]["support_ids"][:1]
    assert all(0 < result["average"] < 1 and result["preset"] == "paper" for result in results.values())
    second = list((place / "outputs" / "runs" / "pascal_part_car" / "infoscore").glob("*/*/result.json"))
    assert {path.parent.parent.name for path in second} == {"1-shot", "4-shot"}
    for path in second:
        found = json.loads(path.read_text())
        assert found["support_ids"] == results[path.parent.parent.name]["support_ids"], (
            "both methods see the same images"
        )
        assert found["protocol"] == "infoscore_code" and found["preset"] == "paper"


def test_the_three_rules_side_by_side(make, place: Path) -> None:  # type: ignore[no-untyped-def]
    done = make("prepare-car", *cars(place), "ARGS=--compare-rules")
    assert done.returncode == 0, done.stderr
    rules = ("paper", "slime_lab", "lagm")
    kept = [str(expected(rule, TRAIN)[KEPT]) for rule in rules]
    rows = [line.replace("│", " ").split() for line in done.stdout.splitlines()]
    assert [KEPT, *kept] in rows
    reasons = {reason for case in EXPECTED.values() for outcome in case.values() for reason in outcome}
    assert all(reason in done.stdout for reason in reasons)


def test_horse_from_archives(make, place: Path) -> None:  # type: ignore[no-untyped-def]
    done = make("prepare-horse", "RULE=slime_lab")
    assert done.returncode == 0, done.stderr
    folder = place / "data" / "pascal_part" / "horse"
    facts = manifest(folder)
    assert facts["sources"] == {"voc": "VOCtrainval_03-May-2010.tar", "parts": "trainval.tar.gz"}
    assert sum(not name.startswith("test/") for name in facts["samples"]) == expected("slime_lab", TRAIN)[KEPT]
    assert (folder / "splits" / "slime_lab-1.txt").is_file()
    trial("horse", place, "data.support=slime_lab")
    (path,) = (place / "outputs" / "runs" / "pascal_part_horse").glob("slime/1-shot/seed0-*/result.json")
    train = [name.split("/")[1] for name in facts["samples"] if not name.startswith("test/")]
    assert json.loads(path.read_text())["support_ids"] == [sorted(train)[2]]  # the ids sort as the list does


def test_face_from_an_archive(make, place: Path) -> None:  # type: ignore[no-untyped-def]
    done = make("prepare-face", "ARGS=--size 64")
    assert done.returncode == 0, done.stderr
    facts = manifest(place / "data" / "celebamask_hq")
    assert len(facts["samples"]) == FACES and {name.split("/")[0] for name in facts["samples"]} == {
        "support",
        "val",
        "test",
    }
    trial("face", place, "method.patch_size=null", "method.patches_per_side=1")


def trial(subject: str, place: Path, *overrides: str) -> None:
    """One short trial of the paper preset on the bundled backbone, in this process."""
    places = [f"data_root={place}/data", f"output_root={place}/outputs"]
    short = [
        "method.max_steps=2",
        "trainer=cpu",
        "trainer.progress=false",
        "save_maps=1",
        "shots=1",
        "seed=0",
        "data.batch_size=8",
    ]
    outcome = command(f"experiment=paper_{subject}", "backbone=mini_sd", *places, *short, *overrides)
    assert outcome.code == 0, outcome.err

"""One ablation from the command line to its table: small weights, few pictures, the real sweep and the real report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import Bench, Outcome, command

# The grid of Table 8 ends with an interpolation, which for this preset names a setting a second time.
SWEEP = ("ablation=t_test", "method.epochs=1", "shots=1", "seed=0")

KINDS = {".md", ".csv", ".json", ".tex", ".html"}


@pytest.fixture(scope="module")
def ablated(tiny_sd: Path, car_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Outcome]:
    """A bench on which the ablation ran, and how that ended. Read only: see `copied`."""
    bench = Bench(tiny_sd, car_pictures, tmp_path_factory.mktemp("ablated"))
    return bench, bench("--multirun", *SWEEP)


@pytest.fixture
def copied(ablated: tuple[Bench, Outcome], tmp_path: Path) -> Bench:
    shutil.copytree(ablated[0].outputs, tmp_path / "outputs")
    return Bench(ablated[0].sd, ablated[0].data, tmp_path / "outputs")


def report(bench: Bench, *arguments: str) -> Outcome:
    overrides = [each for each in (*bench.settings, *SWEEP) if not each.startswith("ablation=")]
    return command("report", "--ablation", "t_test", *overrides, *arguments)


def folders(bench: Bench) -> dict[int, Path]:
    """t_test -> folder of its one trial."""
    found = {}
    for path in sorted(bench.outputs.rglob("result.json")):
        found[json.loads(path.read_text())["config"]["method"]["t_test"]] = path.parent
    return found


def test_every_setting_ran_once(ablated: tuple[Bench, Outcome]) -> None:
    bench, outcome = ablated
    assert outcome.code == 0, outcome.err
    assert set(folders(bench)) == {5, 20, 100} and len(list(bench.outputs.rglob("result.json"))) == 3
    begun = [line.split()[-1] for line in outcome.err.splitlines() if line.startswith("[")]
    assert begun == [f"method.t_test={number}" for number in (5, 20, 100, 100)]


def test_the_table_in_another_folder_and_again_to_the_same_bytes(copied: Bench, tmp_path: Path) -> None:
    folder, pages = tmp_path / "docs", []
    for _ in range(2):
        outcome = report(copied, "--out", str(folder))
        assert outcome.code == 0, outcome.err
        pages.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert pages[0] == pages[1] and {Path(name).suffix for name in pages[0]} == KINDS
    assert not (copied.outputs / "reports").exists()
    facts = json.loads((folder / "tiny_car-ablation-t_test.json").read_text())
    assert [(each["setting"], each["default"], each["n"]) for each in facts["settings"]] == [
        ("t_test=5", False, 1),
        ("t_test=20", False, 1),
        ("t_test=100", True, 1),
    ]
    averages = {each["values"]["method.t_test"]: each["average"]["mean"] for each in facts["settings"]}
    for number, path in folders(copied).items():
        stored = json.loads((path / "result.json").read_text())["average"]
        assert averages[number] == pytest.approx(100 * stored)
    for each in facts["settings"]:
        assert each["difference"]["mean"] == pytest.approx(each["average"]["mean"] - averages[100])
    environment = json.loads((folders(copied)[5] / "environment.json").read_text())
    assert facts["provenance"]["devices"] == [environment["device"]] and facts["provenance"]["unknown"] == 0
    assert facts["provenance"]["first"] == environment["finished"][:10]
    for page in (outcome.out, (folder / "tiny_car-ablation-t_test.md").read_text().replace("\\", "")):
        assert "t_test=100 (default)" in page and "missing trials: none of 3" in page
        assert environment["device"] in page and "protocol slime_mini" in page and "Table 8 has 10 shots" in page
    assert len((folder / "tiny_car-ablation-t_test.csv").read_text().splitlines()) == 1 + 3


def test_what_failed_and_what_is_missing(copied: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # no line is folded
    found = folders(copied)
    shutil.rmtree(found[5])
    (found[20] / "result.json").unlink()
    (found[20] / "error.json").write_text(json.dumps({"type": "DeviceError", "summary": "too hot", "status": "failed"}))
    outcome = report(copied)
    assert outcome.code == 0
    (line,) = [each for each in outcome.out.splitlines() if "MISSING TRIALS" in each]
    assert "t_test=5 seed 0; t_test=20 seed 0; to run them: slime-bench --multirun" in line
    assert "failed: t_test=20 seed 0 (DeviceError: too hot)" in outcome.out and "t_test=5 seed 0 (" not in outcome.out


def test_without_a_result_it_says_what_to_run(copied: Bench) -> None:
    outcome = command(
        "report", "--ablation", "lr", "experiment=mini_horse", "--outputs", str(copied.outputs), "seed=0,1"
    )
    assert outcome.code == 2 and "Traceback" not in outcome.err
    assert "slime-bench --multirun experiment=mini_horse seed=0,1 ablation=lr" in outcome.err

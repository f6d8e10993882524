"""The project's own files agree with each other: requirements, constraints, Makefile, no paths of one machine."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from slime_bench.paths import config_dir
from tests.fixtures.plain_make import run_make

PACKAGES = ("slime_bench", "data_prep")
OTHERS = ("feature_probe", "segddpm", "diffseg", "feature_knn")
TARGETS = {
    "help", "setup", "app", "test", "docs", "lint", "format", "mini-data", "report", "ranking", "bench", "clean",
    "reproduce-car", "reproduce-horse", "reproduce-face", "reproduce-all", "ablation-all",
    "ablation-was", "ablation-prompt", "ablation-losses", "ablation-t_opt", "ablation-t_test", "ablation-lr",
    "ablation-layers", "ablation-start", "ablation-probe_t", "ablation-probe_layers",
    "ablation-probe_parts", "prepare-car", "prepare-horse", "prepare-face", "figures",
    *(f"figure-{number}" for number in (1, 2, 5, 8, 9, 10, 11, 12, 13)),
}  # fmt: skip


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def requirements(project: dict[str, Any]) -> list[Requirement]:
    return [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["dev"])]


@pytest.fixture(scope="module")
def constraints(repository: Path) -> dict[str, Version]:
    lines = (repository / "constraints.txt").read_text().splitlines()
    found = {}
    for line in lines:
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([^=<>~!;@\s]+)", line)
        assert match, f"not an exact version: {line!r}"
        name = canonicalize_name(match[1])
        assert name not in found, f"twice: {name}"
        found[name] = Version(match[2])
    return found


def tracked_files(repository: Path) -> list[Path]:
    """Files that git knows or would take up."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout: there are no tracked files to look at")
    return [path for name in done.stdout.split("\0") if name and (path := repository / name).is_file()]


class TestVersions:
    def test_every_dependency_has_an_exact_version_that_fits(
        self, requirements: list[Requirement], constraints: dict[str, Version]
    ) -> None:
        for each in requirements:
            name = canonicalize_name(each.name)
            assert name in constraints, f"{each.name} is not in constraints.txt"
            assert each.specifier.contains(constraints[name], prereleases=True), f"{each} against {constraints[name]}"

    def test_what_dependencies_need_in_turn_is_there_too(
        self, requirements: list[Requirement], constraints: dict[str, Version]
    ) -> None:
        waiting, seen = [(each.name, each.extras) for each in requirements], set()
        while waiting:
            name, extras = waiting.pop()
            if (canonicalize_name(name), frozenset(extras)) in seen:
                continue
            seen.add((canonicalize_name(name), frozenset(extras)))
            assert canonicalize_name(name) in constraints, f"{name} is not in constraints.txt"
            for text in importlib.metadata.requires(name) or []:
                need = Requirement(text)
                if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                    waiting.append((need.name, need.extras))

    def test_malicious_lightning_is_excluded_twice(
        self, requirements: list[Requirement], constraints: dict[str, Version]
    ) -> None:
        (lightning,) = (each for each in requirements if each.name == "lightning")
        for bad in ("2.6.2", "2.6.3"):
            assert not lightning.specifier.contains(bad)
            assert f"!={bad}" in str(lightning.specifier)  # the bound may move one day, the exclusion stays

    def test_every_imported_library_is_declared(self, repository: Path, project: dict[str, Any]) -> None:
        """What is only there because another library needs it goes away with that library."""
        providers = importlib.metadata.packages_distributions()
        extras = [text for texts in project["optional-dependencies"].values() for text in texts]
        declared = {canonicalize_name(Requirement(text).name) for text in (*project["dependencies"], *extras)}
        undeclared = set()
        for file in (each for package in PACKAGES for each in (repository / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module or ""]
                for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - set(PACKAGES):
                    # A library of an extra need not be installed; then its name has to do.
                    if not declared & {canonicalize_name(each) for each in providers.get(top, [top])}:
                        undeclared.add(f"{top} ({file.relative_to(repository)})")
        assert undeclared == set()


class TestMakefile:
    make = staticmethod(run_make)

    def test_help_is_the_default_and_lists_every_target(self, repository: Path) -> None:
        done = self.make(repository)
        assert done.returncode == 0
        listed = {line.split()[0] for line in done.stdout.split("\n\n", 1)[1].splitlines()}
        text = (repository / "Makefile").read_text()
        written = set(re.findall(r"^([a-z][a-z0-9_-]*):(?![=])", text, flags=re.MULTILINE))
        assert written <= listed and listed >= TARGETS
        # A file called `test` or `report` must not make the target done.
        done = self.make(repository, "--print-data-base", "--question", "help")
        phony = re.search(r"^\.PHONY: (.*)$", done.stdout, flags=re.MULTILINE)
        assert phony and set(phony[1].split()) >= TARGETS

    def test_each_target_works_as_the_first_command(self, repository: Path, tmp_path: Path) -> None:
        """In a checkout without .venv, the environment is made first."""
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            (tmp_path / name).write_bytes((repository / name).read_bytes())
        for target in sorted(TARGETS - {"help", "clean", "reproduce-all", "ablation-all", "figures"}):
            done = self.make(tmp_path, "--dry-run", target, f"PYTHON={sys.executable}")
            assert done.returncode == 0, done.stderr
            assert "pip install" in done.stdout and "constraints.txt" in done.stdout, target

    def test_without_a_python_that_fits_it_says_what_to_install(self, repository: Path, tmp_path: Path) -> None:
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            (tmp_path / name).write_bytes((repository / name).read_bytes())
        for value, word in (("", "apt install python3"), ("false", "is not Python 3.11")):
            done = self.make(tmp_path, "setup", f"PYTHON={value}")
            assert done.returncode != 0 and word in done.stdout + done.stderr
            assert not (tmp_path / ".venv").exists()

    @pytest.fixture
    def fake(self, repository: Path, tmp_path: Path) -> Path:
        """A checkout whose environment is finished and whose `slime-bench` only writes down how it was called."""
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            (tmp_path / name).write_bytes((repository / name).read_bytes())
        command = tmp_path / ".venv" / "bin" / "slime-bench"
        command.parent.mkdir(parents=True)
        command.write_text('#!/bin/sh\necho "$*" >> calls\n[ "$1" = report ] && exit ${REPORT:-0}\nexit ${TRIALS:-0}\n')
        command.chmod(0o755)
        (tmp_path / ".venv" / ".stamp").touch()
        return tmp_path

    def result(self, root: Path) -> None:
        file = root / "outputs/runs/mini_car/slime/1-shot/seed0-0123456789abcdef/result.json"
        file.parent.mkdir(parents=True)
        file.touch()

    @pytest.mark.parametrize(
        ("arguments", "calls"),
        [
            (
                ["reproduce-horse", "PRESET=paper", "ARGS=seed=0 data.batch_size=1"],
                [
                    "--multirun experiment=paper_horse seed=0 data.batch_size=1",
                    "--multirun experiment=paper_horse method=feature_probe seed=0 data.batch_size=1",
                    "--multirun experiment=paper_horse method=segddpm seed=0 data.batch_size=1",
                    "--multirun experiment=paper_horse method=diffseg seed=0 data.batch_size=1",
                    "--multirun experiment=paper_horse_infoscore seed=0 data.batch_size=1",
                    "report --subject horse",
                ],
            ),
            (
                ["reproduce-all-methods", "SUBJECT=face"],
                [
                    "--multirun experiment=mini_face",
                    *(f"--multirun experiment=mini_face method={name}" for name in OTHERS),
                    "--multirun experiment=mini_face method=supervised shots=30",
                    "--multirun experiment=mini_face method=peekaboo shots=0 data.test_limit=10",
                    "--multirun experiment=mini_face method=seggpt",
                    "--multirun experiment=mini_face method=regan",
                    "--multirun experiment=mini_face_infoscore",
                    "report --subject face",
                ],
            ),
            (
                ["reproduce-car", "PRESET=paper", "METHODS=supervised"],
                ["--multirun experiment=paper_car method=supervised shots=400", "report --subject car"],
            ),
            (["reproduce-car", "METHODS=slime"], ["--multirun experiment=mini_car", "report --subject car"]),
            (
                ["reproduce-car", "METHODS=infoscore", "VLM=mini_blip"],
                ["--multirun experiment=mini_car_infoscore backbone=mini_blip", "report --subject car"],
            ),
            (
                ["ranking", "SUBJECT=face", "PRESET=paper", "VLM=albef", "ARGS=seed=0"],
                [
                    f"{command} experiment=infoscore_ranking preset=paper_infoscore data=celebamask_hq backbone=albef "
                    "seed=0"
                    for command in ("--multirun", "report --ranking")
                ],
            ),
            (
                ["ablation-t_opt", "SUBJECT=horse", "PRESET=paper", "ARGS=seed=0 trainer=cpu"],
                [
                    "--multirun experiment=paper_horse ablation=t_opt seed=0 trainer=cpu",
                    "report --ablation t_opt experiment=paper_horse seed=0 trainer=cpu",
                ],
            ),
            (
                ["ablation-probe_t", "SUBJECT=horse"],
                [
                    "--multirun experiment=mini_horse method=feature_probe ablation=probe_t",
                    "report --ablation probe_t experiment=mini_horse method=feature_probe",
                ],
            ),
            (["figure-13", "ARGS=seed=0"], ["--multirun experiment=figure13 seed=0", "figure 13 seed=0"]),
            (
                ["ablation-lr", "BACKBONE=sd15"],
                [
                    "--multirun experiment=mini_car ablation=lr backbone=sd15",
                    "report --ablation lr experiment=mini_car backbone=sd15",
                ],
            ),
        ],
    )
    def test_what_a_target_runs(self, fake: Path, arguments: list[str], calls: list[str]) -> None:
        done = self.make(fake, *arguments)
        assert done.returncode == 0, done.stderr
        assert (fake / "calls").read_text().splitlines() == calls

    def test_a_method_that_is_none(self, fake: Path) -> None:
        wrong = self.make(fake, "reproduce-car", "METHODS=slim")
        assert wrong.returncode != 0 and "METHODS" in wrong.stderr and "slime feature_probe" in wrong.stderr

    def test_prepare_passes_on_what_is_given(self, fake: Path) -> None:
        """Also places with spaces; the defaults lie in data/raw."""
        python = fake / ".venv" / "bin" / "python"
        python.write_text('#!/bin/sh\nprintf "%s|" "$@" >> calls\necho >> calls\n')
        python.chmod(0o755)
        clean = {"SLIME_BENCH_DATA": ""}
        assert (
            self.make(fake, "prepare-car", "VOC=my voc", "CAR_TEST=Car TestSet", "RULE=lagm", **clean).returncode == 0
        )
        assert self.make(fake, "prepare-horse", "CAR_TEST=x", SLIME_BENCH_DATA="else where").returncode == 0
        assert self.make(fake, "prepare-face", "MERGE=regan", "ARGS=--workers 1", **clean).returncode == 0
        calls = (fake / "calls").read_text().splitlines()
        assert [line for line in calls if "pip" not in line] == [
            "-m|data_prep.pascal_part|--voc|my voc|--parts|data/raw/trainval.tar.gz|--subject|car|--rule|lagm|"
            "--out|data/pascal_part/car|--work|data/raw|--car-test|Car TestSet|",
            "-m|data_prep.pascal_part|--voc|else where/raw/VOCtrainval_03-May-2010.tar|"
            "--parts|else where/raw/trainval.tar.gz|--subject|horse|--rule|paper|--out|else where/pascal_part/horse|"
            "--work|else where/raw|",
            "-m|data_prep.celebamask_hq|--root|data/raw/CelebAMask-HQ.zip|--merge|regan|--out|data/celebamask_hq|"
            "--work|data/raw|--workers|1|",
        ]

    @pytest.mark.parametrize("target", ["reproduce-car", "ablation-lr"])
    @pytest.mark.parametrize(
        ("trials", "report", "has_result", "reported", "passes"),
        [
            (2, 0, True, True, False),
            (2, 0, False, False, False),
            (130, 0, True, False, False),
            (0, 2, True, True, False),
            (0, 0, False, True, True),
        ],
    )
    def test_failed_trials_are_reported_and_still_fail(
        self, fake: Path, target: str, trials: int, report: int, has_result: bool, reported: bool, passes: bool
    ) -> None:
        if has_result:
            self.result(fake)
        done = self.make(fake, target, TRIALS=str(trials), REPORT=str(report))
        assert (done.returncode == 0) is passes
        assert ("report" in (fake / "calls").read_text()) is reported

    def test_reproduce_all_goes_on_after_a_failure(self, fake: Path) -> None:
        done = self.make(fake, "reproduce-all", TRIALS="2")
        assert done.returncode != 0
        calls = (fake / "calls").read_text()
        assert [f"experiment=mini_{subject}" in calls for subject in ("car", "horse", "face")] == [True] * 3

    def test_every_ablation_has_a_target(self, repository: Path, fake: Path) -> None:
        assert self.make(fake, "ablation-all").returncode == 0
        calls = (fake / "calls").read_text().splitlines()
        listed = set(re.findall(r"^  (\S+)", self.make(fake).stdout, re.MULTILINE))
        for name in (path.stem for path in (repository / "conf" / "ablation").glob("*.yaml")):
            method = "method=feature_probe " if name.startswith("probe_") else ""
            assert f"--multirun experiment=mini_car {method}ablation={name}" in calls
            assert f"ablation-{name}" in listed


class TestFiles:
    def test_no_path_of_one_machine_and_no_registry(self, repository: Path) -> None:
        # Written in pieces, or this file would be the first to be found.
        places = "|".join(["wo" + "rk", "ro" + "ot", "ho" + "me/[a-z]", "Us" + "ers/[a-z]", "t" + "mp", "o" + "pt"])
        machine = re.compile(rf"(?<![\w.$}})>*:-])/(?:{places})/")
        registry = re.compile("|".join(["pypi" + r"\.org", "index" + "-url", "find" + "-links"]))
        wrong = []
        for file in tracked_files(repository):
            if file.stat().st_size > 2_000_000 or b"\0" in (data := file.read_bytes())[:8192]:
                continue
            for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), start=1):
                if machine.search(line) or registry.search(line):
                    wrong.append(f"{file.relative_to(repository)}:{number}: {line.strip()[:100]}")
        assert wrong == []

    def test_ci_runs_what_the_readme_names(self, repository: Path) -> None:
        script = repository / ".ci" / "run"
        text = script.read_text()
        assert os.access(script, os.X_OK) and "set -euo pipefail" in text
        order = [text.index(line) for line in ("rm -rf .venv", "make lint", "make test")]
        assert order == sorted(order)
        assert "make test" in (repository / "README.md").read_text()


def test_a_wheel_carries_the_configuration_inside_the_package(repository: Path, tmp_path: Path) -> None:
    assert config_dir() == repository / "conf"
    inside = tmp_path / "slime_bench" / "conf"
    assert config_dir(inside.parent) == tmp_path / "conf"
    inside.mkdir(parents=True)
    assert config_dir(inside.parent) == inside

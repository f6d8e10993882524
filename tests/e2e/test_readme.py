"""What the README tells a newcomer to type works: every command and every code block of it."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from slime_bench import cli
from slime_bench.config import compose
from slime_bench.report import command as report_command
from slime_bench.results.result import read_result
from tests.e2e.conftest import Bench, Outcome, command

EXAMPLE = "--config-dir"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="session")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text()


@pytest.fixture(scope="session")
def own_images(repository: Path) -> str:
    return (repository / "docs" / "segment.md").read_text()


def commands(page: str) -> list[list[str]]:
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_every_command_is_of_a_kind_that_is_tested_here(readme: str) -> None:
    kinds = {words[1] if words[0].startswith("PYTHONPATH=") else words[0] for words in commands(readme)}
    assert kinds == {"make", "slime-bench", "."}
    assert len(readme.split()) <= 900
    assert not re.findall(r"^```(?!bash|python|yaml|text|\n)", readme, re.MULTILINE)


def test_make_targets_are_there(readme: str, repository: Path) -> None:
    listed = re.findall(r"^([a-z][a-z_-]*):.*## ", (repository / "Makefile").read_text(), re.MULTILINE)
    asked = [words[1] for words in commands(readme) if words[0] == "make"]
    inline = re.findall(r"`make ([a-z_-]+)", readme)
    assert asked[:2] == ["reproduce-car", "test"] and set(asked) | set(inline) <= set(listed)


def test_trials_and_sweeps_compose(readme: str) -> None:
    sizes = []
    for words in commands(readme):
        if words[0] == "slime-bench" and words[1] not in cli.SUBCOMMANDS:
            overrides = [word for word in words[1:] if word != "--multirun"]
            sizes.append(len(compose.plan(overrides, sweep="--multirun" in words).trials))
    assert sizes == [1, 6, 12]


def test_reports_are_understood(readme: str) -> None:
    found = [words[2:] for words in commands(readme) if words[:2] == ["slime-bench", "report"]]
    understood = [report_command._parser().parse_intermixed_args(words) for words in found]
    assert [(each.subject, each.ablation, each.ranking) for each in understood] == [
        ("car", None, False),
    ]


def test_segment_does_as_told(
    readme: str, own_images: str, swept: tuple[Bench, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = swept[0]
    learn, reuse, of_trial = [words for words in commands(own_images) if words[:2] == ["slime-bench", "segment"]]
    assert learn in commands(readme)
    monkeypatch.chdir(tmp_path)
    state = Path(of_trial[of_trial.index("--state") + 1])
    state.parent.mkdir(parents=True)
    state.write_bytes((bench.folder() / "state.safetensors").read_bytes())
    Path("photos").symlink_to(bench.data / "val" / "images")
    with Image.open(bench.data / "support" / "images" / "car-support-0.png") as picture:
        picture.save("car.jpg")
    shutil.copy(bench.data / "support" / "labels" / "car-support-0.png", "car.png")
    sizes = ["data.image_size=64", "backbone.image_size=64", "method.train_map_size=16", "method.epochs=2"]
    for words, more in ((learn, ["--weights", str(bench.sd), *sizes]), (reuse, []), (of_trial, [])):
        outcome = command(*words[1:], *more)
        assert outcome.code == 0, outcome.err
        out = Path(words[words.index("--out") + 1])
        assert (out / "labels" / "car-val-0.png").is_file() and (out / "overlays" / "car-val-0.jpg").is_file()
    for name in re.findall(r"`([a-z]+\.[a-z]+)`", own_images.split("| in `masks/`", 1)[1].split("\n\n", 1)[0]):
        assert (Path("masks") / name).is_file(), name


def test_embeddings_travel_as_told(
    own_images: str, swept: tuple[Bench, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the mini backbone's own width: 5 embeddings, as the mini car has five parts."""
    export, back, use = [words[1:] for words in commands(own_images) if "car_embeddings" in " ".join(words)]
    monkeypatch.chdir(tmp_path)
    state = Path(export[export.index("--state") + 1])
    state.parent.mkdir(parents=True)
    state.write_bytes((swept[0].folder() / "state.safetensors").read_bytes())
    outcome = command(*export)
    assert outcome.code == 0 and len(list(Path("car_embeddings").iterdir())) == 5, outcome.err
    outcome = command(*back, f"backbone.weights={swept[0].sd}")
    assert outcome.code == 0 and Path("car.safetensors").is_file(), outcome.err
    outcome = command(*use, *replace(swept[0], outputs=tmp_path / "outputs").settings)
    assert outcome.code == 0, outcome.err


def test_the_method_example_runs(
    readme: str, tiny_sd: Path, mini_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for language in ("python", "yaml"):
        (text,) = blocks(readme, language)
        path = tmp_path / text.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "nearest_colour", raising=False)
    (words,) = [words[2:] for words in commands(readme) if EXAMPLE in words]
    outcome = command(*words, f"backbone.weights={tiny_sd}", f"data_root={mini_data}", "trainer=cpu")
    assert outcome.code == 0, outcome.err
    (path,) = tmp_path.glob("outputs/runs/mini_car/nearest_colour/1-shot/seed0-*/result.json")
    result = read_result(path)
    assert result.average is not None and 0.08 < result.average < 0.4  # colours alone tell something, and not much


def test_paths_keys_and_options_that_the_page_names_exist(readme: str, repository: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", readme):
        assert (repository / link).exists(), link

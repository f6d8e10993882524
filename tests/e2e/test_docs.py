"""What README and docs/ say is so: every command is understood, every name exists, the worked example runs.

`make docs` builds the pages and takes every warning for an error; links within them are checked there.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import importlib.util
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from PIL import Image

from slime_bench import cli
from slime_bench.config import compose
from slime_bench.config.schema import TrialConfig
from slime_bench.errors import ConfigError
from slime_bench.paths import config_dir
from slime_bench.report import command as report_command
from slime_bench.results.result import read_result
from slime_bench.trial.spec import check_parts
from tests.e2e.conftest import Bench, Outcome, command

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = {page.stem: page.read_text() for page in [*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md"]}
KINDS = {"make", "slime-bench", "python", "wandb", "pip", "."}
EXAMPLE = "extending"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def inline(page: str) -> list[str]:
    """What stands between single or double backticks outside the blocks."""
    text = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"``(.+?)``|`([^`\n]+)`", text)
    return [(double or single).strip() for double, single in found]


def commands(page: str) -> Iterator[list[str]]:
    """The words of every command line, without assignments before it: of the blocks, and of the running text."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    lines += [text for text in inline(page) if re.match(r"(slime-bench \S+|make|python) [a-z./-]", text)]
    for line in lines:
        words = shlex.split(line.partition(" > ")[0], comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if words:
            yield words


ALL = [(name, words) for name, page in PAGES.items() for words in commands(page)]
OURS = [(name, words[1:]) for name, words in ALL if words[0] == "slime-bench"]


def named(cases: list[tuple[str, list[str]]]) -> list[object]:
    """Each command once, named after the first page that has it."""
    unique: dict[tuple[str, ...], str] = {}
    for name, words in cases:
        unique.setdefault(tuple(words), name)
    return [pytest.param(list(words), id=f"{name}: {' '.join(words)}") for words, name in unique.items()]


@functools.cache
def composed(*overrides: str, extra_dir: str | None = None) -> tuple[TrialConfig, ...]:
    return tuple(compose.plan(list(overrides), extra_dir=extra_dir).trials)


def first_value(override: Override) -> str:
    """The override with the first of its values: one trial of a sweep tells what all of them would."""
    if not override.is_sweep_override():
        return override.input_line or ""
    return f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the worked example, and of README's, where their first lines say."""
    root = tmp_path_factory.mktemp("example")
    for text in (
        text for page in (EXAMPLE, "README") for kind in ("python", "yaml") for text in blocks(PAGES[page], kind)
    ):
        name = re.search(r"^# (\S+\.(?:py|yaml))$", text, re.MULTILINE)
        assert name and name.start() < 30, text
        path = root / name[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def in_example(example: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(example)
    monkeypatch.syspath_prepend(str(example))
    yield example
    for name in [name for name in sys.modules if name.split(".")[0] in ("my_parts", "nearest_colour")]:
        del sys.modules[name]


def test_every_command_is_of_a_kind_that_is_tested_here() -> None:
    assert {words[0] for _, words in ALL} <= KINDS
    assert {language for page in PAGES.values() for language in re.findall(r"^```(\S+)$", page, re.MULTILINE)} <= {
        "bash", "python", "yaml", "text", "{toctree}",
    }  # fmt: skip


@pytest.mark.parametrize("words", named([case for case in OURS if case[1][0] not in cli.SUBCOMMANDS]))
def test_trials_and_sweeps_compose(words: list[str], in_example: Path) -> None:
    from hydra._internal.utils import get_args_parser

    args = get_args_parser().parse_args(words)
    parsed = OverridesParser.create().parse_overrides(args.overrides)
    assert args.multirun or not any(each.is_sweep_override() for each in parsed)
    assert composed(*map(first_value, parsed), extra_dir=args.config_dir)


@pytest.mark.parametrize("words", named([case for case in OURS if case[1][0] in cli.SUBCOMMANDS]))
def test_subcommands_are_understood(words: list[str], in_example: Path) -> None:
    """Their flags are read by their own parsers, and their overrides compose."""
    args = understood(importlib.import_module(cli.SUBCOMMANDS[words[0]]), words[1:])
    if words[0] == "report":
        report_command._check(args)
    if overrides := getattr(args, "overrides", None):
        parsed = OverridesParser.create().parse_overrides(overrides)
        assert composed(*map(first_value, parsed), extra_dir=getattr(args, "config_dir", None))
    if getattr(args, "ablation", None):
        assert (config_dir() / "ablation" / f"{args.ablation}.yaml").is_file()


class Understood(BaseException):
    """Ends a command as soon as it has read its arguments."""


def understood(module: Any, words: list[str]) -> argparse.Namespace:
    """What a command makes of its words."""

    def then_end(read: Callable[..., argparse.Namespace]) -> Callable[..., argparse.Namespace]:
        def wrapped(*arguments: object) -> argparse.Namespace:
            raise Understood(read(*arguments))

        return wrapped

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Understood) as end:
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, then_end(getattr(argparse.ArgumentParser, name)))
        module.main(words, *([pytest.fail] if module is report_command else []))  # it is given the planned trials
    return end.value.args[0]


def test_what_other_commands_name_is_there(repository: Path, example: Path) -> None:
    """Targets of make, modules and scripts of Python, extras of pip, files of W&B."""
    targets = re.findall(r"^([a-z][a-z0-9_-]*):.*## ", (repository / "Makefile").read_text(), re.MULTILINE)
    extras = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for _, words in ALL:
        if words[0] == "make":
            assert words[1] in targets, words
        elif words[:2] == ["python", "-m"] and len(words) > 3:
            understood(importlib.import_module(words[2]), words[3:])
        elif words[0] == "python":
            files = (repository / words[1], example / words[1])
            assert importlib.util.find_spec(words[2]) if words[1] == "-m" else any(map(Path.is_file, files)), words
        elif words[0] == "pip":
            assert re.search(r"\[(\w+)\]", words[-1])[1] in extras, words
        elif words[0] == "wandb":
            assert words[1] in ("sync", "sweep"), words


def test_links_lead_to_files() -> None:
    for name, page in PAGES.items():
        for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page):
            assert ((DOCS.parent if name == "README" else DOCS) / link).exists(), link


def test_names_of_the_code_exist() -> None:
    names = {text for page in PAGES.values() for text in inline(page) if re.fullmatch(r"slime_bench(\.\w+)+", text)}
    assert len(names) > 20
    for name in sorted(names):
        module, _, attribute = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), attribute), name


def test_keys_and_choices_of_the_configuration_exist() -> None:
    """Of every `group.key`, `group.key=value` and `group=choice` in the running text."""
    groups = {folder.name for folder in config_dir().iterdir() if folder.is_dir()}
    chosen = ("preset=mini", "preset=mini_infoscore", "refine=guided", "data=voc2012", "data=coco_object")
    names = ("feature_probe", "feature_knn", "segddpm", "seggpt", "diffseg", "peekaboo", "supervised", "regan")
    methods = [f"method={name}" for name in names]
    known = [composed(each) for each in (*chosen, *methods, "data=mini_car_fresh")]
    folder = ("data=folder", "data.root=x", "data.classes=[background,leaf]")
    known += [composed(*folder), composed("launcher=submitit_slurm"), composed("launcher=ray")]
    seen = 0
    for page in PAGES.values():
        for text in inline(page):
            key, sign, value = text.partition("=")
            if not re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", key) or key.split(".")[0] not in groups | {"shots", "seed"}:
                continue
            if "." not in key:
                plain = re.fullmatch(r"[\w/,]+", value)
                for choice in value.split(",") if sign and plain and key in groups else ():
                    assert (config_dir() / key / f"{choice}.yaml").is_file() or choice == "folder", text
                continue
            assert any(_holds(cfg, key) for (cfg,) in known), text
            seen += 1
    assert seen > 50


def _holds(cfg: TrialConfig, key: str) -> bool:
    node: Any = cfg.plain
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def test_the_messages_that_are_explained_are_those_of_the_code(repository: Path) -> None:
    known = [re.compile(pattern) for pattern in _messages(repository / "slime_bench")]
    asked = [
        text
        for line in PAGES["troubleshooting"].splitlines()
        if line.startswith("| ")
        for text in inline(line.split(" | ")[0] + " ")
    ]
    assert len(asked) > 25
    for text in asked:
        assert any(pattern.fullmatch(text.strip().replace("...", "x")) for pattern in known), text


def _messages(package: Path) -> Iterator[str]:
    """Every text of the code that a message could begin with, as a pattern; what it fills in is anything."""
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) > 15:
                yield re.escape(node.value) + ".?"
            elif isinstance(node, ast.JoinedStr):
                parts = [re.escape(str(each.value)) if isinstance(each, ast.Constant) else ".+" for each in node.values]
                if len("".join(part for part in parts if part != ".+")) > 8:
                    yield "".join(parts)


def test_the_worked_example_runs_as_the_page_says(in_example: Path) -> None:
    ends = []
    for line in "".join(blocks(PAGES[EXAMPLE], "bash")).splitlines():
        words = shlex.split(line.removeprefix("PYTHONPATH=. "))
        if words[0] == "python":
            runpy.run_path(words[1])
            continue
        more = [] if words[1] in cli.SUBCOMMANDS else ["trainer=cpu", "trainer.progress=false"]
        ends.append(command(*words[1:], *more))
    assert [end.code for end in ends] == [0] * len(ends), "\n".join(end.err for end in ends)
    files = sorted(in_example.glob("outputs/runs/flags/linear_probe/*-shot/seed*/result.json"))
    assert [(result.shots, result.seed) for result in map(read_result, files)] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert all((read_result(file).average or 0) > 0.6 for file in files)  # it has learned what the parts look like
    assert "linear_probe" in ends[-1].out
    tables = list(in_example.glob("outputs/reports/flags/table.md"))
    assert tables and "linear_probe" in tables[0].read_text()


def test_the_refinement_of_the_example_refines(in_example: Path) -> None:
    (cfg,) = composed("refine=smooth", extra_dir="my_conf")
    check_parts(cfg)
    scores = torch.rand(2, 3, 16, 16)
    found = cfg.refine(scores, torch.rand(2, 3, 16, 16))
    assert found.shape == scores.shape and found.std() < scores.std() and cfg.refine.stated(16) == "smooth"


def test_the_readmes_example_runs(in_example: Path, tiny_sd: Path) -> None:
    (words,) = [words for words in OURS if words[0] == "README" and "--config-dir" in words[1]]
    outcome = command(*words[1], f"backbone.weights={tiny_sd}", "trainer=cpu", "trainer.progress=false")
    assert outcome.code == 0, outcome.err
    (path,) = in_example.glob("outputs/runs/mini_car/nearest_colour/1-shot/seed0-*/result.json")
    assert 0.08 < (read_result(path).average or 0) < 0.4  # colours alone tell something, and not much


def test_the_worked_example_refuses_what_does_not_go_with_it(in_example: Path) -> None:
    with pytest.raises(ConfigError, match="channel"):
        composed("backbone=random_filters", "backbone.channel=3", extra_dir="my_conf")
    end = command("--config-dir", "my_conf", "method=linear_probe", "data=mini_car")
    assert end.code == 2 and "cannot use this backbone" in end.err and "RandomFilters" in end.err


def test_the_figure_of_slime_is_drawn_from_a_trial(
    tiny_sd: Path, car_pictures: Path, tmp_path: Path, repository: Path
) -> None:
    figures = runpy.run_path(str(repository / "docs" / "figures.py"))
    bench = Bench(tiny_sd, car_pictures, tmp_path / "outputs")
    figures["main"](["slime", "--out", str(tmp_path), *bench.settings])
    with Image.open(tmp_path / "slime.png") as picture:
        assert picture.size[0] > 800 and len(set(picture.convert("L").getdata())) > 50


def test_the_readme_is_short() -> None:
    assert len(PAGES["README"].split()) <= 900


def test_segment_does_as_told(swept: tuple[Bench, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, page = swept[0], PAGES["segment"]
    told = [words for words in commands(page) if words[:2] == ["slime-bench", "segment"] and "--out" in words]
    learn, reuse, of_trial = told
    assert learn in list(commands(PAGES["README"]))
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
    for name in re.findall(r"`([a-z]+\.[a-z]+)`", page.split("| in `masks/`", 1)[1].split("\n\n", 1)[0]):
        assert (Path("masks") / name).is_file(), name


def test_embeddings_travel_as_told(
    swept: tuple[Bench, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the mini backbone's own width: 5 embeddings, as the mini car has five parts."""
    export, back, use = [words[1:] for words in commands(PAGES["segment"]) if "car_embeddings" in " ".join(words)]
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

"""conf/wandb holds the grids of conf/ablation, as W&B's sweeps read them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from slime_bench.config.compose import plan
from slime_bench.report.usual import plain
from slime_bench.results.identity import canonical_json, deciding, flatten
from slime_bench.tracking import keys

NAMES = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "ablation").glob("*.yaml"))


def read(repository: Path, group: str, name: str) -> Any:
    return yaml.safe_load((repository / "conf" / group / f"{name}.yaml").read_text())


def parsed(text: str) -> Override:
    return OverridesParser.create().parse_override(text)


def value(text: str) -> str:
    """Of an override, in one spelling: `1.0` and `1`, and quotes or none, are the same."""
    return canonical_json(parsed(text).value())


def ablation_grid(file: Mapping[str, Any]) -> dict[str, set[str]]:
    """Key -> its values, swept or fixed, of a file of conf/ablation."""
    grid: dict[str, set[str]] = {}
    for key, values in file["hydra"]["sweeper"]["params"].items():
        override = parsed(f"{key}={values}")
        each = override.sweep_string_iterator() if override.is_sweep_override() else [values]
        grid[key] = {value(f"{key}={one}") for one in each}
    fixed = {name: part for name, part in file.items() if name != "hydra"}
    return grid | {key: {canonical_json(one)} for key, one in flatten(fixed)}


def choices(sweep: Mapping[str, Any]) -> dict[str, list[str]]:
    """Key -> the arguments that W&B's agent makes of its values, as `${args_no_hyphens}` does."""
    return {
        key: [f"{key}={each}" for each in parameter.get("values", [parameter.get("value")])]
        for key, parameter in sweep["parameters"].items()
    }


def test_every_ablation_has_a_sweep(repository: Path) -> None:
    assert sorted(path.stem for path in (repository / "conf" / "wandb").glob("*.yaml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_grids_agree(repository: Path, name: str) -> None:
    sweep = read(repository, "wandb", name)
    made = {key: {value(text) for text in texts} for key, texts in choices(sweep).items()}
    assert made == ablation_grid(read(repository, "ablation", name))


@pytest.mark.parametrize("name", NAMES)
def test_an_agent_can_run_them(repository: Path, name: str) -> None:
    sweep = read(repository, "wandb", name)
    assert set(sweep) == {"program", "command", "method", "metric", "parameters"}
    assert sweep["program"] == "slime-bench" and sweep["method"] == "grid"
    assert sweep["command"] == ["${env}", "${program}", "experiment=mini_car", "logger=wandb", "${args_no_hyphens}"]
    assert sweep["metric"] == {"name": keys.MIOU, "goal": "maximize"}
    assert all(set(parameter) in ({"value"}, {"values"}) for parameter in sweep["parameters"].values())


@pytest.mark.parametrize("name", ["prompt", "start"])  # one with quotes and braces, one that also fixes a key
def test_the_trials_are_those_of_the_ablation(repository: Path, name: str) -> None:
    """As the command composes them; one seed, as each trial takes its time."""
    sweep = read(repository, "wandb", name)
    made = set()
    for arguments in product(*choices(sweep).values()):
        if "seed=0" in arguments:
            (trial,) = plan([*sweep["command"][2:-1], *arguments]).trials
            assert trial.logger.name == "wandb"
            made.add(canonical_json(deciding(plain(trial))))
    wanted = plan(["experiment=mini_car", f"ablation={name}", "seed=0"], sweep=True).trials
    assert made == {canonical_json(deciding(plain(trial))) for trial in wanted}

"""The settings of an ablation, as the configuration composes them: what its table is expected to hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slime_bench.errors import ConfigError
from slime_bench.report.aggregate import shortened
from slime_bench.report.usual import plain
from slime_bench.results.identity import canonical_json, flatten

_NOT_A_SETTING = ("seed", "metric")
_GROUPS = ("method", "backbone", "protocol")
_LAYERS = ("backbone.cross_layers", "backbone.self_layers")


@dataclass(frozen=True)
class Setting:
    """One line of an ablation: trials that differ in their seed alone.

    Attributes:
        label: the keys in which the settings of the table differ, e.g. `alpha=1, beta=0.5`.
        shown: these keys with their values; layers by the name of their group.
        values: every key that decides numbers, with its value.
        default: whether it is what the preset says without the ablation.
        in_grid: whether the ablation asks for it; the default is looked up in any case.
        trials: seed -> resolved configuration.
    """

    label: str
    shown: dict[str, Any]
    values: dict[str, Any]
    default: bool
    in_grid: bool
    trials: dict[int, dict[str, Any]]


def settings_of(name: str, overrides: Sequence[str], extra_dir: str | None = None) -> list[Setting]:
    """The settings of an ablation in the order of its grid; the default comes last where the grid lacks it.

    Args:
        name: of a file in conf/ablation.
        overrides: as they were given to the sweep, e.g. `experiment=mini_horse`.

    Raises:
        ConfigError: whatever composing raises, or a sweep over several data sets or presets.
    """
    from slime_bench.config.compose import plan

    trials = [plain(cfg) for cfg in plan([*overrides, f"ablation={name}"], sweep=True, extra_dir=extra_dir).trials]
    for what, chosen in (
        ("preset", {trial["preset"] for trial in trials}),
        ("data", {trial["data"]["name"] for trial in trials}),
    ):
        if len(chosen) > 1:
            raise ConfigError(
                "one table of an ablation holds one data set and one preset", path=what,
                found=", ".join(sorted(chosen)), expected="one value", remedy="ask for one table after the other",
            )  # fmt: skip
    usual = _default_of(overrides, trials[0], extra_dir)
    seeds = sorted({trial["seed"] for trial in trials})
    grid: dict[str, list[dict[str, Any]]] = {}  # a setting that the grid names twice is one setting
    for trial in trials:
        grid.setdefault(canonical_json(_values(trial)), []).append(trial)
    in_grid = len(grid)
    default = canonical_json(_values(usual))
    grid.setdefault(default, [{**usual, "seed": seed} for seed in seeds])
    values = [_values(members[0]) for members in grid.values()]
    keys = _differing(values)
    return [
        Setting(
            label=", ".join(f"{shortened(key, keys)}={_text(each.get(key))}" for key in keys) or "default",
            shown={key: each.get(key) for key in keys},
            values=each,
            default=text == default,
            in_grid=index < in_grid,
            trials={trial["seed"]: trial for trial in members},
        )
        for index, ((text, members), each) in enumerate(zip(grid.items(), values, strict=True))
    ]


def _default_of(overrides: Sequence[str], trial: Mapping[str, Any], extra_dir: str | None) -> dict[str, Any]:
    """The configuration without the ablation and without anything swept, with the shots and the seed of `trial`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from slime_bench.config.compose import plan, translated

    with translated():
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    # Of several groups (protocol=a,b) the first is the default's; a swept value says nothing about it.
    kept = [
        text
        for text, each in zip(overrides, parsed, strict=True)
        if each.key_or_group not in ("shots", "seed") and not (each.is_sweep_override() and "." in each.key_or_group)
    ]
    fixed = [f"shots={trial['shots']}", f"seed={trial['seed']}", "hydra.sweeper.params=null"]
    return plain(plan([*kept, *fixed], sweep=True, extra_dir=extra_dir).trials[0])


def _values(trial: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of what decides a trial's numbers, without the seed; layers by their group's name."""
    values = {key: value for key, value in flatten(trial["decided"]) if key.partition(".")[0] not in _NOT_A_SETTING}
    groups = trial.get("backbone", {}).get("layer_groups") or {}
    for key in _LAYERS:
        for group, layers in groups.items():
            if values.get(key) == list(layers):
                values[key] = group
    return values


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys in which settings differ, in their order; a group that differs as a whole is told by its name alone."""
    keys = list(dict.fromkeys(key for values in settings for key in values))
    differing = [key for key in keys if len({_text(values.get(key)) for values in settings}) > 1]
    wholes = [group for group in _GROUPS if f"{group}.name" in differing]
    short = [
        key for key in differing if key.partition(".")[0] not in wholes or key in [f"{group}.name" for group in wholes]
    ]

    def labels(keys: Iterable[str]) -> set[tuple[str, ...]]:
        return {tuple(_text(values.get(key)) for key in keys) for values in settings}

    return short if len(labels(short)) == len(labels(differing)) else differing


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value or "''"
    return canonical_json(value).replace(",", ", ").replace('"', "")

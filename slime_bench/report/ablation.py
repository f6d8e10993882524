"""One ablation: its settings as the configuration composes them, their results, and the paper's beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slime_bench.errors import ConfigError, ResultError
from slime_bench.report.collect import (
    FOLDERS,
    Collected,
    FailedTrial,
    Provenance,
    match,
    multirun,
    planned_configs,
    provenance,
    shortened,
    told,
)
from slime_bench.report.published import Published, PublishedAblation, PublishedRow, Stat
from slime_bench.report.rows import Row, aggregate, average_percent, column_order, minus, stat
from slime_bench.report.statistics import ImageBootstrap, Paired
from slime_bench.report.table import listed
from slime_bench.results.identity import canonical_json, flatten
from slime_bench.results.result import TrialResult

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
    trials = planned_configs([*overrides, f"ablation={name}"], extra_dir)
    worlds = sorted({f"{trial['data']['name']}, preset {trial['preset']}" for trial in trials})
    if len(worlds) > 1:
        raise ConfigError(
            "one table of an ablation holds one data set and one preset", path="data", found="; ".join(worlds),
            expected="one of each", remedy="ask for one table after the other",
        )  # fmt: skip
    default = _default_of(overrides, trials[0], extra_dir)
    grid: dict[str, list[dict[str, Any]]] = {}  # a setting that the grid names twice is one setting
    for trial in trials:
        grid.setdefault(canonical_json(_values(trial)), []).append(trial)
    in_grid, default_text = len(grid), canonical_json(_values(default))
    seeds = sorted({trial["seed"] for trial in trials})
    grid.setdefault(
        default_text, [default | {"seed": seed, "decided": default["decided"] | {"seed": seed}} for seed in seeds]
    )
    values = [_values(members[0]) for members in grid.values()]
    keys = _differing(values)
    return [
        Setting(
            label=", ".join(f"{shortened(key, keys)}={_text(each.get(key))}" for key in keys) or "default",
            shown={key: each.get(key) for key in keys},
            values=each,
            default=text == default_text,
            in_grid=index < in_grid,
            trials={trial["seed"]: trial for trial in members},
        )
        for index, ((text, members), each) in enumerate(zip(grid.items(), values, strict=True))
    ]


def _default_of(overrides: Sequence[str], trial: Mapping[str, Any], extra_dir: str | None) -> dict[str, Any]:
    """The configuration without the ablation and without anything swept, with the shots and the seed of `trial`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from slime_bench.config.compose import translated

    with translated():
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    # Of several groups (protocol=a,b) the first is the default's; a swept value says nothing about it.
    others = [
        text
        for text, each in zip(overrides, parsed, strict=True)
        if each.key_or_group not in ("shots", "seed") and not (each.is_sweep_override() and "." in each.key_or_group)
    ]
    fixed = [f"shots={trial['shots']}", f"seed={trial['seed']}", "hydra.sweeper.params=null"]
    return planned_configs([*others, *fixed], extra_dir)[0]


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
    short = [key for key in differing if key.partition(".")[0] not in wholes or key.endswith(".name")]

    def labels(keys: Sequence[str]) -> set[tuple[str, ...]]:
        return {tuple(_text(values.get(key)) for key in keys) for values in settings}

    return short if len(labels(short)) == len(labels(differing)) else differing


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value or "''"
    return canonical_json(value).replace(",", ", ").replace('"', "")


@dataclass(frozen=True)
class Measured:
    """What is known of a setting.

    Attributes:
        results: ours, by seed. row: their mean and deviation, None without any.
        difference: of our averages to the default setting's, over the seeds that both have: mean and sample standard
            deviation of the per-seed differences, in percentage points.
        published: the paper's row for the same setting; `published_difference` of its average to the paper's default.
        missing, failed: seeds without a result, and the error of those that left one.
        paired: the same difference, paired by image as well; None without a bootstrap, for the default setting itself,
            and where it cannot be: then `unpaired` says why.
    """

    setting: Setting
    results: dict[int, TrialResult]
    row: Row | None
    difference: Stat
    published: PublishedRow | None
    published_difference: float | None
    missing: list[int]
    failed: dict[int, FailedTrial]
    paired: Paired | None = None
    unpaired: str = ""

    @property
    def label(self) -> str:
        return f"{self.setting.label}{' (default)' if self.setting.default else ''}"


@dataclass(frozen=True)
class AblationReport:
    """Everything the table of one ablation says.

    Attributes:
        facts: name -> value of what all settings share (preset, data, backbone, ...), for captions and files.
        prepared: choices with which the data set was prepared, as in `TrialResult`.
        table: the published ablation with the same grid, if the paper has one for the subject.
        command: that runs what is missing; `portable_command` without the folders of one machine.
        default_command: that runs the default setting, where the ablation's own grid does not hold it.
        left_out: see `collect.Matched`.
    """

    name: str
    subject: str
    facts: dict[str, str]
    prepared: dict[str, str]
    classes: list[str]
    convention: str
    background: bool
    measured: list[Measured]
    published: Published | None
    table: PublishedAblation | None
    provenance: Provenance
    command: str
    portable_command: str
    default_command: str
    left_out: int

    @property
    def columns(self) -> list[str]:
        return column_order(self.published, self.classes)

    @property
    def default(self) -> Measured:
        return next(each for each in self.measured if each.setting.default)

    @property
    def shown(self) -> list[Measured]:
        """The settings of the grid, and the default where it has results."""
        return [each for each in self.measured if each.setting.in_grid or each.row is not None]

    def under(self, convention: str, background: bool) -> AblationReport:
        """The same report under another convention or average; intervals and paired differences stay as they are."""
        reference = self.default.results
        measured = []
        for each in self.measured:
            row, difference = _numbers(each.results, reference, convention, background)
            measured.append(replace(each, row=row, difference=difference))
        return replace(self, measured=measured, convention=convention, background=background)


def ablation_report(
    name: str,
    overrides: Sequence[str],
    settings: Sequence[Setting],
    collected: Collected,
    published: Published | None,
    *,
    convention: str,
    background: bool,
    outputs: Path,
    bootstrap: ImageBootstrap | None = None,
) -> AblationReport:
    """The results of an ablation's settings beside the published ones.

    Args:
        bootstrap: over the test images of `collected`; without it there are no intervals.

    Raises:
        ResultError: no trial of the ablation is finished.
    """
    asked = [*overrides, f"ablation={name}"]
    planned = {(i, seed): trial for i, setting in enumerate(settings) for seed, trial in setting.trials.items()}
    found = match(planned, collected)
    if not any(settings[index].in_grid for index, _ in found.results):
        raise _nothing(name, settings, collected, multirun(asked), outputs)
    results = [
        {seed: result for (index, seed), result in found.results.items() if index == i} for i in range(len(settings))
    ]
    default = next(index for index, setting in enumerate(settings) if setting.default)
    table = published.ablation(name) if published else None
    measured = []
    for i, setting in enumerate(settings):
        row, difference = _numbers(results[i], results[default], convention, background, bootstrap)
        paired, unpaired = None, ""
        if bootstrap is not None and row is not None and i != default:
            ours, reference = (list(results[index].values()) for index in (i, default))
            paired, unpaired = bootstrap.try_paired(ours, reference, convention, background)
        measured.append(
            Measured(
                setting, results[i], row, difference, *_published(setting, table, published),
                missing=[seed for seed in setting.trials if seed not in results[i]],
                failed={seed: trial for (index, seed), trial in found.failed.items() if index == i},
                paired=paired, unpaired=unpaired,
            )
        )  # fmt: skip
    first = next(iter(found.results.values()))
    trials = [trial for setting in settings if setting.in_grid for trial in setting.trials.values()]
    facts = {"preset": listed(trial["preset"] for trial in trials)}
    for key in ("data", "backbone", "protocol", "method"):
        facts[key] = listed(trial[key]["name"] for trial in trials)
    facts["shots"] = listed(trial["shots"] for trial in trials)
    any_trial = next(iter(settings[default].trials.values()))
    default_ones = told(overrides, ("shots", "seed"))
    default_ones += [f"shots={any_trial['shots']}", f"seed={','.join(map(str, settings[default].trials))}"]
    return AblationReport(
        name=name, subject=first.subject, facts=facts, prepared=dict(first.prepared), classes=first.classes,
        convention=convention, background=background, measured=measured, published=published, table=table,
        provenance=provenance(collected.folders[result.signature] for result in found.results.values()),
        command=multirun(asked), portable_command=multirun(asked, FOLDERS),
        default_command=multirun(default_ones), left_out=found.left_out,
    )  # fmt: skip


def _numbers(
    ours: Mapping[int, TrialResult],
    reference: Mapping[int, TrialResult],
    convention: str,
    background: bool,
    bootstrap: ImageBootstrap | None = None,
) -> tuple[Row | None, Stat]:
    """The row of one setting's results, and the difference of its averages to the reference's, both by seed."""
    rows = aggregate(ours.values(), convention, background, bootstrap=bootstrap)
    gaps = [
        value - other
        for seed in ours
        if seed in reference
        for value in average_percent(ours[seed], convention, background)
        for other in average_percent(reference[seed], convention, background)
    ]
    return (rows[0] if rows else None), stat(gaps)


def _published(
    setting: Setting, table: PublishedAblation | None, published: Published | None
) -> tuple[PublishedRow | None, float | None]:
    """The paper's row for the same values of the ablation's keys, and its difference to the paper's default."""
    if table is None or published is None or setting.values.get("shots") != table.shots:
        return None, None
    main = published.main_row(str(setting.values.get("method.name")), table.shots)
    for values, row in [(table.default, main), *(({**table.default, **row.values}, row) for row in table.rows)]:
        if main and row and all(setting.values.get(key) == value for key, value in values.items()):
            return row, minus(row.average.mean, main.average.mean)
    return None, None


def _nothing(name: str, settings: Sequence[Setting], collected: Collected, command: str, outputs: Path) -> ResultError:
    trials = [trial for setting in settings if setting.in_grid for trial in setting.trials.values()]
    data, method = trials[0]["data"]["name"], trials[0]["method"]["name"]
    failed = sum((one.data, one.method) == (data, method) for one in collected.failed)
    others = sum((one.data, one.method) == (data, method) for one in collected.results)
    return ResultError(
        f"No trial of the ablation {name} on {data} is finished.",
        path=outputs / "runs" / data / method,
        found=f"{others} result(s) of {method} with other settings, {failed} failed trial(s)",
        expected=f"results of {len(trials)} trials: {'; '.join(each.label for each in settings if each.in_grid)}",
        remedy=f"Run `{command}`, or name another folder with --outputs.",
    )

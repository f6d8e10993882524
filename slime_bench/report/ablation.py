"""One ablation: the results of its settings, and the paper's for the same settings."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_bench.errors import ResultError
from slime_bench.report.ablation_settings import Setting
from slime_bench.report.aggregate import Collected, FailedTrial, Row, aggregate, with_intervals
from slime_bench.report.intervals import ImageBootstrap, Paired
from slime_bench.report.matching import match
from slime_bench.report.provenance import Provenance, provenance
from slime_bench.report.published import Published, PublishedAblation, PublishedRow, Stat
from slime_bench.results.identity import canonical_json
from slime_bench.results.result import TrialResult, average_of

_FOLDERS = ("output_root", "data_root")


@dataclass(frozen=True)
class Measured:
    """What is known of a setting.

    Attributes:
        row: mean and deviation of our results, None without any.
        difference: of our averages to the default setting's, over the seeds that both have: mean and sample standard
            deviation of the per-seed differences, in percentage points.
        published: the paper's row for the same setting; `published_difference` of its average to the paper's default.
        missing, failed: seeds without a result, and the error of those that left one.
        paired: the same difference, paired by image as well; None without a bootstrap, for the default setting itself,
            and where it cannot be: then `unpaired` says why.
    """

    setting: Setting
    row: Row | None
    difference: Stat
    published: PublishedRow | None
    published_difference: float | None
    missing: list[int]
    failed: dict[int, FailedTrial]
    paired: Paired | None = None
    unpaired: str = ""


@dataclass(frozen=True)
class AblationReport:
    """Everything the table of one ablation says.

    Attributes:
        facts: name -> value of what all settings share (preset, data, backbone, ...), for captions and files.
        prepared: choices with which the data set was prepared, as in `TrialResult`.
        table: the published ablation with the same grid, if the paper has one for the subject.
        command: that runs what is missing; `portable_command` without the folders of one machine.
        default_command: that runs the default setting, where the ablation's own grid does not hold it.
        left_out: see `matching.Matched`.
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
    command = _command(*overrides, f"ablation={name}")
    planned = {(i, seed): trial for i, setting in enumerate(settings) for seed, trial in setting.trials.items()}
    found = match(planned, collected)
    if not any(settings[index].in_grid for index, _ in found.results):
        raise _nothing(name, settings, collected, command, outputs)
    results = [
        {seed: result for (index, seed), result in found.results.items() if index == i} for i in range(len(settings))
    ]
    averages = [_averages(each, convention, background) for each in results]
    default = next(index for index, setting in enumerate(settings) if setting.default)
    table = published.ablation(name) if published else None
    measured = []
    for i, setting in enumerate(settings):
        rows = aggregate(results[i].values(), convention, background, list(setting.trials))
        paired, unpaired = None, ""
        if bootstrap is not None and rows:
            rows = with_intervals(rows, list(results[i].values()), bootstrap)
            if i != default:
                paired, unpaired = _paired(results[i], results[default], convention, background, bootstrap)
        theirs, their_difference = _published(setting, table, published)
        measured.append(
            Measured(
                setting=setting,
                row=rows[0] if rows else None,
                difference=_difference(averages[i], averages[default]),
                published=theirs,
                published_difference=their_difference,
                missing=[seed for seed in setting.trials if seed not in results[i]],
                failed={seed: trial for (index, seed), trial in found.failed.items() if index == i},
                paired=paired,
                unpaired=unpaired,
            )
        )
    first = next(iter(found.results.values()))
    trials = [trial for setting in settings if setting.in_grid for trial in setting.trials.values()]
    usual = next(setting for setting in settings if setting.default)
    return AblationReport(
        name=name,
        subject=first.subject,
        facts={key: _listed(trials, key) for key in ("preset", "data", "backbone", "protocol", "method", "shots")},
        prepared=dict(first.prepared),
        classes=first.classes,
        convention=convention,
        background=background,
        measured=measured,
        published=published,
        table=table,
        provenance=provenance(collected.folders[result.signature] for result in found.results.values()),
        command=command,
        portable_command=_command(*_without(overrides, _FOLDERS), f"ablation={name}"),
        default_command=_default_command(overrides, usual),
        left_out=found.left_out,
    )


def _command(*overrides: str) -> str:
    return shlex.join(["slime-bench", "--multirun", *overrides])


def _without(overrides: Sequence[str], keys: Sequence[str]) -> list[str]:
    return [text for text in overrides if text.partition("=")[0] not in keys]


def _default_command(overrides: Sequence[str], setting: Setting) -> str:
    trial = next(iter(setting.trials.values()))
    seeds = ",".join(map(str, setting.trials))
    return _command(*_without(overrides, ("shots", "seed")), f"shots={trial['shots']}", f"seed={seeds}")


def _published(
    setting: Setting, table: PublishedAblation | None, published: Published | None
) -> tuple[PublishedRow | None, float | None]:
    """The paper's row for the same values of the ablation's keys, and its difference to the paper's default."""
    if table is None or published is None or setting.values.get("shots") != table.shots:
        return None, None
    usual = published.main_row(str(setting.values.get("method.name")), table.shots)
    candidates = [(table.default, usual), *(({**table.default, **row.values}, row) for row in table.rows)]
    for values, row in candidates:
        if row is not None and all(_same(setting.values.get(key), value) for key, value in values.items()):
            known = usual is not None and None not in (row.average.mean, usual.average.mean)
            return row, row.average.mean - usual.average.mean if known else None  # type: ignore[operator, union-attr]
    return None, None


def _same(left: Any, right: Any) -> bool:
    return canonical_json(left) == canonical_json(right)


def _averages(results: Mapping[int, TrialResult], convention: str, background: bool) -> dict[int, float]:
    found = {}
    for seed, result in results.items():
        value = average_of(result.conventions[convention]["per_class"], result.classes, background)
        if value is not None:
            found[seed] = 100.0 * value
    return found


def _difference(ours: Mapping[int, float], reference: Mapping[int, float]) -> Stat:
    paired = [ours[seed] - reference[seed] for seed in ours if seed in reference]
    if not paired:
        return Stat(None, None)
    return Stat(statistics.fmean(paired), statistics.stdev(paired) if len(paired) > 1 else None)


def _paired(
    ours: Mapping[int, TrialResult],
    reference: Mapping[int, TrialResult],
    convention: str,
    background: bool,
    bootstrap: ImageBootstrap,
) -> tuple[Paired | None, str]:
    try:
        return bootstrap.paired(list(ours.values()), list(reference.values()), convention, background), ""
    except ResultError as error:
        return None, error.summary.rstrip(".")


def _listed(trials: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [trial[key]["name"] if isinstance(trial[key], Mapping) else trial[key] for trial in trials]
    return ", ".join(dict.fromkeys(map(str, values)))


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

"""`slime-bench report --ranking`: which trials are reported, and where the files go."""

from __future__ import annotations

import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_bench.errors import ConfigError, ResultError
from slime_bench.report.aggregate import Collected, collect
from slime_bench.report.grid import print_grid
from slime_bench.report.matching import signature_on
from slime_bench.report.method_facts import RANKING
from slime_bench.report.ranking import Group, Spoilt, Studies, groups, ranking_results, read_studies
from slime_bench.report.ranking_files import report_lines, write_ranking
from slime_bench.report.ranking_plots import ensembles_figure, layers_figure
from slime_bench.report.ranking_table import RankingReport, place, ranking_grids
from slime_bench.report.usual import default_settings, plain
from slime_bench.results.identity import canonical_json
from slime_bench.results.result import RESULT_FILE, TrialResult

if TYPE_CHECKING:
    from rich.console import Console

EXPERIMENT = f"experiment={RANKING}"
_NOT_A_SETTING = ("seed", "metric")
_FOLDERS = ("output_root", "data_root", "data.root", "backbone.weights")


@dataclass
class _Asked:
    """What is to be reported.

    Attributes:
        results: finished trials. expected, left_out: by series. absent: data -> settings without a finished trial.
    """

    results: list[TrialResult]
    expected: dict[str, Sequence[int]]
    left_out: dict[str, int] = field(default_factory=dict)
    absent: dict[str, list[str]] = field(default_factory=dict)
    command: str = ""


def run_ranking(
    overrides: Sequence[str] = (),
    *,
    outputs: Path | None,
    default_outputs: Path,
    console: Console,
    subject: str = "all",
    seeds: Sequence[int] = (0, 1, 2),
    folder: Path | None = None,
    convention: str | None = None,
    extra_dir: str | None = None,
) -> list[RankingReport]:
    """The reports of the ranking experiment, one for each data set, printed and written.

    Args:
        overrides: as they were given to the sweep: its trials alone are reported, and those that are missing are known.
            Without any, every finished trial is reported.
        outputs: folder with runs/; that of the configuration by default, `default_outputs` without overrides.
        subject, seeds: without overrides: of this subject alone; expected seeds of every series.
        folder: for the files; the subject's reports by default.
        convention: that of the configuration by default, `slime` without overrides.

    Raises:
        ConfigError: overrides that cannot be composed, or that belong to another method.
        ResultError: no finished trial has a study that can be used.
        StorageError: a file cannot be written.
    """
    planned: list[dict[str, Any]] = []
    if overrides:
        planned = _planned(overrides, extra_dir)
        outputs = outputs or Path(planned[0]["output_root"])
        convention = convention or planned[0]["metric"]["convention"]
    outputs, convention = outputs or default_outputs, convention or "slime"
    collected = collect(outputs)
    asked = _matching(planned, overrides, collected) if planned else _everything(collected, subject, seeds)
    studies = read_studies(collected, asked.results)
    usual = default_settings(studies.results, extra_dir)
    made = groups(studies, collected, convention, asked.expected, usual, asked.left_out)
    if not made:
        raise _nothing(outputs, subject, asked, studies, collected)
    reports = _reports(made, studies.spoilt, asked, convention)
    for report in reports:
        _write(report, folder or outputs / "reports" / report.subject, outputs, console)
    return reports


def _planned(overrides: Sequence[str], extra_dir: str | None) -> list[dict[str, Any]]:
    from slime_bench.config.compose import plan

    trials = [plain(cfg) for cfg in plan(overrides, sweep=True, extra_dir=extra_dir).trials]
    others = sorted({trial["method"]["name"] for trial in trials} - {RANKING})
    if others:
        raise ConfigError(
            "these are not trials of the ranking experiment", path="method", found=", ".join(others), expected=RANKING,
            remedy=f"give the overrides of the sweep, {EXPERIMENT} among them",
        )  # fmt: skip
    return trials


def _everything(collected: Collected, subject: str, seeds: Sequence[int]) -> _Asked:
    results = [one for one in ranking_results(collected) if subject in ("all", one.subject)]
    return _Asked(results, {one.series: list(seeds) for one in results})


def _matching(planned: Sequence[Mapping[str, Any]], overrides: Sequence[str], collected: Collected) -> _Asked:
    """The results of planned trials.

    As in an ablation, what a configuration only points to is known from the results alone: of each setting the largest
    series is taken, of equal ones the latest.
    """
    portable = [text for text in overrides if text.partition("=")[0] not in _FOLDERS]
    asked = _Asked([], {}, command=shlex.join(["slime-bench", "--multirun", *portable]))
    settings: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for trial in planned:
        values = {key: value for key, value in trial["decided"].items() if key not in _NOT_A_SETTING}
        settings[canonical_json(values)].append(trial)
    candidates = ranking_results(collected)
    for trials in settings.values():
        series: dict[str, list[TrialResult]] = defaultdict(list)
        for trial in trials:
            for result in candidates:
                names = (result.data, result.seed) == (trial["data"]["name"], trial["seed"])
                if names and signature_on(trial, result) == result.signature:
                    series[result.series].append(result)
        if not series:
            first = trials[0]
            label = ", ".join(f"{name} {first[name]['name']}" for name in ("data", "backbone", "protocol"))
            asked.absent.setdefault(first["data"]["name"], []).append(f"{label}, preset {first['preset']}")
            continue
        chosen = max(series, key=lambda name: (len(series[name]), _latest(series[name], collected), name))
        asked.results += series[chosen]
        asked.expected[chosen] = sorted({trial["seed"] for trial in trials})
        asked.left_out[chosen] = sum(map(len, series.values())) - len(series[chosen])
    return asked


def _latest(results: Sequence[TrialResult], collected: Collected) -> float:
    return max((collected.folders[one.signature] / RESULT_FILE).stat().st_mtime for one in results)


def _reports(made: Sequence[Group], spoilt: Sequence[Spoilt], asked: _Asked, convention: str) -> list[RankingReport]:
    shown = {group.series for group in made}
    own = {group.facts["data"] for group in made}

    def belongs(data: str, place: str) -> bool:
        return data == place or data not in own  # what has no report of its own is said in all of them

    return [
        RankingReport(
            subject=subject,
            data=data,
            convention=convention,
            groups=[group for group in made if (group.subject, group.facts["data"]) == (subject, data)],
            spoilt=[one for one in spoilt if belongs(one.data, data) and one.series not in shown],
            absent=[label for name, labels in asked.absent.items() if belongs(name, data) for label in labels],
            command=asked.command,
        )
        for subject, data in dict.fromkeys((group.subject, group.facts["data"]) for group in made)
    ]


def _write(report: RankingReport, folder: Path, outputs: Path, console: Console) -> None:
    figures = {}
    names = Counter(_stem(group) for group in report.groups)
    for group in report.groups:
        stem = _stem(group)
        stem = f"{report.data}-ranking-{stem}{'-' + group.series[:8] if names[stem] > 1 else ''}"
        about = f"{place(group)}\nseeds {', '.join(str(one.seed) for one in group.seeds)}; "
        about += f"ranked on {'TEST IMAGES' if group.rank_on == 'test' else 'the training side'}; without CRF; "
        about += f"convention {report.convention}"
        layers_figure(folder / f"{stem}-layers.png", group, about)
        ensembles_figure(folder / f"{stem}-ensembles.png", group, about)
        figures[group.series] = [f"{stem}-layers.png", f"{stem}-ensembles.png"]
    paths = write_ranking(report, folder, outputs, figures)
    for group in report.groups:
        for grid in ranking_grids(report, group):
            print_grid(grid, console)
    for line in report_lines(report, outputs):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    number = sum(map(len, figures.values()))
    console.print(
        f"Written to {paths[0]} (and .csv, .json, .tex, {number} figures)",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _stem(group: Group) -> str:
    names = (group.facts[name] for name in ("backbone", "preset", "protocol"))
    return "-".join(re.sub(r"[^A-Za-z0-9_.+]", "_", name) for name in names)


def _nothing(outputs: Path, subject: str, asked: _Asked, studies: Studies, collected: Collected) -> ResultError:
    failed = sum(one.method == RANKING for one in collected.failed)
    found = [f"{len(asked.results)} finished trial(s) of {RANKING}, {failed} failed"]
    found += [f"{one.path}: {one.reason}" for one in studies.spoilt]
    others = len(ranking_results(collected)) - len(asked.results)
    found += [f"{others} of other settings or subjects"] if others else []
    command = asked.command or f"slime-bench --multirun {EXPERIMENT}"
    return ResultError(
        "There is no study of layers to report" + ("." if subject == "all" else f" for subject {subject}."),
        path=outputs / "runs",
        found="; ".join(found),
        expected="at least one finished trial with its layer_study.json",
        remedy=f"Run `{command}`, or name another folder with --outputs.",
    )

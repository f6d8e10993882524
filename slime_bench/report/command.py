"""`slime-bench report`: every table and picture that the result files allow.

Without overrides: of all finished trials, by subject. With those of a sweep, e.g. experiment=mini_car: of exactly its
trials. With --ablation, or ablation=<name> among the overrides, the table of one ablation.
With --ranking the tables and figures of the ranking experiment: InfoScore of every layer beside its mIoU, and
ensembles. With overrides those of the sweep's trials; without, of all finished ones.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from slime_bench.errors import ConfigError, ResultError
from slime_bench.metrics import CONVENTION_RULES
from slime_bench.metrics.bootstrap import RESAMPLES
from slime_bench.paths import user_path
from slime_bench.report import planned
from slime_bench.report.ablation import AblationReport, ablation_report, settings_of
from slime_bench.report.ablation_table import ablation_grid, interval_grid, write_ablation
from slime_bench.report.collect import (
    Collected,
    Defaults,
    collect,
    default_outputs,
    default_settings,
    family,
    family_of,
    read_optional,
    told,
)
from slime_bench.report.figures import ensembles_figure, layers_figure, qualitative_grid
from slime_bench.report.html import PAGE, ablation_page, subject_page
from slime_bench.report.planned import MADE, Planned, PlannedTrials
from slime_bench.report.published import load_published
from slime_bench.report.ranking import RankingReport, experiment, ranking_reports
from slime_bench.report.ranking_table import place, ranking_grids, report_lines, stems, write_ranking
from slime_bench.report.statistics import ImageBootstrap
from slime_bench.report.subject import SubjectReport, section_grid, sections, subject_report, write_tables
from slime_bench.report.table import listed, print_grid, say
from slime_bench.results.artifacts import QUALITATIVE_FILE, read_qualitative
from slime_bench.storage import write_atomic

_MOST_RESAMPLES = 20_000
"""Of 5000 images they take a gigabyte."""


@dataclass(frozen=True)
class Asked:
    """What every report is asked for.

    Attributes:
        console: to print on. planned_trials: tells how far the trials of a sweep are.
        outputs: folder with runs/; that of the configuration by default, of the command without overrides.
        folder: for the files; below the outputs folder by default.
        convention, background: of the tables; those of the configuration by default, `slime` with background without.
        resamples: of the bootstrap over test images, 0 for no intervals. show_intervals: print them too.
        across_shots: pair rows of different shots, too.
        extra_dir: a further folder of configuration files.
    """

    console: Console
    planned_trials: PlannedTrials
    outputs: Path | None = None
    folder: Path | None = None
    convention: str | None = None
    background: bool | None = None
    resamples: int = RESAMPLES
    show_intervals: bool = False
    across_shots: bool = False
    extra_dir: str | None = None

    def metric(self, configured: Mapping[str, Any]) -> dict[str, Any]:
        """Convention and background as they are asked for, else as they are configured."""
        background = configured["background"] if self.background is None else self.background
        return {"convention": self.convention or configured["convention"], "background": background}

    def bootstrap(self, collected: Collected) -> ImageBootstrap | None:
        return ImageBootstrap(collected.folders, self.resamples) if self.resamples else None

    def write_page(self, folder: Path, page: str, name: str = PAGE) -> None:
        path = folder / name
        write_atomic(path, page.encode())
        say(self.console, f"Open {path} in a browser")


def main(argv: Sequence[str] | None, planned_trials: PlannedTrials, console: Console | None = None) -> int:
    """Writes `<outputs>/reports/<subject>/` and prints the tables; returns the exit code.

    Raises:
        ConfigError: options that do not go together. ResultError: nothing to report. See the `run` functions.
    """
    arguments = _parser().parse_intermixed_args(argv)
    if arguments.ablation is not None:
        arguments.overrides = [*arguments.overrides, f"ablation={arguments.ablation}"]
    _check(arguments)
    asked = Asked(
        console or Console(), planned_trials, outputs=arguments.outputs, folder=arguments.out,
        convention=arguments.convention, background=False if arguments.without_background else None,
        resamples=RESAMPLES if arguments.resamples is None else arguments.resamples,
        show_intervals=arguments.intervals, across_shots=arguments.across_shots, extra_dir=arguments.config_dir,
    )  # fmt: skip
    subject, seeds = arguments.subject or "all", arguments.seeds or (0, 1, 2)
    if arguments.ranking:
        run_ranking(asked, arguments.overrides, subject, seeds)
    elif arguments.overrides:
        run_planned(asked, arguments.overrides)
    else:
        run(asked, subject, seeds, arguments.shots or (0, 1, 10), arguments.variants)
    return 0


def run(
    asked: Asked,
    subject: str = "all",
    seeds: Sequence[int] = (0, 1, 2),
    shots: Sequence[int] = (0, 1, 10),
    show_variants: bool = False,
) -> list[SubjectReport]:
    """The reports of one subject, or of all that have a result.

    Args:
        shots: expected ones, 0 of the methods alone that can do without support images.
        show_variants: also the series of other settings than the default ones.

    Raises:
        ResultError: there is no valid result to report on. StorageError: a file cannot be written.
    """
    outputs = asked.outputs or default_outputs()
    everything = collect(outputs)
    collected = everything.of_report(None)
    found = sorted({result.subject for result in collected.results})
    if not found or subject not in ("all", *found):
        raise _nothing(outputs, subject, found, everything)
    collected = replace(collected, results=[one for one in collected.results if subject in ("all", one.subject)])
    metric = asked.metric({"convention": "slime", "background": True})
    defaults = default_settings(((family(one), one.config) for one in collected.results), asked.extra_dir)
    reports = _subject_reports(
        asked, collected, defaults, **metric, expected_shots=shots, expected_seeds=seeds, show_variants=show_variants
    )
    for report in reports:
        folder, problems = outputs / "reports" / report.subject, planned.found_problems(report, outputs)
        _write(asked, report, collected, folder, outputs)
        asked.write_page(
            folder, subject_page([report], collected, outputs, problems, f"{report.subject}: IoU of parts")
        )
    return reports


def run_planned(asked: Asked, overrides: Sequence[str]) -> list[SubjectReport] | AblationReport:
    """The report of exactly the trials that a sweep's overrides ask for; see `run_ablation` where one is among them.

    The files go to `<outputs>/reports/<the overrides as a name>` by default, to a folder in it for each of several
    subjects.

    Args:
        overrides: as they were given to the sweep, e.g. `experiment=table2`.

    Raises:
        ConfigError: see `compose.plan`; trials of a method that has a report of its own.
        ResultError: none of the trials is finished. StorageError: a file cannot be written.
    """
    ablation, rest = planned.ablation_among(overrides)
    if ablation:
        return run_ablation(asked, ablation, rest)
    trials = asked.planned_trials(overrides, asked.outputs, asked.extra_dir)
    first, _ = trials[0]
    outputs = asked.outputs or Path(first["output_root"])
    sweep = Planned(list(overrides), trials, outputs)
    collected = sweep.of(collect(outputs))
    folder = asked.folder or outputs / "reports" / sweep.name
    defaults = default_settings(((family_of(values), values["decided"]) for values, _ in trials), asked.extra_dir)
    found = _subject_reports(asked, collected, defaults, **asked.metric(first["metric"]), show_variants=True)
    reports = [sweep.narrowed(report, defaults) for report in found]
    for report in reports:
        _write(asked, report, collected, folder if len(reports) == 1 else folder / report.subject, outputs)
    problems = planned.of_states([state for _, state in trials], sweep.command, outputs)
    title = f"IoU of parts: {' '.join(told(overrides)) or 'the default trial'}"
    asked.write_page(folder, subject_page(reports, collected, outputs, problems, title))
    return reports


def run_ablation(asked: Asked, name: str, overrides: Sequence[str]) -> AblationReport:
    """The table of one ablation, printed and written, among the subject's reports by default.

    Args:
        name, overrides: as they were given to the sweep.

    Raises:
        ConfigError: see `ablation.settings_of`.
        ResultError: no trial of the ablation is finished.
    """
    settings = settings_of(name, overrides, asked.extra_dir)
    trial = next(iter(settings[0].trials.values()))
    outputs = asked.outputs or Path(trial["output_root"])
    collected = collect(outputs)
    report = ablation_report(
        name, overrides, settings, collected, load_published(trial["data"]["subject"]), outputs=outputs,
        bootstrap=asked.bootstrap(collected), **asked.metric(trial["metric"]),
    )  # fmt: skip
    paths = write_ablation(report, asked.folder or outputs / "reports" / report.subject)
    print_grid(ablation_grid(report), asked.console)
    if asked.show_intervals and (grid := interval_grid(report)) is not None:
        print_grid(grid, asked.console)
    say(asked.console, f"Written to {paths[0]} (and .csv, .json, .tex)")
    gaps = any(each.missing and each.setting.in_grid for each in report.measured)
    trials = asked.planned_trials([*overrides, f"ablation={name}"], outputs, asked.extra_dir) if gaps else []
    page = ablation_page(report, collected, outputs, planned.ablation_problems(report, outputs, trials))
    asked.write_page(paths[0].parent, page, f"{paths[0].stem}.html")
    return report


def run_ranking(
    asked: Asked, overrides: Sequence[str], subject: str = "all", seeds: Sequence[int] = (0, 1, 2)
) -> list[RankingReport]:
    """The reports of the ranking experiment, one for each data set, printed and written; see `ranking_reports`.

    Raises:
        ConfigError, ResultError: see `ranking_reports`. StorageError: a file cannot be written.
    """
    reports, outputs = ranking_reports(
        overrides, asked.outputs, subject=subject, seeds=seeds, convention=asked.convention, extra_dir=asked.extra_dir
    )  # fmt: skip
    for report in reports:
        folder = asked.folder or outputs / "reports" / report.subject
        figures = {}
        for group in report.groups:
            stem = stems(report)[group.series]
            about = f"{place(group)}\nseeds {listed(one.seed for one in group.seeds)}; "
            about += f"ranked on {'TEST IMAGES' if group.rank_on == 'test' else 'the training side'}; without CRF; "
            about += f"convention {report.convention}"
            layers_figure(folder / f"{stem}-layers.png", group, about)
            ensembles_figure(folder / f"{stem}-ensembles.png", group, about)
            figures[group.series] = [f"{stem}-layers.png", f"{stem}-ensembles.png"]
        paths = write_ranking(report, folder, outputs, figures)
        for group in report.groups:
            for grid in ranking_grids(report, group):
                print_grid(grid, asked.console)
        for line in report_lines(report, outputs):
            say(asked.console, line)
        number = sum(map(len, figures.values()))
        say(asked.console, f"Written to {paths[0]} (and .csv, .json, .tex, {number} figures)")
    return reports


def _subject_reports(asked: Asked, collected: Collected, defaults: Defaults, **options: Any) -> list[SubjectReport]:
    """The report of each subject of the results."""
    options |= {"defaults": defaults, "bootstrap": asked.bootstrap(collected), "across_shots": asked.across_shots}
    subjects = dict.fromkeys(one.subject for one in collected.results)
    return [subject_report(collected, subject, load_published(subject), **options) for subject in subjects]


def _check(arguments: argparse.Namespace) -> None:
    """Raise a ConfigError for options that belong to another kind of table."""
    given = vars(arguments)
    others: tuple[str, ...] = ()
    if arguments.ranking:
        others = ("ablation", "shots", "variants", "without_background", "intervals", "resamples", "across_shots")
        others += ("subject", "seeds") if arguments.overrides else ()
    elif arguments.overrides:
        others = ("subject", "seeds", "shots", "variants")
        if planned.ablation_among(arguments.overrides)[0]:  # of one number of shots
            others += ("across_shots",)
    elif arguments.out:
        others = ("out",)
    wrong = [name for name in others if given[name] not in (None, False)]
    if arguments.resamples == 0 and (without := [name for name in ("intervals", "across_shots") if given[name]]):
        wrong += [*without, "resamples"]
    if wrong:
        found = " ".join(f"--{name.replace('_', '-')}" for name in wrong)
        raise ConfigError(
            "These options do not go together.", path="options", found=found,
            expected="options of one kind of table: overrides of a sweep say its data, seeds and shots themselves",
            remedy="leave them out, or see slime-bench report --help",
        )  # fmt: skip


def _write(asked: Asked, report: SubjectReport, collected: Collected, folder: Path, outputs: Path) -> None:
    write_tables(report, folder, outputs, _pictures(report, collected, folder))
    for section in sections(report):
        for grid in (section_grid(section), *(section.extra if asked.show_intervals else ())):
            print_grid(grid, asked.console)
    say(asked.console, f"Written to {folder}")


def _pictures(report: SubjectReport, collected: Collected, folder: Path) -> list[str]:
    """One grid per row of ours, from its first seed that kept pictures; returns the file names."""
    names = []
    for row in report.rows:
        for trial in (one for one in collected.results if one.series == row.series):
            pictures = read_optional(collected.folders[trial.signature] / QUALITATIVE_FILE, read_qualitative)
            if pictures is None:
                continue
            name = f"qualitative-{row.data}-{row.method}-{row.shots}-shot-seed{trial.seed}-{trial.signature}.png"
            title = f"{row.method} {row.variant}".strip()
            title += f", {row.shots}-shot, seed {trial.seed}, {row.data}, preset {row.preset}, {row.protocol}"
            qualitative_grid(folder / name, *pictures, title)
            names.append(name)
            break
    return names


def _nothing(outputs: Path, subject: str, found: Sequence[str], collected: Collected) -> ResultError:
    main = collected.of_report(None)
    others = "".join(f"; {method} is for --{name}" for method, name in sorted(collected.own_reports.items()))
    have = f"results for {', '.join(found)}" if found else "no valid result"
    command = planned.table_command(subject if subject in MADE else "car", "mini")
    return ResultError(
        "There is nothing to report" + ("." if subject == "all" else f" for subject {subject}."),
        path=outputs / "runs",
        found=f"{have}; {len(main.failed)} failed trial(s), {len(main.invalid)} unreadable result file(s)",
        expected=f"at least one finished trial (result.json){others}",
        remedy=f"Run its trials first, e.g. `{command}`, or name another folder with --outputs.",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slime-bench report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rules = "; ".join(f"{name}: {rule}" for name, rule in CONVENTION_RULES.items())
    add = parser.add_argument
    add("--outputs", type=user_path, help=f"folder with runs/ (default {default_outputs()})")
    add("--convention", choices=list(CONVENTION_RULES), help=f"{rules} (default slime)")
    add("--without-background", action="store_true", help="leave class 0 out of the average")
    add("--intervals", action="store_true", help="print intervals over test images and paired differences as well")
    add("--resamples", type=_number, help=f"of their bootstrap (default {RESAMPLES}; 0: neither computed nor written)")
    add("--across-shots", action="store_true", help="paired differences of rows with different shots as well")
    add("--config-dir", help="a further folder of configuration files, as it was given to the sweep")
    main_tables = parser.add_argument_group("main tables")
    add = main_tables.add_argument
    add("--subject", help="car, horse, face, or all (default); also with --ranking")
    add("--seeds", type=_numbers("seed"), help="expected seeds (default 0,1,2); also with --ranking")
    add(
        "--shots",
        type=_numbers("shots"),
        help="expected shots (default 0,1,10; 0 where a method can do without support)",
    )
    add("--variants", action="store_true", help="also the series with other settings than the default ones")
    others = parser.add_argument_group("ablations and the ranking experiment")
    add = others.add_argument
    add("--ablation", help="name of the ablation: a file of conf/ablation")
    add("--ranking", action="store_true", help=f"InfoScore and mIoU of the layers: trials of {experiment()}")
    add("--out", type=user_path, help="folder for the files (default <outputs>/reports/<subject>)")
    add("overrides", nargs="*", help="as they were given to the sweep, e.g. experiment=mini_horse")
    return parser


def _number(text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text) or int(text) > _MOST_RESAMPLES:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to {_MOST_RESAMPLES}, e.g. {RESAMPLES}")
    return int(text)


def _numbers(what: str) -> Callable[[str], list[int]]:
    def parse(text: str) -> list[int]:
        if not re.fullmatch(r"\d+(,\d+)*", text):
            raise argparse.ArgumentTypeError(f"{text!r} is no list of {what}, e.g. 0,1,2")
        return list(dict.fromkeys(int(part) for part in text.split(",")))

    return parse

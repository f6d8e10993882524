"""`slime-bench report`: every table and picture that the result files allow.

Without overrides: of all finished trials, by subject. With those of a sweep, e.g. experiment=mini_car: of exactly its
trials. With --ablation, or ablation=<name> among the overrides, the table of one ablation.
With --ranking the tables and figures of the ranking experiment (experiment=infoscore_ranking): InfoScore of every layer
beside its mIoU, and ensembles. With overrides those of the sweep's trials; without, of all finished ones.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_bench.errors import ConfigError, ResultError, SlimeBenchError
from slime_bench.metrics import CONVENTION_RULES
from slime_bench.report.ablation import AblationReport, ablation_report
from slime_bench.report.ablation_settings import settings_of
from slime_bench.report.ablation_table import ablation_grid, interval_grid, write_ablation
from slime_bench.report.aggregate import Collected, collect, without_own_reports
from slime_bench.report.grid import print_grid
from slime_bench.report.intervals import ImageBootstrap
from slime_bench.report.kept import read_kept
from slime_bench.report.method_facts import OWN_REPORT
from slime_bench.report.page.build import ablation_page, subject_page
from slime_bench.report.page.problems import ablation_problems, found_problems
from slime_bench.report.page.render import write_page
from slime_bench.report.planned import planned, unfinished
from slime_bench.report.plots import qualitative_grid
from slime_bench.report.published import load_published
from slime_bench.report.ranking_command import EXPERIMENT, run_ranking
from slime_bench.report.statistics import RESAMPLES
from slime_bench.report.tables import SubjectReport, section_grid, sections, subject_report, write_tables
from slime_bench.report.usual import default_settings
from slime_bench.results.qualitative import QUALITATIVE_FILE, read_qualitative

if TYPE_CHECKING:
    from rich.console import Console

PAGE = "report.html"
_MOST_RESAMPLES = 20_000
"""Of 5000 images they take a gigabyte."""


def main(argv: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Writes `<outputs>/reports/<subject>/` and prints the tables; returns the exit code.

    Errors are printed without a traceback unless `HYDRA_FULL_ERROR=1`.
    """
    arguments = _parser().parse_intermixed_args(argv)
    try:
        _check(arguments)
        shared: dict[str, Any] = {
            "extra_dir": arguments.config_dir,
            "console": console,
            "resamples": RESAMPLES if arguments.resamples is None else arguments.resamples,
            "show_intervals": arguments.intervals,
        }
        of_sweep: dict[str, Any] = {
            "outputs": arguments.outputs,
            "folder": arguments.out,
            "convention": arguments.convention,
            "background": False if arguments.without_background else None,
        }
        if arguments.ranking:
            run_ranking(
                arguments.overrides,
                outputs=arguments.outputs,
                default_outputs=_default_outputs(),
                console=console or _console(),
                subject=arguments.subject or "all",
                seeds=arguments.seeds or (0, 1, 2),
                folder=arguments.out,
                convention=arguments.convention,
                extra_dir=arguments.config_dir,
            )
        elif arguments.ablation is not None:
            run_ablation(arguments.ablation, arguments.overrides, **of_sweep, **shared)
        elif arguments.overrides:
            run_planned(arguments.overrides, **of_sweep, **shared)
        else:
            run(
                outputs=arguments.outputs or _default_outputs(),
                subject=arguments.subject or "all",
                convention=arguments.convention or "slime",
                background=not arguments.without_background,
                seeds=arguments.seeds or (0, 1, 2),
                shots=arguments.shots or (0, 1, 10),
                show_variants=arguments.variants,
                **shared,
            )
    except SlimeBenchError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def run(
    outputs: Path,
    subject: str = "all",
    convention: str = "slime",
    background: bool = True,
    seeds: Sequence[int] = (0, 1, 2),
    shots: Sequence[int] = (0, 1, 10),
    show_variants: bool = False,
    extra_dir: str | None = None,
    console: Console | None = None,
    resamples: int = RESAMPLES,
    show_intervals: bool = False,
) -> list[SubjectReport]:
    """The reports of one subject, or of all that have a result.

    Args:
        shots: expected ones, 0 of the methods alone that can do without support images.
        show_variants: also the series of other settings than the default ones.
        extra_dir: a further folder of configuration files, to know the default settings from.
        resamples: of the bootstrap over test images, 0 for no intervals. show_intervals: print them too.

    Raises:
        ResultError: there is no valid result to report on.
        StorageError: a file cannot be written.
    """
    console = console or _console()
    collected = without_own_reports(collect(outputs))
    found = sorted({result.subject for result in collected.results})
    wanted = found if subject == "all" else [subject]
    if not found or any(name not in found for name in wanted):
        raise _nothing(outputs, subject, found, collected)
    reports = []
    usual = default_settings([one for one in collected.results if one.subject in wanted], extra_dir)
    bootstrap = ImageBootstrap(collected.folders, resamples) if resamples else None
    for name in wanted:
        report = subject_report(
            collected,
            name,
            load_published(name),
            convention=convention,
            background=background,
            expected_shots=shots,
            expected_seeds=seeds,
            usual=usual,
            show_variants=show_variants,
            bootstrap=bootstrap,
        )
        folder = outputs / "reports" / name
        _write(report, collected, folder, outputs, console, show_intervals)
        page = subject_page(
            [report],
            collected.results,
            collected.folders,
            outputs,
            found_problems(report, outputs),
            f"{name}: IoU of parts",
        )
        _say_page(write_page(folder / PAGE, page), console)
        reports.append(report)
    return reports


def run_planned(
    overrides: Sequence[str],
    *,
    outputs: Path | None = None,
    folder: Path | None = None,
    convention: str | None = None,
    background: bool | None = None,
    extra_dir: str | None = None,
    console: Console | None = None,
    resamples: int = RESAMPLES,
    show_intervals: bool = False,
) -> list[SubjectReport] | AblationReport:
    """The report of exactly the trials that a sweep's overrides ask for; see `run_ablation` where one is among them.

    Args:
        overrides: as they were given to the sweep, e.g. `experiment=table2`.
        outputs: folder with runs/; that of the configuration by default. folder: for the files;
            `<outputs>/reports/<the overrides as a name>` by default, with a folder in it for each of several subjects.
        convention, background: those of the configuration by default.
        resamples, show_intervals: see `run`.

    Raises:
        ConfigError: see `compose.plan`; trials of a method that has a report of its own.
        ResultError: none of the trials is finished.
        StorageError: a file cannot be written.
    """
    found = planned(overrides, outputs, extra_dir)
    if found.ablation:
        return run_ablation(
            found.ablation, found.rest, outputs=outputs, folder=folder, convention=convention, background=background,
            extra_dir=extra_dir, console=console, resamples=resamples, show_intervals=show_intervals,
        )  # fmt: skip
    console = console or _console()
    collected = found.of(collect(found.outputs))
    folder = folder or found.outputs / "reports" / found.name
    usual = default_settings(collected.results, extra_dir)
    bootstrap = ImageBootstrap(collected.folders, resamples) if resamples else None
    subjects = list(dict.fromkeys(one.subject for one in collected.results))
    reports = []
    for subject in subjects:
        report = found.narrowed(
            subject_report(
                collected,
                subject,
                load_published(subject),
                convention=convention or found.convention,
                background=found.background if background is None else background,
                usual=usual,
                show_variants=True,
                bootstrap=bootstrap,
            )
        )
        place = folder if len(subjects) == 1 else folder / subject
        _write(report, collected, place, found.outputs, console, show_intervals)
        reports.append(report)
    page = subject_page(reports, collected.results, collected.folders, found.outputs, found.problems(), found.title)
    _say_page(write_page(folder / PAGE, page), console)
    return reports


def run_ablation(
    name: str,
    overrides: Sequence[str],
    *,
    outputs: Path | None = None,
    folder: Path | None = None,
    convention: str | None = None,
    background: bool | None = None,
    extra_dir: str | None = None,
    console: Console | None = None,
    resamples: int = RESAMPLES,
    show_intervals: bool = False,
) -> AblationReport:
    """The table of one ablation, printed and written.

    Args:
        name, overrides: as they were given to the sweep.
        outputs: folder with runs/; that of the configuration by default. folder: for the files; the subject's reports
            by default.
        convention, background: those of the configuration by default.
        resamples, show_intervals: see `run`.

    Raises:
        ConfigError: see `ablation.settings_of`.
        ResultError: no trial of the ablation is finished.
        StorageError: a file cannot be written.
    """
    settings = settings_of(name, overrides, extra_dir)
    trial = next(iter(settings[0].trials.values()))
    outputs = outputs or Path(trial["output_root"])
    collected = collect(outputs)
    report = ablation_report(
        name,
        overrides,
        settings,
        collected,
        load_published(trial["data"]["subject"]),
        convention=convention or trial["metric"]["convention"],
        background=trial["metric"]["background"] if background is None else background,
        outputs=outputs,
        bootstrap=ImageBootstrap(collected.folders, resamples) if resamples else None,
    )
    console = console or _console()
    paths = write_ablation(report, folder or outputs / "reports" / report.subject)
    print_grid(ablation_grid(report), console)
    if show_intervals and (grid := interval_grid(report)) is not None:
        print_grid(grid, console)
    console.print(f"Written to {paths[0]} (and .csv, .json, .tex)", markup=False, highlight=False, soft_wrap=True)
    problems = ablation_problems(report, outputs, unfinished(report, outputs))
    page = ablation_page(report, collected.results, collected.folders, outputs, problems)
    _say_page(write_page(paths[0].with_suffix(".html"), page), console)
    return report


def _check(arguments: argparse.Namespace) -> None:
    """Raise a ConfigError for options that belong to another kind of table."""
    given = vars(arguments)
    if arguments.intervals and arguments.resamples == 0:
        raise ConfigError(
            "There are no intervals without resamples.", path="--resamples", found=0, expected="1 or more",
            remedy="leave --resamples out, or --intervals",
        )  # fmt: skip
    if arguments.ranking:
        wrong = [name for name in ("ablation", "shots", "variants", "without_background", "intervals") if given[name]]
        wrong += ["resamples"] if arguments.resamples is not None else []
        wrong += [name for name in ("subject", "seeds") if given[name] and given["overrides"]]
        expected = "either overrides of the sweep, or --subject and --seeds; its studies average over all classes"
        remedy = f"e.g. slime-bench report --ranking {EXPERIMENT} data=mini_car"
    elif arguments.ablation is None:
        names = ("subject", "seeds", "shots", "variants") if given["overrides"] else ("out",)
        wrong = [name for name in names if given[name]]
        expected = (
            "a sweep's data, seeds and shots as overrides" if given["overrides"] else "a sweep's overrides with it"
        )
        remedy = "e.g. slime-bench report experiment=mini_car seed=0,1"
    else:
        wrong = [name for name in ("subject", "seeds", "shots", "variants") if given[name]]
        expected = "an ablation's data, seeds and shots as overrides, as they were given to the sweep"
        remedy = "e.g. slime-bench report --ablation lr experiment=mini_horse seed=0,1,2"
    if wrong:
        found = " ".join(given[name][0] if name == "overrides" else f"--{name.replace('_', '-')}" for name in wrong)
        raise ConfigError(
            "These options do not go together.", path=found, found=found, expected=expected, remedy=remedy
        )


def _write(
    report: SubjectReport, collected: Collected, folder: Path, outputs: Path, console: Console, show_intervals: bool
) -> None:
    write_tables(report, folder, outputs, _pictures(report, collected, folder))
    _print(report, folder, console, show_intervals)


def _say_page(path: Path, console: Console) -> None:
    console.print(f"Open {path} in a browser", markup=False, highlight=False, soft_wrap=True)


def _print(report: SubjectReport, folder: Path, console: Console, show_intervals: bool) -> None:
    for section in sections(report):
        for grid in (section_grid(section), *(section.extra if show_intervals else ())):
            print_grid(grid, console)
    console.print(f"Written to {folder}", markup=False, highlight=False, soft_wrap=True)


def _pictures(report: SubjectReport, collected: Collected, folder: Path) -> list[str]:
    """One grid per row of ours, from its first seed that kept pictures; returns the file names."""
    names = []
    for row in report.rows:
        trials = [one for one in collected.results if one.series == row.series and one.seed in row.seeds]
        for trial in trials:
            kept = read_kept(collected.folders[trial.signature] / QUALITATIVE_FILE, read_qualitative)
            if kept is None:
                continue
            name = f"qualitative-{row.data}-{row.method}-{row.shots}-shot-seed{trial.seed}-{trial.signature}.png"
            title = f"{row.method} {row.variant}".strip()
            title += f", {row.shots}-shot, seed {trial.seed}, {row.data}, preset {row.preset}, {row.protocol}"
            qualitative_grid(folder / name, *kept, title)
            names.append(name)
            break
    return names


def _nothing(outputs: Path, subject: str, found: Sequence[str], collected: Collected) -> ResultError:
    failed, invalid = len(collected.failed), len(collected.invalid)
    have = f"results for {', '.join(found)}" if found else "no valid result"
    target = subject if subject in ("car", "horse", "face") else "car" if subject == "all" else None
    return ResultError(
        "There is nothing to report" + ("." if subject == "all" else f" for subject {subject}."),
        path=outputs / "runs",
        found=f"{have}; {failed} failed trial(s), {invalid} unreadable result file(s)",
        expected=f"at least one finished trial (result.json); {', '.join(sorted(OWN_REPORT))} is for --ranking",
        remedy=f"Run `make reproduce-{target}` first, or name another folder with --outputs."
        if target
        else "Run a trial of that subject first, or name another folder with --outputs.",
    )


def _console() -> Console:
    from rich.console import Console

    return Console()


def _default_outputs() -> Path:
    return Path(os.environ.get("SLIME_BENCH_OUTPUTS") or "outputs")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slime-bench report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rules = "; ".join(f"{name}: {rule}" for name, rule in CONVENTION_RULES.items())
    add = parser.add_argument
    add("--outputs", type=Path, help=f"folder with runs/ (default {_default_outputs()})")
    add("--convention", choices=list(CONVENTION_RULES), help=f"{rules} (default slime)")
    add("--without-background", action="store_true", help="leave class 0 out of the average")
    add("--intervals", action="store_true", help="print intervals over test images and paired differences as well")
    add("--resamples", type=_number, help=f"of their bootstrap (default {RESAMPLES}; 0: neither computed nor written)")
    add("--config-dir", help="a further folder of configuration files, as it was given to the sweep")
    main_tables = parser.add_argument_group("main tables")
    add = main_tables.add_argument
    add("--subject", type=_name, help="car, horse, face, or all (default); also with --ranking")
    add("--seeds", type=_numbers("seed"), help="expected seeds (default 0,1,2); also with --ranking")
    add(
        "--shots",
        type=_numbers("shots"),
        help="expected shots (default 0,1,10; 0 where a method can do without support)",
    )
    add("--variants", action="store_true", help="also the series with other settings than the default ones")
    others = parser.add_argument_group("ablations and the ranking experiment")
    add = others.add_argument
    add("--ablation", type=_name, help="name of the ablation: a file of conf/ablation")
    add(
        "--ranking",
        action="store_true",
        help="InfoScore and mIoU of the layers: trials of experiment=infoscore_ranking",
    )
    add("--out", type=Path, help="folder for the files (default <outputs>/reports/<subject>)")
    add("overrides", nargs="*", help="as they were given to the sweep, e.g. experiment=mini_horse")
    return parser


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no subject's name")
    return text


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

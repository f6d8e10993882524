"""`slime-bench report`: every table and picture that the result files allow."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slime_bench.errors import ResultError, SlimeBenchError
from slime_bench.metrics import CONVENTION_RULES
from slime_bench.qualitative import QUALITATIVE_FILE, read_qualitative
from slime_bench.report.aggregate import Collected, collect
from slime_bench.report.plots import qualitative_grid
from slime_bench.report.published import load_published
from slime_bench.report.tables import SubjectReport, rich_table, sections, subject_report, write_tables

if TYPE_CHECKING:
    from rich.console import Console

_LOG = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Writes `<outputs>/reports/<subject>/` and prints the tables; returns the exit code.

    Errors are printed without a traceback unless `HYDRA_FULL_ERROR=1`.
    """
    arguments = _parser().parse_args(argv)
    try:
        run(
            outputs=arguments.outputs,
            subject=arguments.subject,
            convention=arguments.convention,
            background=not arguments.without_background,
            seeds=arguments.seeds,
            shots=arguments.shots,
            console=console,
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
    shots: Sequence[int] = (1, 10),
    console: Console | None = None,
) -> list[SubjectReport]:
    """The reports of one subject, or of all that have a result.

    Raises:
        ResultError: there is no valid result to report on.
        StorageError: a file cannot be written.
    """
    console = console or _console()
    collected = collect(outputs)
    found = sorted({result.subject for result in collected.results})
    wanted = found if subject == "all" else [subject]
    if not found or any(name not in found for name in wanted):
        raise _nothing(outputs, subject, found, collected)
    reports = []
    for name in wanted:
        report = subject_report(
            collected,
            name,
            load_published(name),
            convention=convention,
            background=background,
            expected_shots=shots,
            expected_seeds=seeds,
        )
        folder = outputs / "reports" / name
        pictures = _pictures(report, collected, folder)
        write_tables(report, folder, outputs, pictures)
        _print(report, folder, console)
        reports.append(report)
    return reports


def _print(report: SubjectReport, folder: Path, console: Console) -> None:
    for section in sections(report):
        table = rich_table(section)
        needed = console.measure(table, options=console.options.update(width=10_000)).maximum
        if needed <= console.width:
            console.print(table)
        elif console.is_terminal:
            console.print(rich_table(section, compact=True))
        else:
            # A file or a pipe has no width: rich guesses 80 columns, at which the table must not be folded.
            width = console.width
            console.width = needed
            console.print(table)
            console.width = width
    console.print(f"Written to {folder}", markup=False, highlight=False, soft_wrap=True)


def _pictures(report: SubjectReport, collected: Collected, folder: Path) -> list[str]:
    """One grid per row of ours, from its first seed that kept pictures; returns the file names."""
    names = []
    for row in report.rows:
        trials = [one for one in collected.results if one.series == row.series and one.seed in row.seeds]
        for trial in trials:
            source = collected.folders[trial.signature] / QUALITATIVE_FILE
            if not source.is_file():
                continue
            try:
                items, classes = read_qualitative(source)
            except ResultError as error:  # a spoilt picture must not cost the table
                _LOG.warning("%s", error)
                continue
            name = f"qualitative-{row.data}-{row.method}-{row.shots}-shot-seed{trial.seed}-{trial.signature}.png"
            title = f"{row.method} {row.variant}".strip()
            title += f", {row.shots}-shot, seed {trial.seed}, {row.data}, preset {row.preset}, {row.protocol}"
            qualitative_grid(folder / name, items, classes, title)
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
        expected="at least one finished trial (result.json)",
        remedy=f"Run `make reproduce-{target}` first, or name another folder with --outputs."
        if target
        else "Run a trial of that subject first, or name another folder with --outputs.",
    )


def _console() -> Console:
    from rich.console import Console

    return Console()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="slime-bench report", description=__doc__)
    parser.add_argument("--subject", default="all", type=_name, help="car, horse, face, or all (default)")
    default = Path(os.environ.get("SLIME_BENCH_OUTPUTS") or "outputs")
    parser.add_argument("--outputs", default=default, type=Path, help=f"folder with runs/ (default {default})")
    rules = "; ".join(f"{name}: {rule}" for name, rule in CONVENTION_RULES.items())
    parser.add_argument("--convention", default="slime", choices=list(CONVENTION_RULES), help=rules)
    parser.add_argument("--without-background", action="store_true", help="leave class 0 out of the average")
    parser.add_argument("--seeds", default=[0, 1, 2], type=_numbers("seed"), help="expected seeds (default 0,1,2)")
    parser.add_argument("--shots", default=[1, 10], type=_numbers("shots"), help="expected shots (default 1,10)")
    return parser


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no subject's name")
    return text


def _numbers(what: str) -> Callable[[str], list[int]]:
    def parse(text: str) -> list[int]:
        if not re.fullmatch(r"\d+(,\d+)*", text):
            raise argparse.ArgumentTypeError(f"{text!r} is no list of {what}, e.g. 0,1,2")
        return list(dict.fromkeys(int(part) for part in text.split(",")))

    return parse

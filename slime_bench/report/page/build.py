"""The page of a report: everything that it shows, put together from the report and the trials' folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slime_bench.metrics import CONVENTION_RULES
from slime_bench.report import method_facts, tables
from slime_bench.report.ablation import AblationReport
from slime_bench.report.ablation_table import interval_grid, shown
from slime_bench.report.aggregate import PAPER_CONVENTION
from slime_bench.report.page.charts import ablation_chart, bars
from slime_bench.report.page.confusion import confusion_of
from slime_bench.report.page.curves import curves_of
from slime_bench.report.page.facts import facts_of
from slime_bench.report.page.numbers import series_numbers, without_counts
from slime_bench.report.page.pictures import gallery
from slime_bench.report.page.tables import ablation_table, plain_table, row_labels, section_table
from slime_bench.report.page.view import Page, Problems, Section
from slime_bench.report.published import Published
from slime_bench.report.tables import SubjectReport
from slime_bench.results.confusion import CONFUSION_FILE
from slime_bench.results.curves import CURVES_FILE
from slime_bench.results.result import TrialResult

Named = list[tuple[str, str]]
"""Series and label of our rows, in the order of the tables."""


def subject_page(
    reports: Sequence[SubjectReport],
    results: Sequence[TrialResult],
    folders: Mapping[str, Path],
    root: Path,
    problems: Problems,
    title: str,
) -> Page:
    """The page of one or more subjects.

    Args:
        results, folders: as in `Collected`; those without a row are left out. root: outputs folder.
    """
    sections: list[Section] = []
    named: Named = []
    classes: list[str] = []
    for report in reports:
        rows = [row for row in report.rows if not row.published]
        several = len(reports) > 1
        named += [(series, _label(report, label, several)) for series, label in row_labels(rows).items()]
        classes += [name for name in report.columns if name not in classes]
        for each in tables.sections(report):
            chart = bars(each, f"bars{len(sections)}")
            more = [plain_table(grid, report.columns) for grid in each.extra]
            sections.append(Section(each.title, section_table(each), [chart] if chart else [], more))
    some = reports[0]
    cited = [each.published for each in reports if each.published is not None]
    number = sum(len(row.seeds) for report in reports for row in report.rows)
    lead = (
        f"Intersection over union of parts on {method_facts.listed([report.subject for report in reports])}: "
        f"{len(named)} rows made of {number} trials{_beside(cited)}."
    )
    return _page(
        title, lead, problems, sections, named, results, folders, root, classes,
        convention=some.convention, background=some.background_in_average,
    )  # fmt: skip


def ablation_page(
    report: AblationReport,
    results: Sequence[TrialResult],
    folders: Mapping[str, Path],
    root: Path,
    problems: Problems,
) -> Page:
    """The page of one ablation."""
    table = ablation_table(report)
    classes = tables.column_order(report.published, report.classes)
    intervals = interval_grid(report)
    more = [plain_table(intervals, classes)] if intervals is not None else []
    section = Section(table.title, table, [ablation_chart(report, "points0")], more)
    named = [(each.row.series, each.setting.label) for each in shown(report) if each.row is not None]
    number = sum(len(each.row.seeds) for each in shown(report) if each.row is not None)
    cited = [report.published] if report.published and any(each.published for each in report.measured) else []
    lead = (
        f"What {report.facts['method']} with {report.facts['shots']} shots on {report.facts['data']} makes of "
        f"{len(named)} settings: {number} trials{_beside(cited)}."
    )
    return _page(
        f"{report.subject}: ablation {report.name}", lead, problems, [section], named, results, folders, root, classes,
        convention=report.convention, background=report.background,
    )  # fmt: skip


def _page(
    title: str,
    lead: str,
    problems: Problems,
    sections: list[Section],
    named: Named,
    results: Sequence[TrialResult],
    folders: Mapping[str, Path],
    root: Path,
    classes: list[str],
    *,
    convention: str,
    background: bool,
) -> Page:
    wanted = {series for series, _ in named}
    trials = [one for one in results if one.series in wanted]
    groups = {series: [one for one in trials if one.series == series] for series, _ in named}
    numbers = series_numbers(trials, folders)
    curves = [one for series, label in named if (one := curves_of(label, groups[series], folders))]
    matrices = [each for series, label in named if (each := confusion_of(label, groups[series], folders))]
    pictures = gallery(named, trials, folders)
    absent = {
        "numbers": "; ".join(without_counts(numbers)),
        "curves": _lacking(CURVES_FILE, "learning curves", [one for one in trials if one.shots], folders),
        "confusion": _lacking(CONFUSION_FILE, "confusion matrix", trials, folders),
        "pictures": "" if pictures else "no trial kept pictures (save_maps=0)",
    }
    data: dict[str, Any] = {
        "convention": convention,
        "background": background,
        "paper": PAPER_CONVENTION,
        "rules": CONVENTION_RULES,
        "series": numbers,
        "charts": {chart.id: chart.spec for section in sections for chart in section.charts},
        "gallery": pictures,
    }
    return Page(
        title=title,
        lead=lead,
        problems=problems,
        sections=sections,
        curves=curves,
        confusions=matrices,
        facts=facts_of(named, trials, folders, root, convention, background),
        classes=classes,
        data=data,
        absent=absent,
    )


def _lacking(name: str, what: str, trials: Sequence[TrialResult], folders: Mapping[str, Path]) -> str:
    """A sentence on trials without the file `name`; empty where all have it."""
    lacking = sum(not (folders[one.signature] / name).is_file() for one in trials)
    if not lacking:
        return ""
    return f"{lacking} of {len(trials)} trials kept no {what} ({name}): they ran before the bench wrote one"


def _beside(cited: Sequence[Published]) -> str:
    sources = list(dict.fromkeys(each.citation for each in cited))
    return f", beside the numbers of {'; '.join(sources)}" if sources else ""


def _label(report: SubjectReport, name: str, several: bool) -> str:
    return f"{report.subject}: {name}" if several else name

"""The page of a report: one self-contained HTML file of its tables, charts and pictures, which loads nothing.

Every number that the switches change stands in the page under each convention, with and without the background, as
`STATES` lists them; the page's script only shows it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from slime_bench.metrics import CONVENTION_RULES
from slime_bench.report.ablation import AblationReport
from slime_bench.report.ablation_table import interval_grid
from slime_bench.report.collect import Collected, relative
from slime_bench.report.html_tables import (
    STATES,
    Part,
    ablation_part,
    comparable,
    follows,
    row_labels,
    section_part,
    wordy,
)
from slime_bench.report.html_trials import confusion_of, curves_of, shared_facts, trial_facts
from slime_bench.report.pictures import gallery
from slime_bench.report.planned import Problems
from slime_bench.report.published import Published
from slime_bench.report.rows import column_order
from slime_bench.report.subject import SubjectReport, sections
from slime_bench.report.table import listed, metric_line
from slime_bench.results.artifacts import CONFUSION_FILE, CURVES_FILE
from slime_bench.results.environment import read_environment
from slime_bench.results.result import TrialResult

PAGE: Final = "report.html"
_ASSETS = Path(__file__).parent / "assets"


def subject_page(
    reports: Sequence[SubjectReport], collected: Collected, root: Path, problems: Problems, title: str
) -> str:
    """The page of one or more subjects; of the results, those without a row are left out. root: outputs folder."""
    parts: list[Part] = []
    named: dict[str, str] = {}
    for report in reports:
        prefix = f"{report.subject}: " if len(reports) > 1 else ""
        named |= {series: f"{prefix}{label}" for series, label in row_labels(report.rows).items()}
        for section in sections(report):
            parts.append(section_part(section, collected.results, f"bars{len(parts)}"))
    cited = [each.published for each in reports if each.published is not None]
    number = sum(len(row.seeds) for report in reports for row in report.rows)
    lead = (
        f"Intersection over union of parts on {listed(report.subject for report in reports)}: "
        f"{len(named)} rows made of {number} trials{_beside(cited)}."
    )
    classes = list(dict.fromkeys(name for report in reports for name in report.columns))
    state = (reports[0].convention, reports[0].background_in_average)
    return _page(title, lead, problems, parts, named, collected, root, classes, state)


def ablation_page(report: AblationReport, collected: Collected, root: Path, problems: Problems) -> str:
    """The page of one ablation. root: outputs folder."""
    rows = [(each.setting.label, each.row) for each in report.shown if each.row is not None]
    number = sum(len(row.seeds) for _, row in rows)
    cited = [report.published] if report.published and any(each.published for each in report.measured) else []
    lead = (
        f"What {report.facts['method']} with {report.facts['shots']} shots on {report.facts['data']} makes of "
        f"{len(rows)} settings: {number} trials{_beside(cited)}."
    )
    return _page(
        f"{report.subject}: ablation {report.name}", lead, problems, [ablation_part(report, interval_grid(report))],
        {row.series: label for label, row in rows}, collected, root, column_order(report.published, report.classes),
        (report.convention, report.background),
    )  # fmt: skip


def _beside(cited: Sequence[Published]) -> str:
    sources = "; ".join(dict.fromkeys(each.citation for each in cited))
    return f", beside the numbers of {sources}" if sources else ""


def _page(
    title: str,
    lead: str,
    problems: Problems,
    parts: list[Part],
    named: Mapping[str, str],
    collected: Collected,
    root: Path,
    classes: list[str],
    state: tuple[str, bool],
) -> str:
    """The HTML. It loads nothing, and its Content-Security-Policy lets it run no script and style but its own.

    Args:
        named: series -> label of our rows, in the order of the tables.
        state: convention and average that it opens with.
    """
    folders = collected.folders
    groups = {label: [one for one in collected.results if one.series == series] for series, label in named.items()}
    every = [
        (label, one, read_environment(folders[one.signature]) or {})
        for label, trials in groups.items()
        for one in trials
    ]
    trials = [one for _, one, _ in every]
    pictures = gallery(groups, folders)
    rules = [metric_line(*each) for each in STATES]
    hint = " Published numbers follow another rule and are not shown."
    status = [f"{text[0].upper()}{text[1:]}." for text in rules]
    return render(
        title=title,
        lead=lead,
        problems=problems,
        sections=parts,
        curves=[made for label, members in groups.items() if (made := curves_of(label, members, folders))],
        confusions=[made for label, members in groups.items() if (made := confusion_of(label, members, folders))],
        shared=shared_facts([(one, found) for _, one, found in every]),
        trials=[
            trial_facts(label, one, found, relative(folders[one.signature], root), state) for label, one, found in every
        ],
        classes=classes,
        absent={
            "curves": _lacking(CURVES_FILE, "learning curves", [one for one in trials if one.shots], folders),
            "confusion": _lacking(CONFUSION_FILE, "confusion matrix", trials, folders),
        },
        left_out=pictures["leftOut"] if pictures else 0,
        convention=state[0],
        background=state[1],
        rules=CONVENTION_RULES,
        wordy=wordy,
        follows=follows,
        state=STATES.index(state),
        metrics="|".join(rules),
        status="|".join(text + ("" if comparable(each) else hint) for text, each in zip(status, STATES, strict=True)),
        data={"comparable": [comparable(each) for each in STATES], "gallery": pictures},
    )


def _lacking(name: str, what: str, trials: Sequence[TrialResult], folders: Mapping[str, Path]) -> str:
    """A sentence on trials without the file `name`; empty where all have it."""
    lacking = sum(not (folders[one.signature] / name).is_file() for one in trials)
    return f"{lacking} of {len(trials)} trials kept no {what} ({name})" if lacking else ""


def render(**content: Any) -> str:
    """The template of this package with style sheet, script and content put into it."""
    import jinja2

    style, script = ((_ASSETS / name).read_text(encoding="utf-8").strip("\n") for name in ("page.css", "page.js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_ASSETS), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("page.html.j2").render(
        content, style=Markup(style), script=Markup(script), policy=policy
    )


def _hash(text: str) -> str:
    """As a Content-Security-Policy names an inline element's content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"

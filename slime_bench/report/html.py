"""The page of a report: one self-contained HTML file of its tables, charts and pictures, which loads nothing.

Every number that the switches change stands in the page under each convention, with and without the background, as
`STATES` lists them; the page's script only shows it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from markupsafe import Markup

from slime_bench.metrics import CONVENTION_RULES
from slime_bench.report import html_parts
from slime_bench.report.ablation import AblationReport
from slime_bench.report.ablation_table import interval_grid
from slime_bench.report.collect import Collected, relative
from slime_bench.report.html_parts import STATES, Part, comparable
from slime_bench.report.pictures import gallery
from slime_bench.report.planned import Problems
from slime_bench.report.published import Published
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
        named |= {series: f"{prefix}{label}" for series, label in html_parts.row_labels(report.rows).items()}
        for section in sections(report):
            parts.append(html_parts.section_part(section, collected.results, f"bars{len(parts)}"))
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
    part, named = html_parts.ablation_part(report, interval_grid(report)), {row.series: label for label, row in rows}
    title, state = f"{report.subject}: ablation {report.name}", (report.convention, report.background)
    return _page(title, lead, problems, [part], named, collected, root, report.columns, state)


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
    import jinja2

    folders = collected.folders
    groups = {label: [one for one in collected.results if one.series == series] for series, label in named.items()}
    trials = [one for members in groups.values() for one in members]
    found = {one.signature: read_environment(folders[one.signature]) or {} for one in trials}
    pictures, rules = gallery(groups, folders), [metric_line(*each) for each in STATES]
    hints = ["" if comparable(each) else " Published numbers follow another rule and are not shown." for each in STATES]
    style, script = ((_ASSETS / name).read_text(encoding="utf-8").strip("\n") for name in ("page.css", "page.js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_ASSETS), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html.j2").render(
        title=title, lead=lead, problems=problems, sections=parts, classes=classes,
        curves=[made for label, members in groups.items() if (made := html_parts.curves_of(label, members, folders))],
        confusions=[
            made for label, members in groups.items() if (made := html_parts.confusion_of(label, members, folders))
        ],
        shared=html_parts.shared_facts([(one, found[one.signature]) for one in trials]),
        trials=[
            html_parts.trial_facts(
                label, one, found[one.signature], relative(folders[one.signature], root), STATES.index(state)
            )
            for label, members in groups.items()
            for one in members
        ],
        absent={
            "curves": _lacking(CURVES_FILE, "learning curves", [one for one in trials if one.shots], folders),
            "confusion": _lacking(CONFUSION_FILE, "confusion matrix", trials, folders),
        },
        left_out=pictures["leftOut"] if pictures else 0, convention=state[0], background=state[1],
        state=STATES.index(state), rules=CONVENTION_RULES, wordy=html_parts.wordy, follows=html_parts.follows,
        metrics="|".join(rules),
        status="|".join(f"{rule[0].upper()}{rule[1:]}.{hint}" for rule, hint in zip(rules, hints, strict=True)),
        data={"comparable": [comparable(each) for each in STATES], "gallery": pictures},
        style=Markup(style), script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
    )  # fmt: skip


def _lacking(name: str, what: str, trials: Sequence[TrialResult], folders: Mapping[str, Path]) -> str:
    """A sentence on trials without the file `name`; empty where all have it."""
    lacking = sum(not (folders[one.signature] / name).is_file() for one in trials)
    return f"{lacking} of {len(trials)} trials kept no {what} ({name})" if lacking else ""


def _hash(text: str) -> str:
    """As a Content-Security-Policy names an inline element's content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"

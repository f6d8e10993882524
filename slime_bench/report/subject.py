"""The main table of one subject: its rows and captions, and its files, all from the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slime_bench.metrics.bootstrap import PERCENT
from slime_bench.report import statistics, table
from slime_bench.report.collect import Collected, Defaults, FailedTrial, relative
from slime_bench.report.published import Published
from slime_bench.report.rows import (
    PAPER_PRESET,
    MissingTrial,
    Row,
    aggregate,
    choices,
    column_order,
    comparison,
    difference,
    missing,
    possible_shots,
    published_rows,
    row_name,
    stats_of,
    without_variants,
)
from slime_bench.report.statistics import ImageBootstrap, Pair
from slime_bench.report.table import DASH, UNIT, Grid, Line, grouped, listed, stat_text
from slime_bench.results.status import RUNNING
from slime_bench.storage import write_atomic


@dataclass(frozen=True)
class SubjectReport:
    """Everything the tables of one subject say.

    Attributes:
        columns: class names in the paper's order.
        rows: our rows, sorted by data, preset, shots and method.
        hidden: our rows of other settings than the default, which the tables leave out and the CSV and JSON files hold.
        missing: expected trials without a valid result; `failed` those that ended in an error.
        invalid: files that are no valid result, with the reason.
        pairs: paired differences between the rows of each preset, data set and, mostly, number of shots.
    """

    subject: str
    columns: list[str]
    rows: list[Row]
    hidden: list[Row]
    published: Published | None
    missing: list[MissingTrial]
    failed: list[FailedTrial]
    invalid: list[tuple[Path, str]]
    convention: str
    background_in_average: bool
    expected_shots: tuple[int, ...]
    expected_seeds: tuple[int, ...]
    pairs: list[Pair] = field(default_factory=list)


@dataclass(frozen=True)
class Section:
    """One printed table: our rows of one preset and data set, beside the published ones.

    Attributes:
        compared: whether it has a column of ours minus published.
        extra: intervals and pairs, each where there are some.
    """

    title: str
    columns: list[str]
    rows: list[Row]
    caption: list[str]
    published: Published | None
    compared: bool
    extra: list[Grid] = field(default_factory=list)


def subject_report(
    collected: Collected,
    subject: str,
    published: Published | None,
    *,
    convention: str = "slime",
    background: bool = True,
    expected_shots: Sequence[int] = (0, 1, 10),
    expected_seeds: Sequence[int] = (0, 1, 2),
    defaults: Defaults | None = None,
    show_variants: bool = False,
    bootstrap: ImageBootstrap | None = None,
    across_shots: bool = False,
) -> SubjectReport:
    """The report of one subject.

    Args:
        expected_shots: 0 is expected of the methods alone that can do without support images.
        defaults: default settings of each family (see `collect.default_settings`); where they are known and have
            results, the table is theirs, and the other settings are hidden unless `show_variants`.
        bootstrap: over the test images of `collected`; without it there are no intervals and no pairs.
        across_shots: whether rows of different shots are pairs, too.
    """
    results = [result for result in collected.results if result.subject == subject]
    like = {result.series: result for result in results}
    every = aggregate(results, convention, background, expected_seeds, defaults, bootstrap)
    rows = every if show_variants else without_variants(every)
    names = {row.data for row in every}
    classes = list(dict.fromkeys(name for row in every for name in row.classes))
    columns = column_order(published, classes)
    return SubjectReport(
        subject=subject,
        columns=columns,
        rows=rows,
        hidden=[row for row in every if row not in rows],
        published=published,
        missing=missing(
            rows, expected_shots, expected_seeds, lambda row, *trial: collected.state(like[row.series], *trial)
        ),
        # A failed trial leaves no subject behind: its data set's folder is all there is to go by.
        failed=[trial for trial in collected.failed if trial.data in names or subject in trial.data.split("_")],
        invalid=collected.invalid,
        convention=convention,
        background_in_average=background,
        expected_shots=possible_shots(rows, expected_shots),
        expected_seeds=tuple(expected_seeds),
        pairs=statistics.row_pairs(rows, results, bootstrap, across_shots) if bootstrap is not None else [],
    )


def sections(report: SubjectReport) -> list[Section]:
    """One table per preset and data set of our rows."""
    return [_section(report, *key) for key in dict.fromkeys((row.preset, row.data) for row in report.rows)]


def section_grid(section: Section) -> Grid:
    """The section as cells."""
    ours = [row for row in section.rows if not row.published]
    # Columns that appear only where rows of one method differ in them; the caption names those of each method.
    methods = {row.method for row in ours}
    optional = [
        name
        for name in ("backbone", "protocol")
        if len({(row.method, getattr(row, name)) for row in ours}) > len(methods)
    ]
    optional += ["variant"] if any(row.variant for row in ours) else []
    compared = ["avg-paper"] if section.compared else []
    header = ["method", "shots", *optional, "n", *section.columns, "avg", *compared, "source"]
    return Grid(section.title, header, [_line(section, row, optional) for row in section.rows], section.caption)


def _line(section: Section, row: Row, optional: Sequence[str]) -> Line:
    stats, form = stats_of(row, section.columns), "" if row.published else ".1f"
    cells = [row.label + ("*" if row.supervised else ""), DASH if row.shots is None else str(row.shots)]
    cells += [getattr(row, name) or DASH for name in optional]
    cells += [DASH if row.n is None else str(row.n), *(stat_text(each, form) for each in stats.values())]
    exact = {name: each.mean for name, each in stats.items()}
    if section.compared:
        gap = difference(row, section.published)
        exact["avg-paper"] = value = gap["average"] if gap else None
        cells.append(DASH if value is None else f"{value:+.1f}")
    source = f"{row.source}{', other data' if row.other_data else ''}" if row.published else "ours"
    return Line([*cells, source], not row.published, {} if row.published else exact)


def _section(report: SubjectReport, preset: str, data: str) -> Section:
    ours = [row for row in report.rows if (row.preset, row.data) == (preset, data)]
    theirs = published_rows(report.published, preset == PAPER_PRESET) if report.published else []
    where = f"(preset {preset}, data {data})"
    pairs = [pair for pair in report.pairs if (pair.a.preset, pair.a.data) == (preset, data)]
    title = f"{report.subject}: {PERCENT} % intervals of the IoU in percent over test images {where}"
    extra = [
        statistics.interval_grid(title, [(row_name(row, ours), row) for row in ours], report.columns),
        statistics.pairs_grid(f"{report.subject}: paired differences of the average IoU {where}", pairs, ours),
    ]
    return Section(
        title=f"{report.subject}: IoU in percent {where}", columns=report.columns, rows=_side_by_side([*theirs, *ours]),
        caption=_caption(report, ours, preset, data), published=report.published,
        compared=any(comparison(row, report.published) for row in ours),
        extra=[grid for grid in extra if grid is not None],
    )  # fmt: skip


def _side_by_side(rows: Sequence[Row]) -> list[Row]:
    """By shots, those of whole annotated sets first, as in the paper; among equal shots by method, each published row
    before those of the bench's method that runs it."""
    groups: dict[int, dict[str, list[Row]]] = {}
    for row in rows:
        shots = -1 if row.shots is None or (row.supervised and not row.published) else row.shots
        method = (row.key or row.label) if row.published else row.method
        groups.setdefault(shots, {}).setdefault(method, []).append(row)
    return [row for shots in sorted(groups) for same in groups[shots].values() for row in same]


def _caption(report: SubjectReport, ours: Sequence[Row], preset: str, data: str) -> list[str]:
    backbones, protocols = (listed(sorted(getattr(row, name) for row in ours)) for name in ("backbone", "protocol"))
    lines = [
        f"preset {preset}; data {data}; backbone {backbones}; protocol {protocols}",
        *table.prepared_lines(row.prepared for row in ours),
        *_stated_lines(ours),
        *table.metric_lines(report.convention, report.background_in_average, [row.n for row in ours]),
        *statistics.uncertainty_lines((row_name(row, ours), row.n or 0, row.interval) for row in ours),
    ]
    if report.published:
        theirs = table.published_line(report.published, preset, report.convention, report.background_in_average)
        lines.append(f"{theirs}; * = trained on a whole annotated set")
        lines += [f"rows of the paper {line}" for line in report.published.runs(row.method for row in ours)]
        lines += statistics.welch_lines(ours, report.published)
    lines += [f"{row.method} {row.variant} {row.shots}-shot: {note}" for row in ours for note in row.notes]
    hidden = len({row.series for row in report.hidden if (row.preset, row.data) == (preset, data)})
    if hidden:
        lines.append(
            f"{hidden} series with other settings not shown; --variants shows them, --ablation <name> an ablation"
        )
    lines.append(_missing_line(report, ours, preset, data))
    lines += [f"failed: {trial} ({trial.summary})" for trial in report.failed if trial.data == data]
    if report.invalid:
        lines.append(f"{len(report.invalid)} result file(s) are not valid and not used: see trials.json")
    return lines


def _stated_lines(rows: Sequence[Row]) -> list[str]:
    """What rows say of their settings, one line for all rows that say the same."""
    named = [row for row in rows if row.stated]
    differ = [key for key in ("backbone", "protocol") if len({getattr(row, key) for row in named}) > 1]

    def name(row: Row) -> str:
        about = ", ".join([*(getattr(row, key) for key in differ), *([row.variant] if row.variant else [])])
        return row.label + (f" ({about})" if about else "")

    def said(row: Row) -> str:
        return "; ".join(f"{key} {text}" for key, text in row.stated.items())

    return [f"{listed(names)}: {text}" for text, names in grouped((said(row), name(row)) for row in named).items()]


def _missing_line(report: SubjectReport, ours: Sequence[Row], preset: str, data: str) -> str:
    absent = grouped(
        (
            f"{one.method} {one.protocol}{' ' + one.variant if one.variant else ''} {one.shots}-shot",
            f"{one.seed} ({RUNNING})" if one.state == RUNNING else str(one.seed),
        )
        for one in report.missing
        if (one.preset, one.data) == (preset, data)
    )
    shots, seeds = possible_shots(ours, report.expected_shots), report.expected_seeds
    expected = (f"of shots {listed(shots)}; " if shots else "of ") + f"seeds {listed(seeds)}"
    if not absent:
        return f"missing trials: none ({expected})"
    parts = [f"{name} seed {', '.join(lacking)}" for name, lacking in absent.items()]
    return f"MISSING TRIALS ({expected}): {'; '.join(parts)}"


# --------------------------------------------------------------------------------------------------------------- files


def write_tables(report: SubjectReport, folder: Path, root: Path, pictures: Sequence[str] = ()) -> None:
    """Writes table.{md,csv,tex,json}, pairs.{csv,json} and trials.json into `folder`.

    Args:
        root: what paths in the files are relative to. pictures: names of files beside the Markdown file.
    """
    blocks: list[str | Grid] = [f"# {report.subject}"]
    for section in sections(report):
        blocks += [section_grid(section), *section.extra]
    if pictures:
        blocks += ["## Test images", "\n\n".join(f"![{name}]({name})" for name in pictures)]
    table.write_report(folder / "table", blocks, *_all_rows(report))
    about: dict[str, Any] = {"subject": report.subject, "convention": report.convention}
    about |= {"background_in_average": report.background_in_average}
    contents = statistics.pair_files(report.pairs, report.rows, report.columns, about)
    contents["trials.json"] = table.json_of(
        {
            "expected": {"shots": list(report.expected_shots), "seeds": list(report.expected_seeds)},
            "missing": report.missing,
            "failed": [{**asdict(trial), "folder": relative(trial.folder, root)} for trial in report.failed],
            "invalid": [{"path": relative(path, root), "reason": reason} for path, reason in report.invalid],
        }
    )
    for name, text in contents.items():
        write_atomic(folder / name, text.encode())


def _all_rows(report: SubjectReport) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Our rows, hidden ones included, then the published ones once: as lines of the CSV file, each with what the
    captions say, and as entries of the JSON file; in percent, with full precision."""
    ours = [*report.rows, *report.hidden]
    comparable = any(row.preset == PAPER_PRESET for row in ours)
    lines, entries = [], []
    for row in [*ours, *(published_rows(report.published, comparable) if report.published else [])]:
        gap, test = difference(row, report.published), statistics.row_welch(row, report.published)
        entries.append({**asdict(row), "unit": UNIT, "difference": gap, "welch": test})
        texts = {
            "prepared": choices(row.prepared), "stated": "; ".join(f"{key} {text}" for key, text in row.stated.items()),
            "unit": UNIT, "seeds": table.spaced(row.seeds), "missing_seeds": table.spaced(row.missing_seeds),
            "notes": "; ".join(row.notes),
        }  # fmt: skip
        line: dict[str, Any] = {name: texts.get(name, getattr(row, name, None)) for name in _FACTS}
        line |= table.stat_cells(stats_of(row, report.columns, "average"))
        line["average_minus_published"] = gap and gap["average"]
        line |= {"welch_t": test and test["statistic"], "welch_p": test and test["p"]}
        lines.append(line | statistics.interval_csv(row.interval, report.columns))
    return lines, entries


_FACTS = (
    *("method", "backbone", "data", "subject", "shots", "preset", "protocol", "variant", "convention", "prepared"),
    *("stated", "background_in_average", "published", "other_data", "supervised", "source", "unit", "seeds", "n"),
    *("missing_seeds", "default", "notes"),
)
"""The columns of the CSV file that are no numbers of a class."""

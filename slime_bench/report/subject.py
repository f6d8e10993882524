"""The main table of one subject: its rows and captions, and its files, all from the same rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slime_bench.metrics.bootstrap import PERCENT
from slime_bench.report.collect import Collected, Defaults, FailedTrial, relative
from slime_bench.report.published import Published, PublishedRow
from slime_bench.report.rows import (
    NOTHING,
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
    with_intervals,
    without_variants,
)
from slime_bench.report.statistics import ImageBootstrap, Pair, row_pairs, row_welch
from slime_bench.report.table import (
    DASH,
    UNIT,
    Grid,
    Line,
    csv_of,
    json_of,
    latex,
    listed,
    metric_lines,
    numbers,
    prepared_lines,
    published_line,
    stat_cells,
    stat_text,
    write_files,
)
from slime_bench.report.table import markdown as grid_markdown
from slime_bench.report.uncertainty import (
    interval_csv,
    interval_grid,
    pair_files,
    pairs_grid,
    uncertainty_lines,
    welch_lines,
)


@dataclass(frozen=True)
class SubjectReport:
    """Everything the tables of one subject say.

    Attributes:
        subject: car, horse, face, ...
        columns: class names in the paper's order.
        rows: our rows, sorted by data, preset, shots and method.
        hidden: our rows of other settings than the default, which the tables leave out and the CSV and JSON files hold.
        published: the published numbers, if there are any for the subject.
        missing: expected trials without a valid result; `failed` those that ended in an error.
        invalid: files that are no valid result, with the reason.
        pairs: paired differences between the rows of each preset and data set.
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
    """One printed table: our rows of one preset and data set, beside the published ones."""

    title: str
    columns: list[str]
    rows: list[Row]
    caption: list[str]
    comparisons: dict[str, PublishedRow]
    """Series of our row -> the published row it is compared with."""
    extra: list[Grid] = field(default_factory=list)
    """Intervals and pairs, each where there are some."""

    @property
    def compared(self) -> bool:
        return bool(self.comparisons)


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
) -> SubjectReport:
    """The report of one subject.

    Args:
        expected_shots: 0 is expected of the methods alone that can do without support images.
        defaults: default settings of each family (see `collect.default_settings`); where they are known and have
            results, the table is theirs, and the other settings are hidden unless `show_variants`.
        bootstrap: over the test images of `collected`; without it there are no intervals and no pairs.

    Raises:
        ResultError: see `aggregate`.
    """
    collected = collected.of_report(None)
    results = [result for result in collected.results if result.subject == subject]
    every = aggregate(results, convention, background, expected_seeds, defaults)
    if bootstrap is not None:
        every = with_intervals(every, results, bootstrap)
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
        missing=missing(rows, expected_shots, expected_seeds),
        # A failed trial leaves no subject behind: its data set's folder is all there is to go by.
        failed=[trial for trial in collected.failed if trial.data in names or subject in trial.data.split("_")],
        invalid=collected.invalid,
        convention=convention,
        background_in_average=background,
        expected_shots=possible_shots(rows, expected_shots),
        expected_seeds=tuple(expected_seeds),
        pairs=row_pairs(rows, results, bootstrap) if bootstrap is not None else [],
    )


def sections(report: SubjectReport) -> list[Section]:
    """One table per preset and data set of our rows, published rows first within each number of shots."""
    keys = list(dict.fromkeys((row.preset, row.data) for row in report.rows))
    return [_section(report, preset, data) for preset, data in keys]


def all_rows(report: SubjectReport) -> list[Row]:
    """Our rows, hidden ones included, then the published ones once."""
    ours = [*report.rows, *report.hidden]
    if report.published is None:
        return ours
    comparable = any(row.preset == PAPER_PRESET for row in ours)
    return [*ours, *published_rows(report.published, comparable)]


def section_grid(section: Section) -> Grid:
    """The section as cells."""
    lines = [Line(_cells(section, row), ours=not row.published) for row in section.rows]
    return Grid(section.title, _header(section), lines, section.caption)


def markdown(report: SubjectReport, pictures: Sequence[str] = ()) -> str:
    """All sections as Markdown, each with its caption; `pictures` are file names beside the Markdown file."""
    parts = [f"# {report.subject}"]
    for section in sections(report):
        for grid in (section_grid(section), *section.extra):
            parts += grid_markdown(grid)
    if pictures:
        parts += ["## Test images", "\n\n".join(f"![{name}]({name})" for name in pictures)]
    return "\n\n".join(parts) + "\n"


def csv_text(report: SubjectReport) -> str:
    """All rows as CSV with full precision; every row says what the captions say."""
    names = ["method", "backbone", "data", "subject", "shots", "preset", "protocol", "variant", "convention"]
    names += ["prepared", "stated", "background_in_average", "published", "other_data", "supervised", "source"]
    names += [
        "unit",
        "seeds",
        "n",
        "missing_seeds",
        "default",
        "notes",
        *stat_cells(report.columns, {}, average=NOTHING),
    ]
    names += ["average_minus_published"]
    names += ["welch_t", "welch_p", *interval_csv(None, report.columns)]
    lines = []
    for row in all_rows(report):
        line: dict[str, Any] = {name: getattr(row, name) for name in names if hasattr(row, name)}
        line |= {
            "unit": UNIT,
            "seeds": " ".join(map(str, row.seeds)),
            "missing_seeds": " ".join(map(str, row.missing_seeds)),
            "notes": "; ".join(row.notes),
            "prepared": choices(row.prepared),
            "stated": "; ".join(f"{name} {text}" for name, text in row.stated.items()),
            **stat_cells(report.columns, row.per_class, average=row.average),
            **interval_csv(row.interval, report.columns),
        }
        gap, test = difference(row, comparison(row, report.published)), row_welch(row, report.published)
        line |= {"average_minus_published": gap["average"]} if gap else {}
        line |= {"welch_t": test.statistic, "welch_p": test.p} if test else {}
        lines.append(line)
    return csv_of(lines, names)


def table_json(report: SubjectReport) -> str:
    """All rows as a JSON list; means and deviations in percent."""
    rows = []
    for row in all_rows(report):
        test = row_welch(row, report.published)
        gap = difference(row, comparison(row, report.published))
        rows.append({**asdict(row), "unit": UNIT, "difference": gap, "welch": asdict(test) if test else None})
    return json_of(rows)


def trials_json(report: SubjectReport, root: Path) -> str:
    """What was expected and is missing, what failed and what could not be read; paths relative to `root`."""
    return json_of(
        {
            "expected": {"shots": list(report.expected_shots), "seeds": list(report.expected_seeds)},
            "missing": [asdict(trial) for trial in report.missing],
            "failed": [{**asdict(trial), "folder": relative(trial.folder, root)} for trial in report.failed],
            "invalid": [{"path": relative(path, root), "reason": reason} for path, reason in report.invalid],
        }
    )


def write_tables(report: SubjectReport, folder: Path, root: Path, pictures: Sequence[str] = ()) -> list[Path]:
    """Writes table.{md,csv,tex,json}, pairs.{csv,json} and trials.json into `folder`.

    Raises:
        StorageError: a file cannot be written.
    """
    about: dict[str, Any] = {"subject": report.subject, "convention": report.convention}
    about |= {"background_in_average": report.background_in_average}
    contents = {
        "table.md": markdown(report, pictures),
        "table.csv": csv_text(report),
        "table.tex": latex(grid for each in sections(report) for grid in (section_grid(each), *each.extra)),
        **pair_files(report.pairs, report.rows, report.columns, about),
        "trials.json": trials_json(report, root),
        "table.json": table_json(report),
    }
    return write_files({folder / name: text for name, text in contents.items()})


def _section(report: SubjectReport, preset: str, data: str) -> Section:
    ours = [row for row in report.rows if (row.preset, row.data) == (preset, data)]
    comparisons = {row.series: found for row in ours if (found := comparison(row, report.published)) is not None}
    theirs = published_rows(report.published, preset == PAPER_PRESET) if report.published else []
    # Fully supervised rows have no number of shots and come first, as in the paper; the sort is stable.
    rows = sorted([*theirs, *ours], key=lambda row: -1 if row.shots is None else row.shots)
    where = f"(preset {preset}, data {data})"
    pairs = [pair for pair in report.pairs if (pair.a.preset, pair.a.data) == (preset, data)]
    title = f"{report.subject}: {PERCENT} % intervals of the IoU in percent over test images {where}"
    extra = [
        interval_grid(title, ours, report.columns),
        pairs_grid(f"{report.subject}: paired differences of the average IoU {where}", pairs, ours),
    ]
    return Section(
        title=f"{report.subject}: IoU in percent {where}",
        columns=report.columns,
        rows=rows,
        caption=_caption(report, ours, preset, data),
        comparisons=comparisons,
        extra=[grid for grid in extra if grid is not None],
    )


def _caption(report: SubjectReport, ours: Sequence[Row], preset: str, data: str) -> list[str]:
    backbones, protocols = (listed(sorted(getattr(row, name) for row in ours)) for name in ("backbone", "protocol"))
    lines = [
        f"preset {preset}; data {data}; backbone {backbones}; protocol {protocols}",
        *prepared_lines(row.prepared for row in ours),
        *_stated_lines(ours),
        *metric_lines(report.convention, report.background_in_average, [row.n for row in ours]),
        *uncertainty_lines((row_name(row, ours), row.n or 0, row.interval) for row in ours),
    ]
    if report.published:
        note = "* = trained on a whole annotated set"
        lines.append(f"{published_line(report.published, preset)}; {note}")
        lines += welch_lines(ours, report.published)
    lines += [f"{row.method} {row.variant} {row.shots}-shot: {note}" for row in ours for note in row.notes]
    hidden = len({row.series for row in report.hidden if (row.preset, row.data) == (preset, data)})
    if hidden:
        lines.append(
            f"{hidden} series with other settings not shown; --variants shows them, --ablation <name> an ablation"
        )
    lines.append(_missing_line(report, preset, data))
    here = [trial for trial in report.failed if trial.data == data]
    lines += [
        f"failed: {trial.method} on {trial.data}, {trial.shots}-shot, seed {trial.seed} ({trial.summary})"
        for trial in here
    ]
    if report.invalid:
        lines.append(f"{len(report.invalid)} result file(s) are not valid and not used: see trials.json")
    return lines


def _stated_lines(rows: Iterable[Row]) -> list[str]:
    """What rows say of their settings, one line for all rows that say the same."""
    grouped: dict[tuple[tuple[str, str], ...], list[str]] = {}
    named = [row for row in rows if row.stated]
    differ = [key for key in ("backbone", "protocol") if len({getattr(row, key) for row in named}) > 1]
    for row in named:
        about = ", ".join([*(getattr(row, key) for key in differ), *([row.variant] if row.variant else [])])
        name = row.label + (f" ({about})" if about else "")
        grouped.setdefault(tuple(row.stated.items()), []).append(name)
    heads = {"crf": "CRF", "layers": "layers", "prompts": "prompts"}
    return [
        f"{listed(names)}: {'; '.join(f'{heads.get(key, key)} {text}' for key, text in said)}"
        for said, names in grouped.items()
    ]


def _missing_line(report: SubjectReport, preset: str, data: str) -> str:
    grouped: dict[tuple[str, str, str, int], list[int]] = {}
    for trial in report.missing:
        if (trial.preset, trial.data) == (preset, data):
            key = (trial.method, trial.protocol, trial.variant, trial.shots)
            grouped.setdefault(key, []).append(trial.seed)
    here = [row for row in report.rows if (row.preset, row.data) == (preset, data)]
    shots = numbers(possible_shots(here, report.expected_shots))
    seeds = numbers(report.expected_seeds)
    if not grouped:
        return f"missing trials: none (of shots {shots}; seeds {seeds})"
    parts = [
        f"{method} {protocol}{' ' + variant if variant else ''} {number}-shot seed {', '.join(map(str, missed))}"
        for (method, protocol, variant, number), missed in grouped.items()
    ]
    return f"MISSING TRIALS (of shots {shots}; seeds {seeds}): {'; '.join(parts)}"


def _optional(section: Section) -> list[str]:
    """Columns that appear only where our rows differ in them."""
    ours = [row for row in section.rows if not row.published]
    names = [name for name in ("backbone", "protocol") if len({getattr(row, name) for row in ours}) > 1]
    return names + (["variant"] if any(row.variant for row in ours) else [])


def _header(section: Section) -> list[str]:
    middle = [*section.columns, "avg"] + (["avg-paper"] if section.compared else [])
    return ["method", "shots", *_optional(section), "n", *middle, "source"]


def _cells(section: Section, row: Row) -> list[str]:
    name = row.label + ("*" if row.supervised else "")
    optional = [str(getattr(row, key)) or DASH for key in _optional(section)]
    stats = [row.per_class.get(column, NOTHING) for column in section.columns]
    cells = [name, DASH if row.shots is None else str(row.shots), *optional]
    cells += [
        DASH if row.n is None else str(row.n),
        *(stat_text(stat, row.published) for stat in [*stats, row.average]),
    ]
    if section.compared:
        gap = difference(row, section.comparisons.get(row.series))
        cells.append(DASH if gap is None or gap["average"] is None else f"{gap['average']:+.1f}")
    source = f"{row.source}{', other data' if row.other_data else ''}" if row.published else "ours"
    return [*cells, source]

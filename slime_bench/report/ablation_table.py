"""The table of an ablation in the paper's form: console, Markdown, CSV and JSON, all with the same facts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from slime_bench.metrics.bootstrap import PERCENT
from slime_bench.report.ablation import AblationReport, Measured, shown
from slime_bench.report.published import Stat
from slime_bench.report.rows import NOTHING, PAPER_PRESET, column_order
from slime_bench.report.statistics import Interval
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
    difference_cells,
    interval_cells,
    interval_csv,
    interval_lines,
    paired_cells,
    paired_lines,
    uncertainty_lines,
)


def ablation_grid(report: AblationReport) -> Grid:
    """The settings in the order of the grid, each with the published row of the same setting under it."""
    columns = column_order(report.published, report.classes)
    lines = []
    for each in shown(report):
        lines.append(Line(_ours(each, columns)))
        if each.published is not None:
            lines.append(Line(_theirs(report, each, columns), ours=False))
    return Grid(_title(report), ["setting", "n", *columns, "avg", "Δ", "source"], lines, _caption(report))


def interval_grid(report: AblationReport) -> Grid | None:
    """The intervals of our settings over test images, and of their differences to the default; None without any."""
    columns = column_order(report.published, report.classes)
    lines, found = [], _intervals(report)
    paired = [each.paired for each in shown(report) if each.paired is not None]
    for each in shown(report):
        if each.row is None or each.row.interval is None or each.row.interval.missing:
            continue
        cells = [_label(each), str(each.row.n), *interval_cells(each.row.interval, columns)]
        lines.append(Line([*cells, *(paired_cells(each.paired)[2:] if each.paired else [DASH] * 4)]))
    if not lines:
        return None
    caption = [*interval_lines(found)]
    if paired:
        caption.append("Δ: as in the table above, over the seeds that the setting and the default both have")
        caption += paired_lines(paired[0], "settings", len(paired))
    header = ["setting", "n", "images", *columns, "avg", "Δ", "seeds agree", f"Δ, {PERCENT} % interval", "p"]
    where = f"preset {report.facts['preset']}, data {report.facts['data']}"
    title = f"{report.subject}: ablation {report.name}, {PERCENT} % intervals in percent over test images ({where})"
    return Grid(title, header, lines, caption)


def csv_text(report: AblationReport) -> str:
    """One line for each of our settings and for each published one, with full precision."""
    columns = column_order(report.published, report.classes)
    shared: dict[str, Any] = {**report.facts, "subject": report.subject, "ablation": report.name}
    shared |= {"convention": report.convention, "background_in_average": report.background, "unit": UNIT}
    names = ["ablation", "setting", "default", "published", "source", "other_data", "n", "seeds", "missing_seeds"]
    names += [name for name in shared if name not in names]
    names += [*stat_cells(columns, {}, average=NOTHING, difference=NOTHING), *interval_csv(None, columns)]
    names += [f"difference_{part}" for part in ("low", "high", "p", "agree", "seeds")] + ["unpaired"]
    lines = []
    for each in shown(report):
        row, paired = each.row, each.paired
        own: dict[str, Any] = {
            "setting": each.setting.label,
            "default": each.setting.default,
            "published": False,
            "source": "ours",
            "n": row.n if row else 0,
            "seeds": " ".join(map(str, row.seeds)) if row else "",
            "missing_seeds": " ".join(map(str, each.missing)),
            "unpaired": "" if paired else each.unpaired,
            **interval_csv(row.interval if row else None, columns),
        }
        if paired is not None:
            own |= {f"difference_{part}": value for part, value in difference_cells(paired.average).items()}
            own["difference_seeds"] = " ".join(map(str, paired.seeds))
        average = row.average if row else NOTHING
        stats = stat_cells(columns, row.per_class if row else {}, average=average, difference=each.difference)
        lines.append({**shared, **own, **stats})
        if (theirs := each.published) is not None:
            # Not our preset, backbone or protocol: the paper's.
            about = {name: shared[name] for name in ("subject", "ablation", "unit")} | {"shots": theirs.shots}
            about |= {"setting": theirs.setting or "default", "default": not theirs.setting, "published": True}
            about |= {"n": theirs.n, "source": theirs.source, "other_data": _other_data(report)}
            gap = Stat(each.published_difference, None)
            lines.append({**about, **stat_cells(columns, theirs.per_class, average=theirs.average, difference=gap)})
    return csv_of(lines, names)


def json_text(report: AblationReport) -> str:
    """The whole report as one JSON object; means, deviations and differences in percent and percentage points."""
    return json_of(
        {
            "ablation": report.name,
            "subject": report.subject,
            **report.facts,
            "convention": report.convention,
            "background_in_average": report.background,
            "unit": UNIT,
            "columns": column_order(report.published, report.classes),
            "settings": [_entry(report, each) for each in shown(report)],
            "provenance": asdict(report.provenance),
            "left_out": report.left_out,
            "command": report.portable_command,
            "caption": _caption(report),
        }
    )


def write_ablation(report: AblationReport, folder: Path) -> list[Path]:
    """Writes `<data>-ablation-<name>.{md,csv,json,tex}` into `folder`.

    Raises:
        StorageError: a file cannot be written.
    """
    grids = [grid for grid in (ablation_grid(report), interval_grid(report)) if grid is not None]
    blocks = [
        f"# {report.subject}: ablation {report.name}",
        *(block for grid in grids for block in grid_markdown(grid)),
    ]
    contents = {"md": "\n\n".join(blocks) + "\n", "csv": csv_text(report), "json": json_text(report)}
    contents["tex"] = latex(grids)
    paths = {kind: folder / f"{report.facts['data']}-ablation-{report.name}.{kind}" for kind in contents}
    return write_files({paths[kind]: text for kind, text in contents.items()})


def _other_data(report: AblationReport) -> bool:
    return report.facts["preset"] != PAPER_PRESET


def _title(report: AblationReport) -> str:
    where = f"preset {report.facts['preset']}, data {report.facts['data']}"
    about = f" ({report.table.title}, {report.table.source})" if report.table else ""
    return f"{report.subject}: ablation {report.name}{about}, IoU in percent ({where})"


def _label(each: Measured) -> str:
    return f"{each.setting.label}{' (default)' if each.setting.default else ''}"


def _intervals(report: AblationReport) -> list[tuple[str, Interval]]:
    rows = [(_label(each), each.row) for each in shown(report) if each.row is not None]
    return [(label, row.interval) for label, row in rows if row.interval is not None]


def _uncertainty(report: AblationReport) -> list[str]:
    """What the mean±deviation does not show, and where the rest stands."""
    rows = [(_label(each), each.row) for each in shown(report) if each.row is not None]
    lines = uncertainty_lines((label, row.n or 0, row.interval) for label, row in rows)
    reasons: dict[str, list[str]] = {}
    for each in shown(report):
        if each.unpaired and each.row is not None and each.row.interval is not None and not each.row.interval.missing:
            reasons.setdefault(each.unpaired, []).append(_label(each))
    return lines + [f"not paired with the default: {listed(labels)}: {reason}" for reason, labels in reasons.items()]


def _ours(each: Measured, columns: list[str]) -> list[str]:
    setting = _label(each)
    if each.row is None:
        return [setting, "0", *[DASH] * (len(columns) + 2), "ours"]
    stats = [each.row.per_class.get(column, NOTHING) for column in columns]
    return [
        setting,
        str(each.row.n),
        *map(stat_text, [*stats, each.row.average]),
        DASH if each.setting.default else stat_text(each.difference, sign="+"),
        "ours",
    ]


def _theirs(report: AblationReport, each: Measured, columns: list[str]) -> list[str]:
    row = each.published
    assert row is not None
    stats = [row.per_class.get(column, NOTHING) for column in columns]
    default = not row.setting
    return [
        f"published: {row.setting or 'default'}",
        DASH if row.n is None else str(row.n),
        *(stat_text(stat, as_stated=True) for stat in [*stats, row.average]),
        DASH if default else stat_text(Stat(each.published_difference, None), sign="+"),
        f"{row.source}{', other data' if _other_data(report) else ''}",
    ]


def _caption(report: AblationReport) -> list[str]:
    facts = report.facts
    lines = [
        f"preset {facts['preset']}; data {facts['data']}; backbone {facts['backbone']}; "
        f"protocol {facts['protocol']}; {facts['method']}, {facts['shots']}-shot",
        *prepared_lines([report.prepared]),
        *metric_lines(report.convention, report.background, [each.row.n for each in shown(report) if each.row]),
        *_uncertainty(report),
        "Δ: average minus the default setting's, in percentage points; ours: mean±sample standard deviation of the "
        "differences seed by seed; published: difference of the two stated averages",
    ]
    if any(each.published for each in report.measured):
        assert report.published is not None
        lines.append(published_line(report.published, facts["preset"]))
    elif report.table is not None:
        lines.append(f"published rows: none; the paper's {report.table.source} has {report.table.shots} shots")
    else:
        lines.append(f"published rows: none; the paper has no such ablation for the subject {report.subject}")
    lines += [
        f"{each.setting.label}: {note}" for each in shown(report) if each.row is not None for note in each.row.notes
    ]
    lines += _gaps(report)
    lines.append(report.provenance.line())
    if report.left_out:
        lines.append(
            f"{report.left_out} result(s) of these trials on another device, with other weights or data, are left out"
        )
    return lines


def _gaps(report: AblationReport) -> list[str]:
    lines = []
    asked = [each for each in report.measured if each.setting.in_grid]
    gaps = [f"{each.setting.label} seed {numbers(each.missing)}" for each in asked if each.missing]
    if gaps:
        lines.append(f"MISSING TRIALS: {'; '.join(gaps)}; to run them: {report.command}")
    else:
        total = sum(len(each.setting.trials) for each in asked)
        lines.append(f"missing trials: none of {total}; ran by: {report.portable_command}")
    lines += [
        f"failed: {each.setting.label} seed {seed} ({trial.summary})"
        for each in asked
        for seed, trial in each.failed.items()
    ]
    (default,) = [each for each in report.measured if each.setting.default]
    if not default.setting.in_grid and default.missing:
        lines.append(
            f"the default setting ({default.setting.label}) is not in the grid and lacks seed "
            f"{numbers(default.missing)}; to run it: {report.default_command}"
        )
    return lines


def _entry(report: AblationReport, each: Measured) -> dict[str, Any]:
    row, theirs = each.row, each.published
    return {
        "setting": each.setting.label,
        "values": each.setting.shown,
        "default": each.setting.default,
        "in_grid": each.setting.in_grid,
        "n": row.n if row else 0,
        "seeds": list(row.seeds) if row else [],
        "missing_seeds": each.missing,
        "failed": {str(seed): trial.summary for seed, trial in each.failed.items()},
        "per_class": {name: asdict(stat) for name, stat in row.per_class.items()} if row else {},
        "average": asdict(row.average if row else NOTHING),
        "difference": asdict(each.difference),
        "interval": asdict(row.interval) if row and row.interval else None,
        "paired": asdict(each.paired) if each.paired else None,
        "unpaired": each.unpaired,
        "published": None
        if theirs is None
        else {
            "setting": theirs.setting or "default",
            "source": theirs.source,
            "other_data": _other_data(report),
            "n": theirs.n,
            "per_class": {name: asdict(stat) for name, stat in theirs.per_class.items()},
            "average": asdict(theirs.average),
            "difference": each.published_difference,
        },
    }

"""The table of an ablation in the paper's form: console, Markdown, CSV and JSON, all with the same facts."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slime_bench.report.ablation import AblationReport, Measured
from slime_bench.report.aggregate import PAPER_PRESET
from slime_bench.report.grid import DASH, Grid, Line, numbers, stat_text
from slime_bench.report.grid import markdown as grid_markdown
from slime_bench.report.interval_tables import (
    SHOWN_ELSEWHERE,
    claim_lines,
    flat,
    interval_cells,
    interval_lines,
    missing_lines,
    paired_cells,
    paired_lines,
)
from slime_bench.report.intervals import Interval
from slime_bench.report.latex import latex
from slime_bench.report.method_facts import listed
from slime_bench.report.published import Stat
from slime_bench.report.statistics import PERCENT
from slime_bench.report.tables import UNIT, column_order, metric_lines, prepared_lines, published_line
from slime_bench.storage import write_atomic

_NONE = Stat(None, None)


def ablation_grid(report: AblationReport) -> Grid:
    """The settings in the order of the grid, each with the published row of the same setting under it."""
    columns = column_order(report.published, report.classes)
    lines = []
    for each in shown(report):
        lines.append(Line(_ours(each, columns), ours=True))
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
        lines.append(Line([*cells, *(paired_cells(each.paired)[2:] if each.paired else [DASH] * 4)], ours=True))
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
    shared: dict[str, Any] = {
        **report.facts,
        "subject": report.subject,
        "ablation": report.name,
        "convention": report.convention,
    }
    shared |= {"background_in_average": report.background, "unit": UNIT}
    names = ["ablation", "setting", "default", "published", "source", "other_data", "n", "seeds", "missing_seeds"]
    names += [name for name in shared if name not in names]
    names += [f"{column}_{part}" for column in [*columns, "average", "difference"] for part in ("mean", "std")]
    names += [
        *flat(None, columns),
        "difference_low",
        "difference_high",
        "difference_p",
        "difference_agree",
        "difference_seeds",
        "unpaired",
    ]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    for each in shown(report):
        own: dict[str, Any] = {
            "setting": each.setting.label,
            "default": each.setting.default,
            "published": False,
            "source": "ours",
            "n": each.row.n if each.row else 0,
            "seeds": " ".join(map(str, each.row.seeds)) if each.row else "",
            "missing_seeds": " ".join(map(str, each.missing)),
        }
        per_class = each.row.per_class if each.row else {}
        average = each.row.average if each.row else _NONE
        spread = {**flat(each.row.interval if each.row else None, columns), **_paired_cells(each)}
        writer.writerow({**shared, **own, **_stats(columns, per_class, average, each.difference), **spread})
        if each.published is not None:
            row = each.published
            theirs = {"setting": row.setting or "default", "default": not row.setting, "published": True, "n": row.n}
            theirs |= {"source": row.source, "other_data": _other_data(report)}
            gap = Stat(each.published_difference, None)
            # Not our preset, backbone or protocol: the paper's.
            about = {"subject": report.subject, "ablation": report.name, "shots": row.shots, "unit": UNIT}
            writer.writerow({**about, **theirs, **_stats(columns, row.per_class, row.average, gap)})
    return buffer.getvalue()


def json_text(report: AblationReport) -> str:
    """The whole report as one JSON object; means, deviations and differences in percent and percentage points."""
    content = {
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
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


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
    for kind, text in contents.items():
        write_atomic(paths[kind], text.encode())
    return list(paths.values())


def shown(report: AblationReport) -> list[Measured]:
    """The settings of the grid, and the default where it has results."""
    return [each for each in report.measured if each.setting.in_grid or each.row is not None]


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
    found = _intervals(report)
    known = {label: interval.images for label, interval in found if not interval.missing}
    rows = [(_label(each), each.row.n or 0) for each in shown(report) if each.row is not None]
    lines = claim_lines((label, seeds, known.get(label)) for label, seeds in rows)
    lines += [SHOWN_ELSEWHERE] if known else []
    lines += missing_lines(found)
    reasons: dict[str, list[str]] = {}
    for each in shown(report):
        if each.unpaired and each.row is not None and each.row.interval is not None and not each.row.interval.missing:
            reasons.setdefault(each.unpaired, []).append(_label(each))
    return lines + [f"not paired with the default: {listed(labels)}: {reason}" for reason, labels in reasons.items()]


def _paired_cells(each: Measured) -> dict[str, Any]:
    if each.paired is None:
        return {"unpaired": each.unpaired}
    found = each.paired.average
    ends = found.bounds
    return {
        "difference_low": ends.low if ends else None,
        "difference_high": ends.high if ends else None,
        "difference_p": found.p,
        "difference_agree": found.agree,
        "difference_seeds": " ".join(map(str, each.paired.seeds)),
    }


def _ours(each: Measured, columns: list[str]) -> list[str]:
    setting = _label(each)
    if each.row is None:
        return [setting, "0", *[DASH] * (len(columns) + 2), "ours"]
    stats = [each.row.per_class.get(column, _NONE) for column in columns]
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
    stats = [row.per_class.get(column, _NONE) for column in columns]
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
    (usual,) = [each for each in report.measured if each.setting.default]
    if not usual.setting.in_grid and usual.missing:
        lines.append(
            f"the default setting ({usual.setting.label}) is not in the grid and lacks seed {numbers(usual.missing)}; "
            f"to run it: {report.default_command}"
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
        "average": asdict(row.average if row else _NONE),
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


def _stats(columns: list[str], per_class: dict[str, Stat], average: Stat, difference: Stat) -> dict[str, float | None]:
    every = {
        **{column: per_class.get(column, _NONE) for column in columns},
        "average": average,
        "difference": difference,
    }
    return {f"{name}_{part}": getattr(stat, part) for name, stat in every.items() for part in ("mean", "std")}

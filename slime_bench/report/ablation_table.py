"""The table of an ablation in the paper's form: console, Markdown, CSV and JSON, all with the same facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slime_bench.metrics.bootstrap import PERCENT
from slime_bench.report import statistics, table
from slime_bench.report.ablation import AblationReport, Measured
from slime_bench.report.published import Stat
from slime_bench.report.rows import NOTHING, PAPER_PRESET, stats_of
from slime_bench.report.statistics import difference_cells, interval_csv, uncertainty_lines
from slime_bench.report.table import DASH, UNIT, Grid, Line, grouped, listed, stat_text


def ablation_grid(report: AblationReport) -> Grid:
    """The settings in the order of the grid, each with the published row of the same setting under it."""
    columns = report.columns
    lines = []
    for each in report.shown:
        gap = "" if each.setting.default else stat_text(each.difference, sign="+")
        stats = stats_of(each.row, columns)
        number = str(each.row.n if each.row else 0)
        cells = [each.label, number, *map(stat_text, stats.values()), gap or DASH, "ours"]
        exact = {name: stat.mean for name, stat in stats.items()} if each.row else {}
        if each.row and report.default.row and gap:
            exact["Δ"] = each.difference.mean
        lines.append(Line(cells, exact=exact))
        if (theirs := each.published) is not None:
            gap = stat_text(Stat(each.published_difference, None), sign="+") if theirs.setting else DASH
            texts = [stat_text(stat, "") for stat in stats_of(theirs, columns).values()]
            source = f"{theirs.source}{', other data' if _other_data(report) else ''}"
            name, number = f"published: {theirs.setting or 'default'}", DASH if theirs.n is None else str(theirs.n)
            lines.append(Line([name, number, *texts, gap, source], ours=False))
    about = f" ({report.table.title}, {report.table.source})" if report.table else ""
    title = f"{report.subject}: ablation {report.name}{about}, IoU in percent ({_where(report)})"
    return Grid(title, ["setting", "n", *columns, "avg", "Δ", "source"], lines, _caption(report))


def interval_grid(report: AblationReport) -> Grid | None:
    """The intervals of our settings over test images, and of their differences to the default; None without any."""
    title = f"{report.subject}: ablation {report.name}, {PERCENT} % intervals in percent over test images"
    rows = [(each.label, each.row) for each in report.shown if each.row is not None]
    paired = {each.label: each.paired for each in report.shown if each.paired is not None}
    return statistics.interval_grid(f"{title} ({_where(report)})", rows, report.columns, paired)


def write_ablation(report: AblationReport, folder: Path) -> list[Path]:
    """Writes `<data>-ablation-<name>.{md,csv,json,tex}` into `folder`."""
    grids = [grid for grid in (ablation_grid(report), interval_grid(report)) if grid is not None]
    content = {
        "ablation": report.name, "subject": report.subject, **report.facts, "convention": report.convention,
        "background_in_average": report.background, "unit": UNIT, "columns": report.columns,
        "settings": [_entry(report, each) for each in report.shown], "provenance": report.provenance,
        "left_out": report.left_out, "command": report.portable_command, "caption": _caption(report),
    }  # fmt: skip
    stem = folder / f"{report.facts['data']}-ablation-{report.name}"
    return table.write_report(stem, [f"# {report.subject}: ablation {report.name}", *grids], _csv(report), content)


def _csv(report: AblationReport) -> list[dict[str, Any]]:
    """A line for each of our settings and for each published one, in full precision."""
    columns, lines = report.columns, []
    for each in report.shown:
        row, paired, theirs = each.row, each.paired, each.published
        gap = difference_cells(paired.average) if paired else {}
        line: dict[str, Any] = {
            "ablation": report.name, "setting": each.setting.label, "default": each.setting.default, "published": False,
            "source": "ours", "other_data": None, "n": row.n if row else 0,
            "seeds": table.spaced(row.seeds if row else ()), "missing_seeds": table.spaced(each.missing),
            **report.facts, "subject": report.subject, "convention": report.convention,
            "background_in_average": report.background, "unit": UNIT,
            **table.stat_cells({**stats_of(row, columns, "average"), "difference": each.difference}),
            **interval_csv(row.interval if row else None, columns),
            **{f"difference_{part}": gap.get(part) for part in ("low", "high", "p", "agree")},
            "difference_seeds": table.spaced(paired.seeds) if paired else None,
            "unpaired": "" if paired else each.unpaired,
        }  # fmt: skip
        lines.append(line)
        if theirs is not None:
            stats = {**stats_of(theirs, columns, "average"), "difference": Stat(each.published_difference, None)}
            lines.append(
                {
                    # Not our preset, backbone or protocol: the paper's.
                    **{name: line[name] for name in ("subject", "ablation", "unit")}, "shots": theirs.shots,
                    "setting": theirs.setting or "default", "default": not theirs.setting, "published": True,
                    "n": theirs.n, "source": theirs.source, "other_data": _other_data(report),
                    **table.stat_cells(stats),
                }
            )  # fmt: skip
    return lines


def _entry(report: AblationReport, each: Measured) -> dict[str, Any]:
    """A setting in the JSON file; means, deviations and differences in percent and percentage points."""
    row, theirs = each.row, each.published
    published = theirs and {
        "setting": theirs.setting or "default", "source": theirs.source, "other_data": _other_data(report),
        "n": theirs.n, "per_class": theirs.per_class, "average": theirs.average,
        "difference": each.published_difference,
    }  # fmt: skip
    return {
        "setting": each.setting.label, "values": each.setting.shown, "default": each.setting.default,
        "in_grid": each.setting.in_grid, "n": row.n if row else 0, "seeds": list(row.seeds) if row else [],
        "missing_seeds": each.missing, "failed": {str(seed): trial.summary for seed, trial in each.failed.items()},
        "per_class": row.per_class if row else {}, "average": row.average if row else NOTHING,
        "difference": each.difference, "interval": row.interval if row else None, "paired": each.paired,
        "unpaired": each.unpaired, "published": published,
    }  # fmt: skip


def _other_data(report: AblationReport) -> bool:
    return report.facts["preset"] != PAPER_PRESET


def _where(report: AblationReport) -> str:
    return f"preset {report.facts['preset']}, data {report.facts['data']}"


def _caption(report: AblationReport) -> list[str]:
    facts = report.facts
    measured = [(each, each.row) for each in report.shown if each.row is not None]
    unpaired = grouped(
        (each.unpaired, each.label)
        for each, row in measured
        if each.unpaired and row.interval is not None and not row.interval.missing
    )
    if report.published and any(each.published for each in report.measured):
        published = table.published_line(report.published, facts["preset"], report.convention, report.background)
    elif report.table is not None:
        published = f"published rows: none; the paper's {report.table.source} has {report.table.shots} shots"
    else:
        published = f"published rows: none; the paper has no such ablation for the subject {report.subject}"
    lines = [
        f"preset {facts['preset']}; data {facts['data']}; backbone {facts['backbone']}; "
        f"protocol {facts['protocol']}; {facts['method']}, {facts['shots']}-shot",
        *table.prepared_lines([report.prepared]),
        *table.metric_lines(report.convention, report.background, [row.n for _, row in measured]),
        *uncertainty_lines((each.label, row.n or 0, row.interval) for each, row in measured),
        *(f"not paired with the default: {listed(labels)}: {reason}" for reason, labels in unpaired.items()),
        "Δ: average minus the default setting's, in percentage points; ours: mean±sample standard deviation of the "
        "differences seed by seed; published: difference of the two stated averages",
        published,
        *(f"{each.setting.label}: {note}" for each, row in measured for note in row.notes),
        *_gaps(report),
        report.provenance.line(),
    ]
    if report.left_out:
        lines.append(
            f"{report.left_out} result(s) of these trials on another device, with other weights or data, are left out"
        )
    return lines


def _gaps(report: AblationReport) -> list[str]:
    asked = [each for each in report.measured if each.setting.in_grid]
    gaps = [f"{each.setting.label} seed {listed(each.missing)}" for each in asked if each.missing]
    total = sum(len(each.setting.trials) for each in asked)
    lines = [f"missing trials: none of {total}; ran by: {report.portable_command}"]
    if gaps:
        lines = [f"MISSING TRIALS: {'; '.join(gaps)}; to run them: {report.command}"]
    lines += [
        f"failed: {each.setting.label} seed {seed} ({trial.summary})"
        for each in asked
        for seed, trial in each.failed.items()
    ]
    default = report.default
    if not default.setting.in_grid and default.missing:
        lines.append(
            f"the default setting ({default.setting.label}) is not in the grid and lacks seed "
            f"{listed(default.missing)}; to run it: {report.default_command}"
        )
    return lines

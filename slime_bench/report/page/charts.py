"""What the page's script draws: bars for each class, and the settings of an ablation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from slime_bench.report import tables
from slime_bench.report.ablation import AblationReport
from slime_bench.report.ablation_table import shown
from slime_bench.report.page.tables import row_labels
from slime_bench.report.page.view import Chart
from slime_bench.report.published import PublishedRow, Stat
from slime_bench.report.tables import column_order

MOST_BARS = 16


def bars(section: tables.Section, identifier: str) -> Chart | None:
    """Bars of a section's rows for each class, ours and the paper's rows of the same method and shots."""
    ours = [row for row in section.rows if not row.published]
    wanted = {(row.method, row.shots) for row in ours}
    theirs = [row for row in section.rows if row.published and (row.key, row.shots) in wanted]
    entries: list[dict[str, Any]] = []
    labels = row_labels(ours)
    for row in ours:
        entries.append({"label": labels[row.series], "series": row.series})
        for other in [each for each in theirs if (each.key, each.shots) == (row.method, row.shots)]:
            theirs.remove(other)
            label = f"{other.method} {other.shots}-shot, published" + (", other data" if other.other_data else "")
            entries.append({"label": label, "published": _numbers(other.per_class, other.average)})
    if not ours or len(entries) > MOST_BARS:
        return None
    for letter, entry in zip(ascii_uppercase, entries, strict=False):
        entry["key"] = letter
    return Chart(
        identifier, f"{section.title}, by class", {"kind": "bars", "columns": section.columns, "rows": entries}
    )


def ablation_chart(report: AblationReport, identifier: str) -> Chart:
    """The settings of an ablation in the order of its grid, with the paper's points."""
    columns = column_order(report.published, report.classes)
    points = [
        {
            "label": each.setting.label,
            "default": each.setting.default,
            "series": each.row.series if each.row else "",
            "published": _published(each.published),
        }
        for each in shown(report)
    ]
    other = report.facts["preset"] != "paper"
    source = report.table.source if report.table else ""
    spec = {"kind": "points", "columns": columns, "rows": points, "other": other, "source": source}
    return Chart(identifier, f"Ablation {report.name}: IoU by setting", spec)


def _published(row: PublishedRow | None) -> dict[str, Any] | None:
    return None if row is None else _numbers(row.per_class, row.average)


def _numbers(per_class: Mapping[str, Stat], average: Stat) -> dict[str, Sequence[float | None]]:
    found: dict[str, Sequence[float | None]] = {name: [stat.mean, stat.std] for name, stat in per_class.items()}
    return {"classes": found, "average": [average.mean, average.std]}  # type: ignore[dict-item]

"""Paired differences between the rows of a table, and their files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from slime_bench.errors import ResultError
from slime_bench.report import method_facts
from slime_bench.report.aggregate import Row
from slime_bench.report.intervals import ImageBootstrap, Paired
from slime_bench.report.statistics import Difference
from slime_bench.results.result import TrialResult

UNIT = "percentage points"
_PARTS = ("mean", "std", "agree", "low", "high", "p")


@dataclass(frozen=True)
class Pair:
    """`a` minus `b`, two of our rows of one preset and data set; without `paired`, `reason` says why."""

    a: Row
    b: Row
    paired: Paired | None
    reason: str = ""


def row_pairs(rows: Sequence[Row], results: Sequence[TrialResult], bootstrap: ImageBootstrap) -> list[Pair]:
    """All pairs of rows of the same preset and data set, the later row first."""
    trials = {row.series: [one for one in results if one.series == row.series] for row in rows}
    found = []
    for b, a in combinations(rows, 2):
        if (a.preset, a.data) != (b.preset, b.data):
            continue
        try:
            paired = bootstrap.paired(trials[a.series], trials[b.series], a.convention, a.background_in_average)
        except ResultError as error:
            found.append(Pair(a, b, None, error.summary.rstrip(".")))
        else:
            found.append(Pair(a, b, paired))
    return found


def row_name(row: Row, rows: Sequence[Row]) -> str:
    """What a row is called outside its table: with the backbone and protocol where `rows` differ in them."""
    name = method_facts.display_name(row.method, row.shots)
    if row.shots and f"{row.shots}-shot" not in name:
        name += f" {row.shots}-shot"
    differ = [key for key in ("backbone", "protocol") if len({getattr(one, key) for one in rows}) > 1]
    about = [*(getattr(row, key) for key in differ), *([row.variant] if row.variant else [])]
    return f"{name} ({', '.join(about)})" if about else name


def pairs_csv(pairs: Sequence[Pair], rows: Sequence[Row], columns: Sequence[str], about: Mapping[str, Any]) -> str:
    """All pairs as CSV.

    Args:
        rows: of the report, by which the pairs' rows are named. about: what every line says, by its column.
    """
    every = [*columns, "average"]
    names = [*about, "data", "preset", "a", "b", "a_series", "b_series", "unit", "reason"]
    names += ["n", "seeds", "images", "percent", "resamples"]
    names += [f"{column}_{part}" for column in every for part in _PARTS]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    for pair in pairs:
        line = {**about, **_facts(pair, rows)}
        if (paired := pair.paired) is not None:
            line |= {"n": len(paired.seeds), "seeds": " ".join(map(str, paired.seeds))}
            line |= {name: getattr(paired, name) for name in ("images", "percent", "resamples")}
            for column in every:
                found = paired.average if column == "average" else paired.per_class.get(column)
                line |= {f"{column}_{part}": value for part, value in _cells(found).items()}
        writer.writerow(line)
    return buffer.getvalue()


def pairs_json(pairs: Sequence[Pair], rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """All pairs as a JSON list; see `pairs_csv`."""
    content = [
        {**about, **_facts(pair, rows), "paired": asdict(pair.paired) if pair.paired else None} for pair in pairs
    ]
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _facts(pair: Pair, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "data": pair.a.data,
        "preset": pair.a.preset,
        "a": row_name(pair.a, rows),
        "b": row_name(pair.b, rows),
        "a_series": pair.a.series,
        "b_series": pair.b.series,
        "unit": UNIT,
        "reason": pair.reason,
    }


def _cells(found: Difference | None) -> dict[str, float | None]:
    if found is None:
        return dict.fromkeys(_PARTS)
    ends = found.bounds
    low, high = (ends.low, ends.high) if ends else (None, None)
    return dict(zip(_PARTS, (found.mean, found.std, found.agree, low, high, found.p), strict=True))

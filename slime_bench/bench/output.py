"""What a bench has found: a table for the console, and the same as Markdown and JSON with all that it was made with."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from slime_bench.bench.duel import Row
from slime_bench.bench.harness import Spread
from slime_bench.bench.memory import Peak
from slime_bench.results.environment import environment
from slime_bench.storage import write_atomic

GB: Final = 1e9
_PACKAGES: Final = ("torch", "diffusers", "transformers", "numpy")


def facts(device: str, command: str) -> dict[str, Any]:
    """Machine, versions, threads, commit and date, as JSON values. No name of a host or a user is among them."""
    found = environment(device, {}, {})
    kept = {key: found[key] for key in ("cpu", "gpu", "device", "git", "platform", "python", "threads", "arithmetic")}
    load = [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
    return {
        **kept,
        "packages": {name: found["packages"].get(name) for name in _PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "load": load,
    }


def row_json(row: Row) -> dict[str, Any]:
    """A row as JSON values; `median` to `high` are of `seconds`."""
    value = dataclasses.asdict(row)
    value |= dataclasses.asdict(row.spread)
    return value


def duel_tables(rows: Sequence[Row]) -> str:
    """The rows as Markdown: times and ratios, then memory, then where the time goes."""
    parts = [table(["task", "way", "seconds", "min..max", "times faster", "min..max", "differs"], _times(rows))]
    if any(row.memory for row in rows):
        head = ["task", "way", "loaded GB", "peak GB", "times less", "of the task GB", "times less"]
        parts.append(table(head, _memory(rows)))
    stages = list(dict.fromkeys(stage for row in rows for stage in row.stages))
    parts.append(table(["task", "way", *(f"{stage}, s" for stage in stages)], _stages(rows, stages)))
    return "\n\n".join(parts)


def _times(rows: Sequence[Row]) -> list[list[str]]:
    made = []
    for row in rows:
        per = [f"{_number(value / row.work)}" for value in dataclasses.astuple(row.spread)]
        faster = ["", ""] if row.faster is None else [_ratio(row.faster.median), _range(row.faster)]
        differs = ", ".join(f"{name} {value:.1g}" for name, value in row.differs.items())
        made.append([row.task, row.way, per[0], f"{per[1]}..{per[2]}", *faster, differs])
    return made


def _memory(rows: Sequence[Row]) -> list[list[str]]:
    first: dict[str, Peak | None] = {}
    for row in rows:
        first.setdefault(row.task, row.memory)
    made = []
    for row in rows:
        if row.memory is None:
            continue
        base, own = first[row.task], row.memory
        less = ["", ""]
        if base is not None and base is not own:
            less = [_ratio(base.peak / max(1, own.peak)), _ratio(base.added / own.added)]
        sizes = [f"{value / GB:.2f}" for value in (own.loaded, own.peak, own.added)]
        made.append([row.task, row.way, *sizes[:2], less[0], sizes[2], less[1]])
    return made


def _stages(rows: Sequence[Row], stages: Sequence[str]) -> list[list[str]]:
    return [[row.task, row.way, *(_number(row.stages.get(stage)) for stage in stages)] for row in rows]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown with columns that line up; numbers to the right."""
    columns = list(zip(head, *rows, strict=True))
    widths = [max(3, *(len(cell) for cell in column)) for column in columns]
    right = [any(cell[:1].isdigit() for cell in column[1:]) for column in columns]

    def line(cells: Sequence[str]) -> str:
        each = (
            cell.rjust(width) if aligned else cell.ljust(width)
            for cell, width, aligned in zip(cells, widths, right, strict=True)
        )
        return f"| {' | '.join(each)} |"

    rule = [("-" * (width - 1) + ":") if aligned else "-" * width for width, aligned in zip(widths, right, strict=True)]
    return "\n".join([line(head), line(rule), *(line(row) for row in rows)])


def machine_line(made_with: Mapping[str, Any]) -> str:
    """Machine and versions in one line."""
    threads = made_with["threads"]["torch"]
    place = f"{made_with['cpu']['model']}, {threads} thread{'s' if threads != 1 else ''}"
    if made_with["gpu"]:
        place = f"{made_with['gpu']['name']} ({place})"
    versions = ", ".join(f"{name} {version}" for name, version in made_with["packages"].items())
    git = made_with["git"] or {"commit": "unknown", "dirty": False}
    commit = f"{git['commit'][:12]}{' with changes' if git['dirty'] else ''}"
    return f"{place}; {versions}; commit {commit}; {made_with['date']}; load {made_with['load']}"


def publish(folder: Path | None, name: str, title: str, text: str, content: Mapping[str, Any]) -> str:
    """What the console shows; the same goes into `<name>.md` and `<name>.json` of a folder, where one is given.

    Args:
        text: Markdown. content: plain JSON values with a key `made_with`, see `facts`.
    """
    made_with = content["made_with"]
    page = f"# {title}\n\n`{made_with['command']}`\n\n{machine_line(made_with)}\n\n{text}\n"
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / f"{name}.md", page.encode())
        strict = json.dumps(_strict(content), indent=1, sort_keys=True, allow_nan=False)
        write_atomic(folder / f"{name}.json", f"{strict}\n".encode())
    return page


def _strict(value: Any) -> Any:
    """Without NaN and infinity, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _ratio(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _range(value: Spread) -> str:
    return f"{_ratio(value.low)}..{_ratio(value.high)}"

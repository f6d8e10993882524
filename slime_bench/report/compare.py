"""`slime-bench compare RUN_A RUN_B`: in what two finished trials differ, and how much.

A run is a trial's folder, its result.json, or the first digits of its signature, which are looked up below --outputs.
Printed are the IoU of every class and the average (B - A in percentage points), differing settings, data, fingerprints
and environment, whether the learned tensors are equal bit for bit, and in how many test images counted pixels differ.
Exit code 0 whether they differ or not; 2 for a run that is not there, not finished, or of other classes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_bench.metrics import CONVENTION_RULES

if TYPE_CHECKING:
    from rich.console import Console

    from slime_bench.report.comparison import Change, Comparison, Images, Learned, Score

_DASH = "-"
_SHOWN = 5
_LONG = 10
_HASH = 12


def main(argv: Sequence[str] | None = None) -> int:
    """Compare two runs, print what was found, return the exit code.

    Raises:
        ResultError: see `find_run` and `compare`.
    """
    args = _parser().parse_args(argv)
    from slime_bench.report.comparison import as_json, compare, find_run

    a, b = (find_run(name, args.outputs) for name in (args.run_a, args.run_b))
    found = compare(a, b, args.convention, False if args.without_background else None)
    if args.json:
        print(json.dumps(as_json(found), indent=1, ensure_ascii=False, default=str))
        return 0
    from rich.console import Console

    # In a file or a pipe rich takes the width from COLUMNS, or 80.
    show(found, Console(file=sys.stdout, highlight=False, markup=False))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slime-bench compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    outputs = Path(os.environ.get("SLIME_BENCH_OUTPUTS") or "outputs")
    rules = "; ".join(f"{name}: {rule}" for name, rule in CONVENTION_RULES.items())
    parser.add_argument("run_a", metavar="RUN_A", help="folder, result.json, or beginning of a signature")
    parser.add_argument("run_b", metavar="RUN_B")
    parser.add_argument("--outputs", type=Path, default=outputs, help=f"folder with runs/ (default {outputs})")
    parser.add_argument("--convention", choices=list(CONVENTION_RULES), help=f"{rules} (default: that of RUN_A)")
    parser.add_argument("--without-background", action="store_true", help="leave class 0 out of the average")
    parser.add_argument("--json", action="store_true", help="everything as JSON; IoU in 0..1, memory in bytes")
    return parser


def show(found: Comparison, console: Console) -> None:
    """Print all tables that have something to say, and a sentence for each that has not; 80 columns are enough."""
    for letter, names in (("A", found.names_a), ("B", found.names_b)):
        console.print(f"{letter}  {names['folder']}", soft_wrap=True)  # a path that is cut in two cannot be copied
    keys = [key for key in found.names_a if key != "folder"]
    _table(console, "", ["", "A", "B"], [[key, str(found.names_a[key]), str(found.names_b[key])] for key in keys])
    average = f"average {'with' if found.background else 'without'} background"
    title = f"IoU in percent. {found.convention}: {CONVENTION_RULES[found.convention]}; {average}"
    rows = [[score.name, *_score(score)] for score in (*found.scores, found.average)]
    _table(console, title, ["class", "A", "B", "B - A"], rows, numbers=True)
    _changes(console, "Settings that decide numbers", found.config, "the settings that decide numbers are the same")
    _changes(console, "Other settings, which do not decide numbers", found.other, _other_same(found))
    _changes(console, "Data", found.data, "same support images, test images and preparation")
    short = [dataclasses.replace(each, a=_hash(each.a), b=_hash(each.b)) for each in found.fingerprints]
    _changes(console, "Fingerprints (first digits)", short, "same weights and data, by their fingerprints")
    _changes(console, "Environment", found.environment, _environment_same(found))
    cost = [
        dataclasses.replace(each, key=_unit(each.key), a=_amount(each.key, each.a), b=_amount(each.key, each.b))
        for each in found.cost
    ]
    _changes(console, "Cost", cost, "seconds and memory are not recorded")
    for line in _sentences(found):
        console.print(line)


def _score(score: Score) -> list[str]:
    cells = [_DASH if value is None else f"{100 * value:.2f}" for value in (score.a, score.b)]
    if score.difference is None:
        return [*cells, "=" if score.a == score.b else _DASH]
    return [*cells, "=" if score.difference == 0 else f"{100 * score.difference:+.2f}"]


def _other_same(found: Comparison) -> str:
    if found.without_settings:
        return f"the other settings of {_runs(found.without_settings)} are not recorded (no readable config.yaml)"
    return "the other settings are the same"


def _environment_same(found: Comparison) -> str:
    if found.without_environment:
        return f"the environment of {_runs(found.without_environment)} is not recorded (no readable environment.json)"
    return "the environment is the same, as far as both record it" if found.unsaid else "the environment is the same"


def _runs(names: Sequence[str]) -> str:
    return " and ".join(name.upper() for name in names)


def _sentences(found: Comparison) -> list[str]:
    lines = [
        f"recorded for {name.upper()} alone: {_first(keys, _LONG)}"
        for name in ("a", "b")
        if (keys := [key for key, only in found.unsaid.items() if only == name])
    ]
    lines += [_learned(found.learned), *_images(found.images)]
    other = "two seeds of one series" if found.same_series else "two different trials"
    kind = "the same trial (one signature)" if found.same_trial else other
    equal = "every number is the same" if found.same_numbers else "the numbers differ"
    return [*lines, f"{kind}; {equal}"]


def _learned(found: Learned) -> str:
    if found.unknown:
        return f"learned state: unknown; {found.unknown}"
    if found.equal:
        return f"learned state: equal bit for bit ({found.tensors} tensors)" if found.tensors else "learned state: none"
    parts = [f"{name} alone has {_first(names, _SHOWN)}" for name, names in _only(found.only_a, found.only_b)]
    if found.reshaped:
        parts.append(f"other shape or number format: {_first(found.reshaped, _SHOWN)}")
    if found.differ:
        most = "not a finite number" if found.largest is None else f"{found.largest:.3g}"
        names = _first(found.differ, _SHOWN)
        parts.append(f"{len(found.differ)} of {found.tensors} tensors differ, by at most {most}: {names}")
    return f"learned state: {'; '.join(parts)}"


def _images(found: Images) -> list[str]:
    if found.unknown:
        return [f"test images: unknown; {found.unknown}"]
    if not (found.only_a or found.only_b):
        lines = [f"test images: the same {found.common}"]
    else:
        parts = [
            f"{len(ids)} in {name} alone: {_first(ids, _SHOWN)}" for name, ids in _only(found.only_a, found.only_b)
        ]
        lines = [f"test images: {found.common} in both; {'; '.join(parts)}"]
    if not found.differ:
        return [*lines, *(["counts: the same in all of them"] if found.common else [])]
    most = _first([f"{name} ({pixels:,} pixels)" for name, pixels in found.differ], _SHOWN)
    return [*lines, f"counts: {len(found.differ)} of {found.common} images differ; most in {most}"]


def _only(a: Sequence[str], b: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    return [(name, items) for name, items in (("A", a), ("B", b)) if items]


def _first(items: Sequence[str], count: int) -> str:
    return ", ".join(items[:count]) + (f" and {len(items) - count} more" if len(items) > count else "")


def _changes(console: Console, title: str, found: Iterable[Change], same: str) -> None:
    rows = [
        [each.key, *(_text(value, each.only, name) for name, value in (("a", each.a), ("b", each.b)))] for each in found
    ]
    if rows:
        _table(console, title, ["key", "A", "B"], rows)
    else:
        console.print(f"{same}\n")


def _text(value: Any, only: str, name: str) -> str:
    if only not in ("", name):
        return _DASH
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)


def _hash(value: Any) -> Any:
    return value[:_HASH] if isinstance(value, str) else value


def _unit(key: str) -> str:
    if key.startswith("seconds."):
        return f"{key.removeprefix('seconds.')}, seconds"
    return key.replace("_bytes", ", MiB").replace("_", " ")


def _amount(key: str, value: Any) -> str:
    if value is None:
        return _DASH
    if key.endswith("_bytes") and isinstance(value, int | float):
        return f"{value / 2**20:,.0f}"
    return str(value)


def _table(
    console: Console, title: str, header: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False
) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if title:  # not rich's own title, which is folded at the width of the table
        console.print(title)
    # Text, because keys and class names may hold what rich would read as markup.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(Text(name), justify="right" if numbers and index else "left", overflow="fold")
    for cells in rows:
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)

"""`slime-bench compare RUN_A RUN_B`: in what two finished trials differ, and how much.

A run is a trial's folder, its result.json, or the first digits of its signature, which are looked up below --outputs.
Printed are the IoU of every class and the average (B - A in percentage points), differing settings, data, fingerprints
and environment, whether the learned tensors are equal bit for bit, and in how many test images counted pixels differ.
Exit code 0 whether they differ or not; 2 for a run that is not there, not finished, or of other classes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from slime_bench.errors import ResultError
from slime_bench.metrics import CONVENTION_RULES
from slime_bench.paths import user_path
from slime_bench.report.collect import default_outputs, failure
from slime_bench.report.rows import minus
from slime_bench.report.table import DASH
from slime_bench.results.environment import read_environment
from slime_bench.results.identity import flatten
from slime_bench.results.result import PER_IMAGE_FILE, RESULT_FILE, TrialResult, read_per_image_arrays, read_result

_SIGNATURE: Final = re.compile(r"(seed\d+-)?([0-9a-f]{1,16})")
_NAMES: Final = ("method", "backbone", "data", "shots", "seed", "preset", "protocol", "signature")
_COST: Final = ("seconds.", "peak_")
_MOMENT: Final = ("finished", "pid", "fingerprints")
"""Facts of `environment.json` that differ between any two trials, or stand elsewhere in the comparison."""
_ELSEWHERE: Final = ("per_preset", "backbone.layer_groups", "metric")
"""Settings that stand again where they are used, or with the scores."""
_SHOWN: Final = 5

Change = dict[str, Any]
"""A dotted `key` that differs, and its values `a` and `b`, without that of a run that lacks the key."""


def main(argv: Sequence[str] | None = None) -> int:
    """Compare two runs, print what was found, return the exit code.

    Raises:
        ResultError: see `find_run` and `compare`.
    """
    args = _parser().parse_args(argv)
    a, b = (find_run(name, args.outputs) for name in (args.run_a, args.run_b))
    found = compare(a, b, args.convention, False if args.without_background else None)
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False, default=str))
        return 0
    # In a file or a pipe rich takes the width from COLUMNS, or 80.
    show(found, Console(file=sys.stdout, highlight=False, markup=False))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slime-bench compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    outputs = default_outputs()
    rules = "; ".join(f"{name}: {rule}" for name, rule in CONVENTION_RULES.items())
    parser.add_argument("run_a", metavar="RUN_A", help="folder, result.json, or beginning of a signature")
    parser.add_argument("run_b", metavar="RUN_B")
    parser.add_argument("--outputs", type=user_path, default=outputs, help=f"folder with runs/ (default {outputs})")
    parser.add_argument("--convention", choices=list(CONVENTION_RULES), help=f"{rules} (default: that of RUN_A)")
    parser.add_argument("--without-background", action="store_true", help="leave class 0 out of the average")
    parser.add_argument("--json", action="store_true", help="everything as JSON; IoU in 0..1, memory in bytes")
    return parser


# ------------------------------------------------------------------------------------------------- which run is meant


@dataclass(frozen=True)
class Run:
    """A finished trial; None for an `environment.json` or a flattened `config.yaml` that cannot be read."""

    folder: Path
    result: TrialResult
    environment: dict[str, Any] | None
    settings: dict[str, Any] | None


def find_run(name: str, outputs: Path) -> Run:
    """The finished trial called `name`.

    Args:
        name: path of a trial's folder or of its result file, or the beginning of a signature, also with its `seed0-`.
        outputs: folder with runs/, in which signatures are looked up.

    Raises:
        ResultError: no such trial, several, one without a result, or a result that is not valid.
    """
    path = user_path(name)
    if not path.exists():
        path = _by_signature(name, outputs)
    file = path if path.is_file() else path / RESULT_FILE
    if not file.is_file():
        finished = sorted(each.parent for each in path.glob(f"**/{RESULT_FILE}"))
        if finished:
            found = f"{len(finished)} finished trials: {_first([str(each.relative_to(path)) for each in finished])}"
        elif (path / "error.json").is_file():
            found = f"a trial that failed: {failure(path)}"
        else:
            found = _first(sorted(each.name for each in path.iterdir())) or "an empty folder"
        raise _no_run("There is no result in this folder.", path, found)
    return Run(file.parent, read_result(file), read_environment(file.parent), _settings(file.parent))


def _by_signature(name: str, outputs: Path) -> Path:
    asked = _SIGNATURE.fullmatch(name)
    if asked is None:
        raise _no_run("There is no such run.", Path(name), "nothing of this name")
    found = sorted(each for each in outputs.glob(f"runs/*/*/*/{asked[1] or 'seed*-'}{asked[2]}*") if each.is_dir())
    # Of a trial that failed the error says more than that it is not there.
    found = [each for each in found if (each / RESULT_FILE).is_file()] or found
    if not found:
        raise _no_run("No trial has a signature that begins so.", outputs / "runs", f"none of {name}...")
    if len(found) > 1:
        names = _first([each.relative_to(outputs / "runs").as_posix() for each in found])
        raise _no_run("Several trials have signatures that begin so.", outputs / "runs", f"{len(found)}: {names}")
    return found[0]


def _no_run(summary: str, path: Path, found: str) -> ResultError:
    return ResultError(
        summary, path=path, found=found,
        expected="one trial's folder, its result.json, or enough digits of its signature",
        remedy="Name a finished trial, give more digits, or name the folder with runs/ with --outputs.",
    )  # fmt: skip


def _settings(folder: Path) -> dict[str, Any] | None:
    try:
        content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return dict(flatten(content)) if isinstance(content, dict) else None


# ------------------------------------------------------------------------------------------------------ the comparison


def compare(a: Run, b: Run, convention: str | None = None, background: bool | None = None) -> dict[str, Any]:
    """Everything in which two runs differ, as plain values: IoU in 0..1, memory in bytes.

    Args:
        convention, background: of the scores; by default those of `a`.

    Raises:
        ResultError: the two have other classes.
    """
    one, other = a.result, b.result
    if set(one.classes) != set(other.classes):
        raise ResultError(
            "The two runs have other classes, so their numbers cannot be put side by side.", path=b.folder,
            found=", ".join(other.classes), expected=f"{', '.join(one.classes)}, as {a.folder}",
            remedy="Compare runs on data sets of one subject.",
        )  # fmt: skip
    convention = convention or one.convention
    background = one.background_in_average if background is None else background
    left, right = (each.under(convention, background) for each in (one, other))
    decided = [_without(each.config, ("metric",)) for each in (one, other)]
    settings = _changes_of(a.settings, b.settings, _ELSEWHERE)
    images = compare_images(a.folder, b.folder)
    tables = [{name: table["per_class"] for name, table in each.conventions.items()} for each in (one, other)]
    return {
        "a": _names(a), "b": _names(b), "same_trial": one.signature == other.signature,
        "same_series": one.series == other.series, "convention": convention, "background": background,
        "scores": [_score(name, left.per_class[name], right.per_class[name]) for name in one.classes],
        "average": _score("average", left.average, right.average), "config": changes(*decided),
        "other": [each for each in settings if each["key"] not in {*decided[0], *decided[1]}],
        "data": changes(_data(one), _data(other)), "fingerprints": changes(one.fingerprints, other.fingerprints),
        "environment": _changes_of(a.environment, b.environment, (*_COST, *_MOMENT)),
        "without_environment": [name for name, each in (("a", a), ("b", b)) if each.environment is None],
        "without_settings": [name for name, each in (("a", a), ("b", b)) if each.settings is None],
        "cost": _costs(a.environment or {}, b.environment or {}), "learned": compare_learned(a.folder, b.folder),
        "images": images,
        "same_numbers": tables[0] == tables[1] and not (images["differ"] or images["only_a"] or images["only_b"]),
    }  # fmt: skip


def changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Change]:
    """The differing keys of two flat mappings (dotted key -> plain value), in the order of the keys.

    Numbers are compared by value: 1 and 1.0 are the same, and neither is true.
    """

    def same(one: Any, other: Any) -> bool:
        return isinstance(one, bool) == isinstance(other, bool) and one == other

    found = _sides(a, b, sorted({*a, *b}))
    return [each for each in found if len(each) < 3 or not same(each["a"], each["b"])]


def _sides(a: Mapping[str, Any], b: Mapping[str, Any], keys: Iterable[str]) -> list[Change]:
    return [
        {"key": key, **{name: values[key] for name, values in (("a", a), ("b", b)) if key in values}} for key in keys
    ]


def _changes_of(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None, but: Sequence[str]) -> list[Change]:
    """As `changes`, without the keys that begin with one of `but`; nothing where one of the two was not recorded."""
    return [] if a is None or b is None else changes(_without(a, but), _without(b, but))


def _costs(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Change]:
    """Seconds and memory of both, whether they differ or not."""
    one, other = (
        {key: value for key, value in flatten(each) if key.startswith(_COST) and value is not None} for each in (a, b)
    )
    return _sides(one, other, {**one, **other})


def compare_images(a: Path, b: Path) -> dict[str, Any]:
    """The counts per image in the folders of two trials; nothing is raised for tables that are not there or spoilt.

    Returns:
        `unknown`: why nothing can be said, else empty. `a`, `b`: numbers of images. `common`: of images that both have,
        by their ids. `only_a`, `only_b`: ids of the others. `differ`: of the common images that differ their id and the
        pixels by which their counts do, summed over classes and over intersection and union; the largest first.
    """
    found: dict[str, Any] = {"unknown": "", "a": 0, "b": 0, "common": 0, "only_a": [], "only_b": [], "differ": []}
    try:
        tables = [read_per_image_arrays(folder / PER_IMAGE_FILE) for folder in (a, b)]
    except ResultError as error:
        return found | {"unknown": f"{error.summary} {error.path}"}
    if set(tables[0][1]) != set(tables[1][1]):
        return found | {"unknown": f"{PER_IMAGE_FILE} of the two has other classes"}
    one, other = (  # by id: intersection, union and presence [3,K], classes in alphabetical order
        dict(zip(ids, np.stack(counts, axis=1).astype(np.int64)[..., np.argsort(classes)], strict=True))
        for ids, classes, *counts in tables
    )
    gaps = {name: np.abs(one[name] - other[name]) for name in one if name in other}
    # A class may have gone from an annotation although no count shows it.
    differ = sorted((-int(gap[:2].sum()), name) for name, gap in gaps.items() if gap.any())
    return found | {
        "a": len(one), "b": len(other), "common": len(gaps),
        "only_a": [name for name in one if name not in other], "only_b": [name for name in other if name not in one],
        "differ": [{"id": name, "pixels": -pixels} for pixels, name in differ],
    }  # fmt: skip


def compare_learned(a: Path, b: Path) -> dict[str, Any]:
    """The learned tensors in the folders of two trials; nothing is raised for files that are not there or spoilt.

    Returns:
        `unknown`: why nothing can be said, else empty. `tensors`: number that both have, with the same shape and number
        format. `only_a`, `only_b`: names of tensors that one alone has. `reshaped`: that have another shape or format.
        `differ`: of the comparable ones, those that are not equal bit for bit. `largest`: absolute difference of two
        numbers in them, None where a difference is not a finite number. `equal`: whether both are the same bit for
        bit, None where nobody knows.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    def bits(value: torch.Tensor) -> torch.Tensor:  # two NaNs of the same bits are the same, and 0 and -0 are not
        return value.contiguous().flatten().view(torch.uint8)

    record: dict[str, Any] = {"unknown": "", "tensors": 0, "only_a": [], "only_b": [], "reshaped": [], "differ": []}
    record |= {"largest": 0.0, "equal": None}
    files = []
    for path in (folder / "state.safetensors" for folder in (a, b)):
        try:
            files.append(load_file(path))
        except (OSError, SafetensorError) as error:
            return record | {"unknown": f"{path} cannot be read: {str(error).splitlines()[0]}"}
    left, right = files
    record |= {"only_a": sorted(left.keys() - right.keys()), "only_b": sorted(right.keys() - left.keys())}
    for name in sorted(left.keys() & right.keys()):
        one, other = left[name], right[name]
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            record["reshaped"].append(name)
            continue
        record["tensors"] += 1
        if not torch.equal(bits(one), bits(other)):
            record["differ"].append(name)
            gap, before = float((one.double() - other.double()).abs().max()), record["largest"]
            record["largest"] = max(before, gap) if before is not None and gap < float("inf") else None
    record["equal"] = not any(record[name] for name in ("only_a", "only_b", "reshaped", "differ"))
    return record


def _score(name: str, a: float | None, b: float | None) -> dict[str, Any]:
    return {"name": name, "a": a, "b": b, "difference": minus(b, a)}


def _names(run: Run) -> dict[str, Any]:
    return {"folder": str(run.folder), **{name: getattr(run.result, name) for name in _NAMES}}


def _data(result: TrialResult) -> dict[str, Any]:
    facts = {"classes": result.classes, "support_ids": result.support_ids, "test_images": result.num_test_images}
    every = flatten({**facts, "prepared": result.prepared, "validation": result.validation})
    return {key: value for key, value in every if value != {}}


def _without(values: Mapping[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    """Dotted key -> value, without the keys that begin with one of `parts`."""
    return {key: value for key, value in flatten(values) if not key.startswith(tuple(parts))}


# ------------------------------------------------------------------------------------------------------- on a terminal


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print all tables that have something to say, and a sentence for each that has not; 80 columns are enough."""
    for name in ("a", "b"):
        console.print(f"{name.upper()}  {found[name]['folder']}", soft_wrap=True)  # a path cut in two cannot be copied
    _table(console, "", ["", "A", "B"], [[key, str(found["a"][key]), str(found["b"][key])] for key in _NAMES])
    convention, average = found["convention"], f"average {'with' if found['background'] else 'without'} background"
    title = f"IoU in percent. {convention}: {CONVENTION_RULES[convention]}; {average}"
    rows = [_score_cells(each) for each in (*found["scores"], found["average"])]
    _table(console, title, ["class", "A", "B", "B - A"], rows, numbers=True)
    for key, title, same in (
        ("config", "Settings that decide numbers", "the settings that decide numbers are the same"),
        ("other", "Other settings, which do not decide numbers", _lacking(found, "settings", "the other settings are")),
        ("data", "Data", "same support images, test images and preparation"),
        ("fingerprints", "Fingerprints (first digits)", "same weights and data, by their fingerprints"),
        ("environment", "Environment", _lacking(found, "environment", "the environment is")),
        ("cost", "Cost", "seconds and memory are not recorded"),
    ):
        rows = [_cells(key, each) for each in found[key]]
        _table(console, title, ["key", "A", "B"], rows) if rows else console.print(f"{same}\n")
    console.print(f"learned state: {_learned(found['learned'])}")
    for line in _images(found["images"]):
        console.print(line)
    other = "two seeds of one series" if found["same_series"] else "two different trials"
    kind = "the same trial (one signature)" if found["same_trial"] else other
    console.print(f"{kind}; {'every number is the same' if found['same_numbers'] else 'the numbers differ'}")


def _score_cells(score: Mapping[str, Any]) -> list[str]:
    cells = [DASH if score[name] is None else f"{100 * score[name]:.2f}" for name in ("a", "b")]
    changed = DASH if score["difference"] is None else f"{100 * score['difference']:+.2f}"
    return [score["name"], *cells, "=" if score["a"] == score["b"] else changed]


def _lacking(found: Mapping[str, Any], what: str, said: str) -> str:
    """What is said where no difference was found, or none could be."""
    if runs := " and ".join(each.upper() for each in found[f"without_{what}"]):
        name, _, verb = said.rpartition(" ")
        file = {"settings": "config.yaml", "environment": "environment.json"}[what]
        return f"{name} of {runs} {verb} not recorded (no readable {file})"
    return f"{said} the same"


def _cells(kind: str, change: Change) -> list[str]:
    key, sides = change["key"], [change.get(name, DASH) for name in "ab"]
    if kind == "fingerprints":
        sides = [value[:12] for value in sides]
    if kind == "cost":
        if key.endswith("_bytes"):
            sides = [value if value == DASH else f"{value / 2**20:,.0f}" for value in sides]
        key = f"{key.removeprefix('seconds.')}, seconds" if key.startswith("seconds.") else key
        key = key.replace("_bytes", ", MiB").replace("_", " ")
    return [key, *map(_text, sides)]


def _learned(found: Mapping[str, Any]) -> str:
    if found["unknown"]:
        return f"unknown; {found['unknown']}"
    if found["equal"]:
        return f"equal bit for bit ({found['tensors']} tensors)" if found["tensors"] else "none"
    parts = [f"{name.upper()} alone has {_first(found[f'only_{name}'])}" for name in "ab" if found[f"only_{name}"]]
    if found["reshaped"]:
        parts.append(f"other shape or number format: {_first(found['reshaped'])}")
    if found["differ"]:
        most = "not a finite number" if found["largest"] is None else f"{found['largest']:.3g}"
        number = f"{len(found['differ'])} of {found['tensors']} tensors differ"
        parts.append(f"{number}, by at most {most}: {_first(found['differ'])}")
    return "; ".join(parts)


def _images(found: Mapping[str, Any]) -> list[str]:
    if found["unknown"]:
        return [f"test images: unknown; {found['unknown']}"]
    only = [
        f"{len(ids)} in {name.upper()} alone: {_first(ids)}" for name in ("a", "b") if (ids := found[f"only_{name}"])
    ]
    common, differ = found["common"], found["differ"]
    lines = [f"test images: {common} in both; {'; '.join(only)}" if only else f"test images: the same {common}"]
    if differ:
        most = _first([f"{each['id']} ({each['pixels']:,} pixels)" for each in differ])
        lines.append(f"counts: {len(differ)} of {common} images differ; most in {most}")
    elif common:
        lines.append("counts: the same in all of them")
    return lines


def _first(items: Sequence[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")


def _text(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)


def _table(
    console: Console, title: str, header: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False
) -> None:
    if title:  # not rich's own title, which is folded at the width of the table
        console.print(title)
    # Text, because keys and class names may hold what rich would read as markup.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(Text(name), justify="right" if numbers and index else "left", overflow="fold")
    for cells in rows:
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)

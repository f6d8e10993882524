"""Two finished trials side by side, as one record of plain values that `slime-bench compare` prints."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml

from slime_bench.errors import ConfigError, ResultError
from slime_bench.results.environment import read_environment
from slime_bench.results.identity import canonical_json, flatten
from slime_bench.results.result import (
    PER_IMAGE_FILE,
    RESULT_FILE,
    TrialResult,
    read_per_image_arrays,
    read_result,
)

STATE_FILE: Final = "state.safetensors"
_NAME: Final = re.compile(r"(seed\d+-)?([0-9a-f]{1,16})")
_SHOWN: Final = 8
_EXPECTED: Final = "a trial's folder, its result.json, or the first digits of its signature"
_NAMES: Final = ("method", "backbone", "data", "shots", "seed", "preset", "protocol", "signature")
_COST: Final = ("seconds.", "peak_")
_MOMENT: Final = ("finished", "pid", "fingerprints")
"""Facts of `environment.json` that differ between any two trials, or stand elsewhere in the comparison."""
_TWICE: Final = ("per_preset", "backbone.layer_groups")
"""Settings that stand again where they are used."""


@dataclass(frozen=True)
class Run:
    """A finished trial.

    Attributes:
        folder: where its files lie.
        environment: see `slime_bench.results.environment`; None where it was not kept or cannot be read.
        settings: dotted key -> value of its whole configuration, also of what cannot change a number; None where
            config.yaml was not kept or cannot be read.
    """

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
    path = Path(name).expanduser()
    if not path.exists():
        path = _by_signature(name, outputs)
    file = path if path.is_file() else path / RESULT_FILE
    if not file.is_file():
        raise _no_result(path, name)
    result = read_result(file)
    return Run(file.parent, result, read_environment(file.parent), _settings(file.parent))


def _by_signature(name: str, outputs: Path) -> Path:
    asked = _NAME.fullmatch(name)
    if asked is None:
        raise ResultError(
            "There is no such run.", path=name, found="nothing of this name", expected=_EXPECTED,
            remedy=f"See the folders below {outputs / 'runs'}, or name another place with --outputs.",
        )  # fmt: skip
    pattern = f"runs/*/*/*/{asked[1] or 'seed*-'}{asked[2]}*"
    found = sorted(folder for folder in outputs.glob(pattern) if folder.is_dir())
    finished = [folder for folder in found if (folder / RESULT_FILE).is_file()]
    candidates = finished or found  # of a trial that failed the error says more than that it is not there
    if not candidates:
        count = sum(1 for _ in outputs.glob(f"runs/*/*/*/seed*/{RESULT_FILE}"))
        raise ResultError(
            "No trial has a signature that begins so.", path=outputs / "runs",
            found=f"{count} finished trial(s), none {name}...", expected=_EXPECTED,
            remedy="Check the digits, or name another place with --outputs.",
        )  # fmt: skip
    if len(candidates) > 1:
        raise ResultError(
            "Several trials have signatures that begin so.", path=outputs / "runs",
            found=f"{len(candidates)} of {name}...: {_listed(candidates, outputs / 'runs')}", expected="one",
            remedy="Give more digits.",
        )  # fmt: skip
    return candidates[0]


def _no_result(folder: Path, name: str) -> ResultError:
    inside = sorted(file.parent for file in folder.glob(f"**/{RESULT_FILE}"))
    if inside:
        return ResultError(
            "This folder holds several trials, or lies above one.", path=folder,
            found=f"{len(inside)} finished: {_listed(inside, folder)}", expected=_EXPECTED,
            remedy="Name one of them.",
        )  # fmt: skip
    try:
        error = json.loads((folder / "error.json").read_text(encoding="utf-8"))
        found = f"a trial that failed: {error['type']}: {error['summary']}"
    except (OSError, ValueError, KeyError, TypeError):
        there = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
        found = ", ".join(there[:_SHOWN]) or "an empty folder"
    return ResultError(
        "There is no result in this folder.", path=folder, found=found, expected=f"{RESULT_FILE}: a finished trial",
        remedy="Run the trial (a repeated command goes on where it stopped), or name another one.",
    )  # fmt: skip


def _listed(folders: list[Path], below: Path) -> str:
    names = [folder.relative_to(below).as_posix() for folder in folders[:_SHOWN]]
    return ", ".join(names) + (f" and {len(folders) - _SHOWN} more" if len(folders) > _SHOWN else "")


def _settings(folder: Path) -> dict[str, Any] | None:
    try:
        content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return dict(flatten(content)) if isinstance(content, dict) else None


@dataclass(frozen=True)
class Change:
    """A key with two values, or with one.

    Attributes:
        key: dotted.
        a, b: the values; None where the key is absent, which `only` tells from a None that is written there.
        only: `a` or `b` where the other one lacks the key, else empty.
    """

    key: str
    a: Any
    b: Any
    only: str = ""


def changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Change]:
    """The differing keys of two flat mappings (dotted key -> plain value), in the order of the keys.

    Numbers are compared by value: 1 and 1.0 are the same. Where one says `gpu: null` and the other `gpu.name: ...`, the
    first has None for `gpu.name`; it does not lack it.
    """
    found = []
    for key in sorted({*a, *b}):
        here, there = _has(a, key), _has(b, key)
        if here and there:
            if not _same(a.get(key), b.get(key)):
                found.append(Change(key, a.get(key), b.get(key)))
        elif not any(other.startswith(f"{key}.") for other in (*a, *b)):  # a None that the keys below it stand for
            found.append(Change(key, a.get(key), b.get(key), "a" if here else "b"))
    return found


def _has(values: Mapping[str, Any], key: str) -> bool:
    """Whether `values` has the key, or says of something above it that there is none."""
    parts = key.split(".")
    above = (".".join(parts[:count]) for count in range(1, len(parts)))
    return key in values or any(name in values and values[name] is None for name in above)


def _same(left: Any, right: Any) -> bool:
    try:
        return canonical_json(left) == canonical_json(right)
    except ConfigError:  # a value that JSON cannot hold, in a file that somebody has edited
        return bool(left == right)


@dataclass(frozen=True)
class Images:
    """The test images of two trials.

    Attributes:
        unknown: why nothing can be said, else empty.
        a, b: numbers of images. common: of images that both have, by their ids.
        only_a, only_b: ids of the others.
        differ: id -> pixels by which the counts of a common image differ, summed over classes and over intersection and
            union; the largest first. Those that do not differ are left out.
    """

    unknown: str = ""
    a: int = 0
    b: int = 0
    common: int = 0
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()
    differ: tuple[tuple[str, int], ...] = ()


def compare_images(a: Path, b: Path) -> Images:
    """The counts per image in the folders of two trials; nothing is raised for tables that are not there or spoilt."""
    try:
        (ids_a, classes_a, *counts_a), (ids_b, classes_b, *counts_b) = (
            read_per_image_arrays(folder / PER_IMAGE_FILE) for folder in (a, b)
        )
    except ResultError as error:
        return Images(unknown=f"{error.summary} {error.path}")
    if set(classes_a) != set(classes_b):
        return Images(unknown=f"{PER_IMAGE_FILE} of the two has other classes")
    order = [classes_b.index(name) for name in classes_a]
    places_a, places_b = ({name: row for row, name in enumerate(ids)} for ids in (ids_a, ids_b))
    common = [name for name in ids_a if name in places_b]
    rows_a, rows_b = ([places[name] for name in common] for places in (places_a, places_b))
    pixels, other = np.zeros(len(common), np.int64), np.zeros(len(common), bool)
    for left, right in zip(counts_a, counts_b, strict=True):  # intersection, union, presence
        gap = np.abs(left[rows_a].astype(np.int64) - right[rows_b][:, order].astype(np.int64))
        pixels += gap.sum(1) if left.dtype != bool else 0
        other |= gap.any(1)  # a class may have gone from an annotation although no count shows it
    differ = [(common[row], int(pixels[row])) for row in np.flatnonzero(other)]
    return Images(
        a=len(ids_a),
        b=len(ids_b),
        common=len(common),
        only_a=tuple(name for name in ids_a if name not in places_b),
        only_b=tuple(name for name in ids_b if name not in places_a),
        differ=tuple(sorted(differ, key=lambda each: (-each[1], each[0]))),
    )


@dataclass(frozen=True)
class Learned:
    """The learned tensors of two trials.

    Attributes:
        unknown: why nothing can be said, else empty.
        tensors: that both have, with the same shape and number format.
        only_a, only_b: names of tensors that one alone has. reshaped: that have another shape or format.
        differ: of the comparable ones, those that are not equal bit for bit.
        largest: largest absolute difference of two numbers in them; None where a difference is not a finite number.
    """

    unknown: str = ""
    tensors: int = 0
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    differ: tuple[str, ...] = ()
    largest: float | None = 0.0

    @property
    def equal(self) -> bool | None:
        """Whether both are the same bit for bit; None where nobody knows."""
        return None if self.unknown else not (self.only_a or self.only_b or self.reshaped or self.differ)


def compare_learned(a: Path, b: Path) -> Learned:
    """The learned tensors in the folders of two trials; nothing is raised for files that are not there or spoilt."""
    import torch
    from safetensors import SafetensorError, safe_open

    def bits(value: torch.Tensor) -> torch.Tensor:  # two NaNs of the same bits are the same, and 0 and -0 are not
        return value.contiguous().flatten().view(torch.uint8)

    files = []
    for folder in (a, b):
        try:
            files.append(safe_open(folder / STATE_FILE, "pt"))
        except (OSError, SafetensorError) as error:
            return Learned(unknown=f"{folder / STATE_FILE} cannot be read: {str(error).splitlines()[0]}")
    left, right = files
    names_a, names_b = (set(file.keys()) for file in files)
    common = sorted(names_a & names_b)
    reshaped, differ = [], []
    largest: float | None = 0.0
    for name in common:
        one, other = left.get_tensor(name), right.get_tensor(name)
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            reshaped.append(name)
        elif not torch.equal(bits(one), bits(other)):
            differ.append(name)
            found = float((one.double() - other.double()).abs().max())
            largest = max(largest, found) if largest is not None and found < float("inf") else None
    return Learned(
        tensors=len(common) - len(reshaped),
        only_a=tuple(sorted(names_a - names_b)),
        only_b=tuple(sorted(names_b - names_a)),
        reshaped=tuple(reshaped),
        differ=tuple(differ),
        largest=largest,
    )


@dataclass(frozen=True)
class Score:
    """IoU of a class, or the average, in 0..1; None where it is undefined."""

    name: str
    a: float | None
    b: float | None

    @property
    def difference(self) -> float | None:
        """b - a."""
        return None if self.a is None or self.b is None else self.b - self.a


@dataclass(frozen=True)
class Comparison:
    """In what two trials differ.

    Attributes:
        names_a, names_b: what identifies each.
        same_series: whether nothing that decides numbers differs but the seed.
        convention, background: under which `scores` and `average` are stated.
        config: settings that decide numbers. other: those that by design do not.
        data: facts of the support set, the preparation and the validation.
        environment: facts of machine and versions that both record. unsaid: keys that one alone does -> `a` or `b`.
        without_environment, without_settings: `a`, `b` where the file is not there or cannot be read.
        cost: seconds and memory of both, whether they differ or not.
        same_numbers: whether all IoU under all conventions, and all counts per image that are known, are equal.
    """

    names_a: dict[str, Any]
    names_b: dict[str, Any]
    same_series: bool
    convention: str
    background: bool
    scores: list[Score]
    average: Score
    config: list[Change]
    other: list[Change]
    data: list[Change]
    fingerprints: list[Change]
    environment: list[Change]
    unsaid: dict[str, str]
    without_environment: list[str]
    without_settings: list[str]
    cost: list[Change]
    learned: Learned
    images: Images
    same_numbers: bool

    @property
    def same_trial(self) -> bool:
        """Whether both have one signature: nothing that decides numbers differs."""
        return bool(self.names_a["signature"] == self.names_b["signature"])


def compare(a: Run, b: Run, convention: str | None = None, background: bool | None = None) -> Comparison:
    """Everything in which two runs differ.

    Args:
        convention, background: of the scores; by default those of `a`.

    Raises:
        ResultError: the two have other classes, or an unknown convention.
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
    environment = changes(*(_environment(each.environment) for each in (a, b)))
    decided_a, decided_b = (dict(flatten(each.config)) for each in (one, other))
    images = compare_images(a.folder, b.folder)
    return Comparison(
        names_a=_names(a), names_b=_names(b), same_series=one.series == other.series, convention=convention,
        background=background,
        scores=[Score(name, left.per_class[name], right.per_class[name]) for name in one.classes],
        average=Score("average", left.average, right.average),
        config=[each for each in changes(decided_a, decided_b) if not each.key.startswith("metric.")],
        other=_other_settings(a, b, {*decided_a, *decided_b}), data=changes(_data(one), _data(other)),
        fingerprints=changes(one.fingerprints, other.fingerprints),
        environment=[each for each in environment if not each.only],
        unsaid={each.key: each.only for each in environment if each.only} if a.environment and b.environment else {},
        without_environment=[name for name, each in (("a", a), ("b", b)) if each.environment is None],
        without_settings=[name for name, each in (("a", a), ("b", b)) if each.settings is None],
        cost=_cost(a.environment, b.environment), learned=compare_learned(a.folder, b.folder), images=images,
        same_numbers=_tables(one) == _tables(other) and not (images.differ or images.only_a or images.only_b),
    )  # fmt: skip


def as_json(found: Comparison) -> dict[str, Any]:
    """The record as JSON values: IoU in 0..1, memory in bytes; of a key that one run lacks, only the other's value."""
    names = [field.name for field in dataclasses.fields(found)]
    record: dict[str, Any] = {"a": found.names_a, "b": found.names_b, "same_trial": found.same_trial}
    record |= {name: _plain(getattr(found, name)) for name in names if name not in ("names_a", "names_b")}
    record["learned"]["equal"] = found.learned.equal
    return record


def _plain(value: Any) -> Any:
    if isinstance(value, Change):
        values = {"a": value.a, "b": value.b}
        return {"key": value.key, **{name: each for name, each in values.items() if value.only in ("", name)}}
    if isinstance(value, Score):
        return {**dataclasses.asdict(value), "difference": value.difference}
    if isinstance(value, Images):
        return {**dataclasses.asdict(value), "differ": [{"id": name, "pixels": count} for name, count in value.differ]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _names(run: Run) -> dict[str, Any]:
    return {"folder": str(run.folder), **{name: getattr(run.result, name) for name in _NAMES}}


def _tables(result: TrialResult) -> dict[str, Any]:
    return {name: table["per_class"] for name, table in result.conventions.items()}


def _data(result: TrialResult) -> dict[str, Any]:
    facts = {"classes": result.classes, "support_ids": result.support_ids, "test_images": result.num_test_images}
    return dict(flatten({**facts, "prepared": result.prepared, "validation": result.validation}))


def _other_settings(a: Run, b: Run, decided: set[str]) -> list[Change]:
    if a.settings is None or b.settings is None:
        return []
    skipped = (*(f"{key}." for key in _TWICE), "metric.")
    return [
        each
        for each in changes(a.settings, b.settings)
        if each.key not in decided and each.key not in _TWICE and not each.key.startswith(skipped)
    ]


def _environment(facts: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in flatten(facts or {}) if not key.startswith((*_COST, *_MOMENT))}


def _cost(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> list[Change]:
    """Seconds and peaks, in the order in which the first one has them."""
    left, right = ({key: value for key, value in flatten(each or {}) if key.startswith(_COST)} for each in (a, b))
    keys = list(dict.fromkeys([*left, *right]))
    return [
        Change(key, left.get(key), right.get(key), "" if key in left and key in right else "a" if key in left else "b")
        for key in keys
        if left.get(key) is not None or right.get(key) is not None
    ]

"""Result files: the only proof that a trial finished.

`result.json` is written last and atomically, is the same bytes for the same trial, and is read strictly: what does
not hold what it declares is no result. `per_image.parquet` beside it keeps the counts that every convention is reduced
from.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from slime_bench.errors import ResultError, SlimeBenchError
from slime_bench.metrics import CONVENTION_RULES
from slime_bench.results import identity
from slime_bench.storage import write_atomic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from slime_bench.metrics.iou import IouCounts

SCHEMA_VERSION: Final = 1
RESULT_FILE: Final = "result.json"
PER_IMAGE_FILE: Final = "per_image.parquet"
_SIGNATURE: Final = re.compile(r"[0-9a-f]{16}")
_PER_IMAGE_COLUMNS: Final = {
    "image_id": "string",
    "class": "string",
    "intersection": "int64",
    "union": "int64",
    "present": "bool",
}
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialResult:
    """One finished trial: one method x backbone x data x shots x seed.

    Attributes:
        schema_version: layout of the file.
        signature: hash of what decides the numbers; `series` is the same without the seed.
        method, backbone, data, subject, preset, protocol: names from the configuration.
        shots, seed: support images, and the seed of every draw.
        convention: the convention that `per_class` and `average` follow.
        background_in_average: whether class 0 takes part in every `average` of the file.
        classes: class names, background first.
        per_class: IoU in 0..1 per class name, None where undefined.
        average: plain mean over the defined classes, None when there is none.
        conventions: for every convention `{"per_class": {name: IoU | None}, "average": IoU | None}`.
        undefined_classes: classes without an IoU under `convention`.
        num_test_images: images behind the numbers.
        support_ids: ids of the support images, in their order.
        validation: what chose the epoch (method's own record).
        config: what decides the numbers, and the metric; no secret, path or fact of the machine.
        fingerprints: content hashes of weights, data and whatever else the configuration only points to.
        prepared: the named choices with which the data set was prepared, e.g. {"rule": "paper"}, as its manifest has
            them; empty for data without. The fingerprint of the data stands for them in the signature.
    """

    schema_version: int
    signature: str
    series: str
    method: str
    backbone: str
    data: str
    subject: str
    shots: int
    seed: int
    preset: str
    protocol: str
    convention: str
    background_in_average: bool
    classes: list[str]
    per_class: dict[str, float | None]
    average: float | None
    conventions: dict[str, dict[str, Any]]
    undefined_classes: list[str]
    num_test_images: int
    support_ids: list[str]
    validation: dict[str, Any]
    config: dict[str, Any]
    fingerprints: dict[str, str]
    prepared: dict[str, str] = dataclasses.field(default_factory=dict)

    def under(self, convention: str, background: bool = True) -> TrialResult:
        """The same trial stated under another convention, without running anything."""
        if convention not in self.conventions:
            raise ResultError(
                "Unknown metric convention.", found=convention, expected=" or ".join(sorted(self.conventions))
            )
        tables = {
            name: {"per_class": part["per_class"], "average": average_of(part["per_class"], self.classes, background)}
            for name, part in self.conventions.items()
        }
        per_class = tables[convention]["per_class"]
        config = {**self.config, "metric": {"convention": convention, "background": background}}
        return dataclasses.replace(
            self,
            convention=convention,
            background_in_average=background,
            per_class=dict(per_class),
            average=tables[convention]["average"],
            conventions=tables,
            undefined_classes=[name for name in self.classes if per_class[name] is None],
            config=config if "metric" in self.config else self.config,
        )


def from_counts(
    counts: IouCounts,
    *,
    config: Mapping[str, Any],
    fingerprints: Mapping[str, str],
    method: str,
    backbone: str,
    data: str,
    subject: str,
    shots: int,
    seed: int,
    preset: str,
    protocol: str,
    classes: Sequence[str],
    convention: str = "slime",
    background: bool = True,
    support_ids: Sequence[str] = (),
    validation: Mapping[str, Any] | None = None,
    prepared: Mapping[str, str] | None = None,
) -> TrialResult:
    """A result from the counts [N,K] of the test images, under all conventions.

    `config` is the resolved configuration as plain values; the signature is taken from it and from `fingerprints`.

    Raises:
        ResultError: counts of another number of classes, or a field that may not stand in a result file.
        ConfigError: see `identity.signature`, or an unknown convention.
    """
    from slime_bench.metrics.iou import CONVENTIONS, reduction

    names = list(classes)
    if counts.num_classes != len(names):
        raise ResultError(
            "The counts do not belong to these classes.",
            found=f"{counts.num_classes} columns",
            expected=f"{len(names)}: {', '.join(names)}",
        )
    reduction(convention)
    tables: dict[str, dict[str, Any]] = {}
    for name, reduce in CONVENTIONS.items():
        values = [None if math.isnan(value) else value for value in reduce(counts).tolist()]
        per_class = dict(zip(names, values, strict=True))
        tables[name] = {"per_class": per_class, "average": average_of(per_class, names, background)}
    chosen: dict[str, float | None] = tables[convention]["per_class"]
    result = TrialResult(
        schema_version=SCHEMA_VERSION,
        signature=identity.signature(config, fingerprints),
        series=identity.series(config, fingerprints),
        method=method,
        backbone=backbone,
        data=data,
        subject=subject,
        shots=shots,
        seed=seed,
        preset=preset,
        protocol=protocol,
        convention=convention,
        background_in_average=background,
        classes=names,
        per_class=dict(chosen),
        average=tables[convention]["average"],
        conventions=tables,
        undefined_classes=[name for name in names if chosen[name] is None],
        num_test_images=counts.num_images,
        support_ids=list(support_ids),
        validation=dict(validation or {}),
        config=identity.recorded(config),
        fingerprints=dict(fingerprints),
        prepared=dict(prepared or {}),
    )
    # What this function hands out can be read back: a mistake shows here and not at the next report.
    return parse_result(to_bytes(result), "(result about to be written)")


def average_of(per_class: Mapping[str, float | None], classes: Sequence[str], background: bool = True) -> float | None:
    """Plain mean over the defined classes, or None; class 0 of `classes` is the background."""
    names = classes if background else classes[1:]
    values = [value for name in names if (value := per_class[name]) is not None]
    return math.fsum(values) / len(values) if values else None


def to_bytes(result: TrialResult) -> bytes:
    """The file's bytes: sorted keys, floats as their shortest exact text, no NaN.

    Raises:
        ResultError: a value that JSON cannot hold.
    """
    try:
        text = json.dumps(dataclasses.asdict(result), sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False)
        return f"{text}\n".encode()
    except (TypeError, ValueError) as error:
        raise ResultError(
            "The result cannot be written as JSON.",
            found=str(error),
            expected="finite numbers, text, lists and mappings; None where a class is undefined",
        ) from error


def write_result(folder: str | Path, result: TrialResult) -> Path:
    """Writes `result.json` into the trial's folder; call it last.

    Raises:
        StorageError: see `write_atomic`.
    """
    path = Path(folder) / RESULT_FILE
    write_atomic(path, to_bytes(result))
    return path


def read_result(path: str | Path) -> TrialResult:
    """The result in the file `path`.

    Raises:
        ResultError: the file cannot be read or does not hold what it declares.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ResultError(
            "The result file cannot be read.", path=path, found=error.strerror or str(error), remedy=_RERUN
        ) from error
    return parse_result(content, path)


def find_finished(folder: str | Path, signature: str) -> TrialResult | None:
    """The valid result of the trial with this signature in `folder`, or None.

    A file that is not a valid result is no reason to stop: it is named in a warning and the trial runs again.
    """
    path = Path(folder) / RESULT_FILE
    if not path.exists():
        return None
    try:
        result = read_result(path)
    except ResultError as error:
        _LOG.warning("This trial runs again, because its result file is not valid.\n%s", error)
        return None
    if result.signature != signature:
        _LOG.warning("This trial runs again: %s belongs to %s, not to %s.", path, result.signature, signature)
        return None
    return result


def write_per_image(path: str | Path, ids: Sequence[str], classes: Sequence[str], counts: IouCounts) -> None:
    """Writes the counts [N,K] as a long table: image_id, class, intersection, union, present; image by image.

    Raises:
        ResultError: ids or classes that do not fit the counts, or are not unique.
        StorageError: see `write_atomic`.
    """
    import pyarrow
    import pyarrow.parquet

    if (len(ids), len(classes)) != (counts.num_images, counts.num_classes):
        raise ResultError(
            "The per-image counts do not fit their ids and classes.",
            path=path,
            found=f"{len(ids)} ids, {len(classes)} classes, counts {[counts.num_images, counts.num_classes]}",
        )
    if len(set(ids)) < len(ids) or len(set(classes)) < len(classes):
        raise ResultError("Image ids and class names have to be unique.", path=path, remedy="Name each image once.")
    counts = counts.cpu()
    table = pyarrow.table(
        {
            "image_id": pyarrow.array([image for image in ids for _ in classes], pyarrow.string()),
            "class": pyarrow.array(list(classes) * len(ids), pyarrow.string()),
            "intersection": counts.intersection.flatten().numpy(),
            "union": counts.union.flatten().numpy(),
            "present": counts.present.flatten().numpy(),
        }
    )
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="snappy")
    write_atomic(path, buffer.getvalue())


def read_per_image(path: str | Path) -> tuple[list[str], list[str], IouCounts]:
    """Ids (N), classes (K) and counts [N,K] of a per-image table.

    Raises:
        ResultError: see `read_per_image_arrays`.
    """
    import torch

    from slime_bench.metrics.iou import IouCounts

    ids, classes, *arrays = read_per_image_arrays(path)
    return ids, classes, IouCounts(*map(torch.from_numpy, arrays))


def read_per_image_arrays(
    path: str | Path,
) -> tuple[list[str], list[str], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """As `read_per_image`, with intersection, union and presence [N,K] as NumPy arrays: a report needs no torch.

    Raises:
        ResultError: unreadable, other columns, or not every class once for every image.
    """
    import pyarrow
    import pyarrow.parquet

    path = Path(path)
    try:
        frame = pyarrow.parquet.read_table(io.BytesIO(path.read_bytes()))
    except (OSError, pyarrow.ArrowException) as error:
        raise ResultError("The per-image table cannot be read.", path=path, found=str(error), remedy=_RERUN) from error
    columns = {field.name: str(field.type) for field in frame.schema}
    if columns != _PER_IMAGE_COLUMNS or any(column.null_count for column in frame.columns):
        raise ResultError(
            "The per-image table has other columns, or gaps.",
            path=path,
            found=columns,
            expected=f"{_PER_IMAGE_COLUMNS} without gaps",
            remedy=_RERUN,
        )
    images, names = frame["image_id"].to_pylist(), frame["class"].to_pylist()
    ids, classes = list(dict.fromkeys(images)), list(dict.fromkeys(names))
    if images != [image for image in ids for _ in classes] or names != classes * len(ids):
        raise ResultError(
            "The per-image table does not have every class once for every image.",
            path=path,
            found=f"{frame.num_rows} rows, {len(ids)} images, {len(classes)} classes",
            remedy=_RERUN,
        )
    # Copies, because pyarrow's own arrays are read-only.
    intersection, union, present = (
        frame[name].to_numpy().reshape(len(ids), len(classes)).copy() for name in ("intersection", "union", "present")
    )
    return ids, classes, intersection, union, present


def parse_result(content: bytes, path: str | Path) -> TrialResult:
    """The result in `content`; `path` only names it in errors.

    Raises:
        ResultError: not JSON, an unknown, missing or ill-typed field, or fields that contradict each other.
    """

    def no_constant(name: str) -> Any:
        raise ValueError(f"{name} is no number of a result file")

    try:
        fields = json.loads(content.decode(), parse_constant=no_constant, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise ResultError("The result file is not valid JSON.", path=path, found=str(error), remedy=_RERUN) from error
    if not isinstance(fields, dict):
        raise _wrong(path, "(whole file)", type(fields).__name__, "an object")
    version = fields.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise ResultError(
            "The result file was written by another version of slime-bench.",
            path=path,
            found=f"schema_version {version!r}",
            expected=f"schema_version {SCHEMA_VERSION}",
            remedy="Run the trial again with this version, or read the file with the version that wrote it.",
        )
    fields.setdefault("prepared", {})  # results of before there were prepared data sets lack it
    unknown, missing = sorted(set(fields) - set(_CHECKS)), sorted(set(_CHECKS) - set(fields))
    if unknown or missing:
        raise _wrong(path, "fields", f"unknown {unknown}, missing {missing}", "the fields of TrialResult")
    for name, (check, expected) in _CHECKS.items():
        if not check(fields[name]):
            raise _wrong(path, name, _short(fields[name]), expected)
    result = TrialResult(**fields)
    _check_consistency(result, path)
    return result


_RERUN: Final = "Delete the trial's folder and run the trial again."


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_iou(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(_is_text(item) for item in value) and len(set(value)) == len(value)


def _is_ious(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_iou(item) for item in value.values())


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_finite(item) for item in value.values())
    if isinstance(value, list):
        return all(_is_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)


def _is_record(value: Any) -> bool:
    return isinstance(value, dict) and _is_finite(value)


def _is_conventions(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == set(CONVENTION_RULES)
        and all(isinstance(part, dict) and set(part) == {"per_class", "average"} for part in value.values())
        and all(_is_ious(part["per_class"]) and _is_iou(part["average"]) for part in value.values())
    )


def _is_signature(value: Any) -> bool:
    return isinstance(value, str) and _SIGNATURE.fullmatch(value) is not None


_TEXT: Final[tuple[Callable[[Any], bool], str]] = (_is_text, "text")
_COUNT: Final[tuple[Callable[[Any], bool], str]] = (_is_count, "a whole number of 0 or more")
_HASH: Final[tuple[Callable[[Any], bool], str]] = (_is_signature, "16 hexadecimal digits")
_CHECKS: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "schema_version": _COUNT,
    "signature": _HASH,
    "series": _HASH,
    "method": _TEXT,
    "backbone": _TEXT,
    "data": _TEXT,
    "subject": _TEXT,
    "shots": _COUNT,
    "seed": _COUNT,
    "preset": _TEXT,
    "protocol": _TEXT,
    "convention": (lambda value: isinstance(value, str) and value in CONVENTION_RULES, " or ".join(CONVENTION_RULES)),
    "background_in_average": (lambda value: isinstance(value, bool), "true or false"),
    "classes": (lambda value: _is_texts(value) and len(value) > 0, "distinct class names"),
    "per_class": (_is_ious, "a number in 0..1 or null per class"),
    "average": (_is_iou, "a number in 0..1 or null"),
    "conventions": (_is_conventions, f"per_class and average for each of {', '.join(CONVENTION_RULES)}"),
    "undefined_classes": (_is_texts, "distinct class names"),
    "num_test_images": (lambda value: _is_count(value) and value > 0, "a whole number above 0"),
    # By the second paper's choice an image may stand for two classes, and then comes twice.
    "support_ids": (lambda value: isinstance(value, list) and all(map(_is_text, value)), "image ids"),
    "validation": (_is_record, "an object of finite values"),
    "config": (_is_record, "an object of finite values"),
    "prepared": (
        lambda value: isinstance(value, dict) and all(_is_text(item) for item in value.values()),
        "text for each choice",
    ),
    "fingerprints": (
        lambda value: isinstance(value, dict) and all(_is_text(item) for item in value.values()),
        "text per name",
    ),
}


def _check_consistency(result: TrialResult, path: str | Path) -> None:
    for name, part in result.conventions.items():
        where = f"conventions.{name}"
        if set(part["per_class"]) != set(result.classes):
            found = sorted(part["per_class"])
            raise _wrong(path, f"{where}.per_class", found, f"the classes {sorted(result.classes)}")
        mean = average_of(part["per_class"], result.classes, result.background_in_average)
        if not _same(part["average"], mean):
            raise _wrong(path, f"{where}.average", part["average"], f"{mean}, the mean of per_class")
    chosen = result.conventions[result.convention]
    if result.per_class != chosen["per_class"]:
        raise _wrong(path, "per_class", result.per_class, f"the values of convention {result.convention}")
    if not _same(result.average, chosen["average"]):
        raise _wrong(path, "average", result.average, f"{chosen['average']}, the mean of per_class")
    undefined = [name for name in result.classes if result.per_class[name] is None]
    if result.undefined_classes != undefined:
        raise _wrong(path, "undefined_classes", result.undefined_classes, undefined)


def _same(left: float | None, right: float | None) -> bool:
    if left is None or right is None:
        return left is right
    return math.isclose(left, right, rel_tol=0.0, abs_tol=1e-12)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("an object names a key twice")
    return fields


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:197] + "..."


def _wrong(path: str | Path, field: str, found: object, expected: object) -> SlimeBenchError:
    return ResultError(
        f"The result file does not hold what it declares, in `{field}`.",
        path=path,
        found=found,
        expected=expected,
        remedy=_RERUN,
    )

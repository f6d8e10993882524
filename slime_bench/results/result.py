"""Result files: the only proof that a trial finished.

A result is written here: `result.json`, last and atomically, the same bytes for the same trial.
`per_image.parquet` beside it keeps the counts that every convention is reduced from.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from slime_bench.errors import ResultError
from slime_bench.results import identity
from slime_bench.storage import write_atomic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from slime_bench.metrics.iou import IouCounts

SCHEMA_VERSION: Final = 1
RESULT_FILE: Final = "result.json"
PER_IMAGE_FILE: Final = "per_image.parquet"
_LOG = logging.getLogger(__name__)


_STRICT: Final = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Iou = Annotated[float, Field(ge=0, le=1)] | None


class Table(TypedDict):
    """IoU in 0..1 by class name, None where undefined, and their plain mean."""

    per_class: dict[str, Iou]
    average: Iou


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
        conventions: the table of every convention.
        undefined_classes: classes without an IoU under `convention`.
        num_test_images: images behind the numbers.
        support_ids: ids of the support images, in their order.
        validation: what chose the epoch (method's own record).
        config: what decides the numbers, and the metric; no secret, path or fact of the machine.
        fingerprints: content hashes of weights, data and whatever else the configuration only points to.
        prepared: the named choices with which the data set was prepared, e.g. {"rule": "paper"}, as its manifest has
            them; empty for data without. The fingerprint of the data stands for them in the signature.
        facts: what tables say of the method, as its class declares it: see `MethodDescription.facts`.
    """

    __pydantic_config__ = _STRICT

    schema_version: int
    signature: Hash
    series: Hash
    method: str
    backbone: str
    data: str
    subject: str
    shots: Annotated[int, Field(ge=0)]
    seed: Annotated[int, Field(ge=0)]
    preset: str
    protocol: str
    convention: str
    background_in_average: bool
    classes: Annotated[list[str], Field(min_length=1)]
    per_class: dict[str, Iou]
    average: Iou
    conventions: dict[str, Table]
    undefined_classes: list[str]
    num_test_images: Annotated[int, Field(ge=1)]
    config: dict[str, Any]
    fingerprints: dict[str, str]
    support_ids: list[str] = dataclasses.field(default_factory=list)
    validation: dict[str, Any] = dataclasses.field(default_factory=dict)
    prepared: dict[str, str] = dataclasses.field(default_factory=dict)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def under(self, convention: str, background: bool = True) -> TrialResult:
        """The same trial stated under another convention, without running anything."""
        parts = {name: table["per_class"] for name, table in self.conventions.items()}
        metric = {"metric": {"convention": convention, "background": background}} if "metric" in self.config else {}
        stated = _stated(parts, self.classes, convention, background)
        return dataclasses.replace(self, **stated, config=self.config | metric)


def from_counts(
    counts: IouCounts,
    *,
    config: Mapping[str, Any],
    fingerprints: Mapping[str, str],
    classes: Sequence[str],
    convention: str = "slime",
    background: bool = True,
    signature: str | None = None,
    series: str | None = None,
    **facts: Any,
) -> TrialResult:
    """A result from the counts [N,K] of the test images, under all conventions.

    Args:
        config: see `identity.recorded`. signature, series: by default those of `config` and `fingerprints`.
        facts: the other fields of `TrialResult`.
    """
    from slime_bench.metrics.iou import CONVENTIONS

    names, parts = list(classes), dict[str, dict[str, float | None]]()
    for name, reduce in CONVENTIONS.items():
        values = [None if math.isnan(value) else value for value in reduce(counts).tolist()]
        parts[name] = dict(zip(names, values, strict=True))
    decided = {key: value for key, value in config.items() if key != "metric"}
    unseeded = {key: value for key, value in decided.items() if key != "seed"}
    return TrialResult(
        schema_version=SCHEMA_VERSION, signature=signature or identity.signature_of(decided, fingerprints),
        series=series or identity.signature_of(unseeded, fingerprints), classes=names,
        num_test_images=counts.num_images, config=dict(config), fingerprints=dict(fingerprints),
        **_stated(parts, names, convention, background), **facts,
    )  # fmt: skip


def _stated(
    parts: Mapping[str, Mapping[str, Iou]], classes: Sequence[str], convention: str, background: bool
) -> dict[str, Any]:
    """The fields that follow the convention and the background. parts: convention -> IoU by class."""
    tables = {
        name: {"per_class": dict(part), "average": average_of(part, classes, background)}
        for name, part in parts.items()
    }
    return {
        "convention": convention, "background_in_average": background, **tables[convention], "conventions": tables,
        "undefined_classes": [name for name in classes if parts[convention][name] is None],
    }  # fmt: skip


def average_of(per_class: Mapping[str, float | None], classes: Sequence[str], background: bool = True) -> float | None:
    """Plain mean over the defined classes, or None; class 0 of `classes` is the background."""
    names = classes if background else classes[1:]
    values = [value for name in names if (value := per_class[name]) is not None]
    return math.fsum(values) / len(values) if values else None


def write_result(folder: str | Path, result: TrialResult) -> Path:
    """Writes `result.json` into the trial's folder; call it last. Keys are sorted, floats their shortest exact text."""
    path = Path(folder) / RESULT_FILE
    text = json.dumps(dataclasses.asdict(result), sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False)
    write_atomic(path, f"{text}\n".encode())
    return path


def read_result(path: str | Path) -> TrialResult:
    """The result in the file `path`.

    Raises:
        ResultError: unreadable, not JSON, another version's file, or an unknown, missing or ill-typed field.
    """
    try:
        content = Path(path).read_bytes()
        version = dict(json.loads(content)).get("schema_version")
        if version != SCHEMA_VERSION:
            raise ResultError(
                "The result file was written by another version of slime-bench.", path=path,
                found=f"schema_version {version!r}", expected=f"schema_version {SCHEMA_VERSION}",
                remedy="Run the trial again with this version, or read the file with the version that wrote it.",
            )  # fmt: skip
        return _adapter().validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ResultError(
            f"The result file does not hold what it declares, in `{'.'.join(map(str, first['loc']))}`.",
            path=path, found=first["input"], expected=first["msg"], remedy=_RERUN,
        ) from error  # fmt: skip
    except (OSError, ValueError, TypeError) as error:
        raise ResultError("The result file cannot be read.", path=path, found=str(error), remedy=_RERUN) from error


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
    """Writes the counts [N,K] as a long table: image_id, class, intersection, union, present; image by image."""
    import pyarrow
    import pyarrow.parquet

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
    """Ids (N), classes (K) and counts [N,K] of a per-image table. Raises as `read_per_image_arrays`."""
    import torch

    from slime_bench.metrics.iou import IouCounts

    ids, classes, *arrays = read_per_image_arrays(path)
    return ids, classes, IouCounts(*map(torch.from_numpy, arrays))


def read_per_image_arrays(
    path: str | Path,
) -> tuple[list[str], list[str], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """As `read_per_image`, with intersection, union and presence [N,K] as NumPy arrays: a report needs no torch.

    Raises:
        ResultError: a file that is not there, or damaged.
    """
    import pyarrow
    import pyarrow.parquet

    path = Path(path)
    try:
        frame = pyarrow.parquet.read_table(io.BytesIO(path.read_bytes()))
        ids, classes = (list(dict.fromkeys(frame[name].to_pylist())) for name in ("image_id", "class"))
        # Copies, because pyarrow's own arrays are read-only.
        intersection, union, present = (
            frame[name].to_numpy().reshape(len(ids), len(classes)).copy()
            for name in ("intersection", "union", "present")
        )
    except (OSError, KeyError, ValueError, pyarrow.ArrowException) as error:
        raise ResultError("The per-image table cannot be read.", path=path, found=str(error), remedy=_RERUN) from error
    return ids, classes, intersection, union, present


@functools.cache
def _adapter() -> TypeAdapter[TrialResult]:
    return TypeAdapter(TrialResult)


_RERUN: Final = "Delete the trial's folder and run the trial again."

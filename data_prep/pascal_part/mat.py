"""PASCAL-Part's annotation files: one MATLAB 5 file per picture, `anno` -> objects -> parts, each with a mask.

Layout (protocol.md 2.1): `anno[0,0]` has `imname` and `objects` (1,N); an object has `class`, `class_ind`, `mask` [H,W]
and `parts` (1,P), or (0,0) where the object has none; a part has `part_name` and `mask` [H,W].
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.pascal_part.mat5 import REMEDY, plain_content, unreadable
from slime_bench.errors import DataError


@dataclass(frozen=True)
class Part:
    """A named part of an object; `mask` is bool [H,W] in the picture's frame."""

    name: str
    mask: np.ndarray


@dataclass(frozen=True)
class PartObject:
    """An annotated object: its VOC class, its mask (bool [H,W], may be empty) and its parts in the file's order."""

    name: str
    mask: np.ndarray
    parts: tuple[Part, ...]


def read_annotation(path: Path) -> tuple[PartObject, ...]:
    """The objects of one file, in its order; all masks have the same [H,W]. An empty tuple: no objects.

    Raises:
        DataError: missing, empty, cut short, of another kind or version (MATLAB 7.3 is HDF5), without the layout above,
            masks with other values than 0 and 1, or of different sizes.
    """
    anno = _load(path)
    record = anno.reshape(-1)[0] if anno.size == 1 and anno.dtype.names else None
    if record is None:
        raise _odd(path, f"`anno` is {_shape(anno)}", "one struct with the fields imname and objects")
    objects = tuple(
        PartObject(
            _text(_field(path, item, "class", f"object {number}"), path, f"object {number}: class"),
            _mask(_field(path, item, "mask", f"object {number}"), path, f"object {number}"),
            _parts(path, _field(path, item, "parts", f"object {number}"), number),
        )
        for number, item in enumerate(_items(path, _field(path, record, "objects", "anno"), "objects"), start=1)
    )
    _check_sizes(path, objects)
    return objects


def _parts(path: Path, array: np.ndarray, number: int) -> tuple[Part, ...]:
    found = []
    for index, item in enumerate(_items(path, array, f"object {number}: parts"), start=1):
        where = f"object {number}, part {index}"
        name = _text(_field(path, item, "part_name", where), path, f"{where}: part_name")
        found.append(Part(name, _mask(_field(path, item, "mask", where), path, f"{where} ({name})")))
    return tuple(found)


def _items(path: Path, array: Any, what: str) -> list[Any]:
    """The records of a (1,N) struct array; MATLAB writes none of them as an empty array of any type."""
    if isinstance(array, np.ndarray) and array.size == 0:
        return []
    if not isinstance(array, np.ndarray) or array.dtype.names is None:
        raise _odd(path, f"{what}: {_shape(array)}", "a struct array")
    return list(array.reshape(-1))


def _field(path: Path, record: Any, name: str, what: str) -> Any:
    names = record.dtype.names or ()
    if name not in names:
        raise _odd(path, f"{what} has the fields {', '.join(names) or 'none'}", f"a field `{name}`")
    return record[name]


def _text(value: Any, path: Path, what: str) -> str:
    array = np.asarray(value)
    if array.dtype.kind != "U" or array.size != 1 or not array.reshape(-1)[0]:
        raise _odd(path, f"{what}: {_shape(array)}", "a name")
    return str(array.reshape(-1)[0])


def _mask(value: Any, path: Path, what: str) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim != 2 or array.dtype.kind not in "buif":
        raise _odd(path, f"{what}: mask is {_shape(array)}", "a mask [H,W] of 0 and 1")
    mask = array == 1
    strangers = array[~mask & (array != 0)]
    if strangers.size:
        raise _odd(path, f"{what}: mask holds {np.unique(strangers)[:5].tolist()}", "a mask of 0 and 1")
    return mask


def _check_sizes(path: Path, objects: tuple[PartObject, ...]) -> None:
    sizes: dict[tuple[int, ...], str] = {}
    for number, item in enumerate(objects, start=1):
        sizes.setdefault(item.mask.shape, f"object {number} ({item.name})")
        for part in item.parts:
            sizes.setdefault(part.mask.shape, f"object {number}, part {part.name}")
    if len(sizes) > 1:
        found = "; ".join(f"{what}: {shape[1]}x{shape[0]}" for shape, what in sizes.items())
        raise DataError(
            "masks of one annotation differ in size",
            path=path,
            found=found,
            expected="the picture's width x height for every mask",
            remedy=REMEDY,
        )


def _load(path: Path) -> np.ndarray:
    from scipy.io import loadmat

    content = plain_content(path)
    try:
        found = loadmat(io.BytesIO(content), variable_names=["anno"])
    except Exception as error:  # scipy lets through whatever its bytes lead to: ValueError, KeyError, MemoryError
        raise unreadable(path, f"{type(error).__name__}: {error}") from error
    if "anno" not in found:
        raise _odd(path, "no variable `anno`", "a PASCAL-Part annotation")
    return np.asarray(found["anno"])


def _odd(path: Path, found: str, expected: str) -> DataError:
    return DataError(
        "the annotation has another layout than PASCAL-Part's",
        path=path,
        found=found,
        expected=expected,
        remedy=REMEDY,
    )


def _shape(value: Any) -> str:
    array = np.asarray(value)
    return f"{'x'.join(map(str, array.shape)) or 'one'} {'struct' if array.dtype.names else array.dtype}"

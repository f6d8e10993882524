"""The annotations of one picture: PASCAL-Part's `.mat` and VOC's `.xml`.

Layout of a `.mat` (protocol.md 2.1), a MATLAB 5 file: `anno[0,0]` has `imname` and `objects` (1,N); an object has
`class`, `class_ind`, `mask` [H,W] and `parts` (1,P), or (0,0) where the object has none; a part has `part_name` and
`mask` [H,W].
"""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import numpy as np

from data_prep.pascal_part.boxes import Box
from slime_bench.errors import DataError

MAX_BYTES: Final = 1 << 29
"""Most that one variable of a `.mat` may hold once inflated: 512 MiB, about eighty times the largest real ones."""

_MAT: Final = "unpack the annotations again, or remove the file: a picture without one is counted and passed over"
_XML: Final = "unpack VOC2010 again; the rule `slime_lab` needs no XML files"
# VOC declares neither; refused, as entities can make a small file large.
_DECLARATION = re.compile(rb"<!\s*(DOCTYPE|ENTITY)", re.IGNORECASE)


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
            remedy=_MAT,
        )


def _load(path: Path) -> np.ndarray:
    from scipy.io import loadmat

    content = _read(path, _MAT)
    _check_whole(path, content)
    try:
        found = loadmat(io.BytesIO(content), variable_names=["anno"])
    except Exception as error:  # scipy lets through whatever its bytes lead to: ValueError, KeyError, MemoryError
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    if "anno" not in found:
        raise _odd(path, "no variable `anno`", "a PASCAL-Part annotation")
    return np.asarray(found["anno"])


def _check_whole(path: Path, content: bytes) -> None:
    """Refuse a file that was cut or changed, by its lengths and the checksums of its deflated variables: scipy takes
    some of these for shorter masks. What has no checksum is scipy's to find out, in a worker process.

    Layout: 128 bytes of header, then variables, each a tag (type, bytes) and its bytes; type 15 is deflated.
    """
    if content[:10] == b"MATLAB 7.3" or b"\x89HDF\r\n\x1a\n" in (content[:8], content[512:520]):
        raise DataError(
            "the annotation is a MATLAB 7.3 file, which is HDF5",
            path=path,
            found="HDF5",
            expected="a MATLAB 5 file, as PASCAL-Part is published",
            remedy="take the published file, or save it again in MATLAB with `save(file, 'anno', '-v7')`",
        )
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        found = f"{len(content)} bytes that are no MATLAB 5 file" if content else "an empty file"
        raise _unreadable(path, found)
    start = 128
    while start < len(content):
        if start + 8 > len(content):
            raise _unreadable(path, f"a file that ends within a variable, after {len(content)} bytes")
        kind, length = struct.unpack_from(f"{order}II", content, start)
        end = start + 8 + length
        if end > len(content):
            raise _unreadable(path, f"a file that ends after {len(content)} of {end} bytes")
        if kind == 15:
            stream = zlib.decompressobj()
            try:
                stream.decompress(content[start + 8 : end], MAX_BYTES)
            except zlib.error as error:
                raise _unreadable(path, f"damaged bytes ({error})") from error
            if stream.unconsumed_tail:
                raise _unreadable(path, f"a file that inflates to an absurd size, more than {MAX_BYTES >> 20} MiB")
            if not stream.eof or stream.unused_data:
                raise _unreadable(path, "a deflated variable without its end, or with bytes after it")
        elif kind != 14:
            raise _unreadable(path, f"a variable of the unknown type {kind} at byte {start}")
        start = end


def _read(path: Path, remedy: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        what = "the box annotation" if path.suffix == ".xml" else "the annotation"
        found = "nothing" if isinstance(error, FileNotFoundError) else error.strerror
        raise DataError(f"cannot read {what}", path=path, found=found, remedy=remedy) from error


def _unreadable(path: Path, found: str) -> DataError:
    return DataError(
        "cannot read the annotation", path=path, found=found, expected="a complete MATLAB 5 file", remedy=_MAT
    )


def _odd(path: Path, found: str, expected: str) -> DataError:
    return DataError(
        "the annotation has another layout than PASCAL-Part's",
        path=path,
        found=found,
        expected=expected,
        remedy=_MAT,
    )


def _shape(value: Any) -> str:
    array = np.asarray(value)
    return f"{'x'.join(map(str, array.shape)) or 'one'} {'struct' if array.dtype.names else array.dtype}"


@dataclass(frozen=True)
class VocObject:
    """One annotated object: class, box, and whether VOC calls it difficult or cut by the picture's edge."""

    name: str
    box: Box
    difficult: bool
    truncated: bool


def read_voc(path: Path) -> tuple[VocObject, ...]:
    """The objects of one file in its order; the boxes of their own `<part>`s are not objects.

    Coordinates with decimals, which some editions have, are rounded. Boxes are not compared with the picture's size.

    Raises:
        DataError: missing, not XML, or an object without a name or without a box of at least one pixel.
    """
    content = _read(path, _XML)
    if _DECLARATION.search(content):
        raise _odd_xml(path, "a document type or entity declaration")
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(
            "cannot read the box annotation",
            path=path,
            found=f"{len(content)} bytes that are no XML ({error})",
            expected="a complete XML file",
            remedy=_XML,
        ) from error
    return tuple(_object(path, number, item) for number, item in enumerate(root.findall("object"), start=1))


def _object(path: Path, number: int, item: ElementTree.Element) -> VocObject:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise _odd_xml(path, f"object {number} has no name")
    xmin, ymin, xmax, ymax = (_number(path, number, item, end) for end in ("xmin", "ymin", "xmax", "ymax"))
    box = Box(xmin - 1, ymin - 1, xmax, ymax)
    if box.width < 1 or box.height < 1:
        raise _odd_xml(path, f"object {number} ({name}): box {xmin} {ymin} {xmax} {ymax}")
    flags = [(item.findtext(flag) or "0").strip() == "1" for flag in ("difficult", "truncated")]
    return VocObject(name, box, *flags)


def _number(path: Path, number: int, item: ElementTree.Element, end: str) -> int:
    text = item.findtext(f"bndbox/{end}")
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _odd_xml(path, f"object {number}: {end} is {text!r}")
    return round(value)


def _odd_xml(path: Path, found: str) -> DataError:
    return DataError(
        "the box annotation has another layout than VOC's",
        path=path,
        found=found,
        expected="<object> with <name> and <bndbox> of <xmin> <ymin> <xmax> <ymax>, from 1, both ends inside",
        remedy=_XML,
    )

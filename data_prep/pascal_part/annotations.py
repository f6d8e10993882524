"""The annotations of one picture: PASCAL-Part's `.mat` and VOC's `.xml`.

Layout of a `.mat` (protocol.md 2.1), a MATLAB 5 file: `anno[0,0]` has `imname` and `objects` (1,N); an object has
`class`, `class_ind`, `mask` [H,W] and `parts` (1,P), or (0,0) where the object has none; a part has `part_name` and
`mask` [H,W].
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from data_prep.pascal_part.boxes import Box
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


@dataclass(frozen=True)
class VocObject:
    """One annotated object: class, box, and whether VOC calls it difficult or cut by the picture's edge."""

    name: str
    box: Box
    difficult: bool
    truncated: bool


def read_annotation(path: Path) -> tuple[PartObject, ...]:
    """The objects of one `.mat`, in its order; all masks have the same [H,W]. An empty tuple: no objects.

    Raises:
        DataError: missing, cut short or changed, of another kind or version (MATLAB 7.3 is HDF5), without the layout
            above, masks with other values than 0 and 1, or of different sizes.
    """
    from scipy.io import loadmat

    try:
        content = path.read_bytes()
        _check_whole(content)
        record = loadmat(io.BytesIO(content), variable_names=["anno"])["anno"][0, 0]
        objects = tuple(
            PartObject(
                _name(item["class"]),
                _mask(item["mask"]),
                # MATLAB writes no parts as an empty array of any type.
                tuple(Part(_name(part["part_name"]), _mask(part["mask"])) for part in item["parts"].reshape(-1)),
            )
            for item in record["objects"].reshape(-1)
        )
        shapes = {mask.shape for item in objects for mask in (item.mask, *(part.mask for part in item.parts))}
        if len(shapes) > 1:
            raise ValueError(f"masks differ in size: {sorted(shapes)}")
    except Exception as error:  # scipy lets through whatever its bytes lead to
        raise DataError(
            "cannot read the annotation", path=path, found=f"{type(error).__name__}: {error}",
            expected="a complete MATLAB 5 file (7.3 is another format) in the layout of PASCAL-Part, with masks of 0 "
            "and 1 of one size",
            remedy="unpack the annotations again, or remove the file: a picture without one is counted and passed over",
        ) from error  # fmt: skip
    return objects


def _check_whole(content: bytes) -> None:
    """Refuse a file that was cut or changed, by its lengths and the checksums of its deflated variables: scipy takes
    some of these for shorter masks. What has no checksum is scipy's to find out, in a worker process.

    Layout: 128 bytes of header, then variables, each a tag (type, bytes) and its bytes; type 15 is deflated.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        raise ValueError(f"{len(content)} bytes that are no MATLAB 5 file")
    start = 128
    while start < len(content):
        kind, length = struct.unpack_from(f"{order}II", content, start)
        end = start + 8 + length
        if end > len(content) or kind not in (14, 15):
            raise ValueError(f"a file that is cut or damaged: type {kind} up to byte {end} of {len(content)}")
        if kind == 15:
            zlib.decompress(content[start + 8 : end])
        start = end


def _name(array: np.ndarray) -> str:
    name = array.item()
    if not isinstance(name, str):
        raise ValueError(f"{name!r} in place of a name")
    return name


def _mask(array: np.ndarray) -> np.ndarray:
    mask = array == 1
    if array.ndim != 2 or (array[~mask] != 0).any():
        raise ValueError(f"a mask {list(array.shape)} with values {np.unique(array)[:5].tolist()}")
    return mask


def read_voc(path: Path) -> tuple[VocObject, ...]:
    """The objects of one `.xml` in its order; the boxes of their own `<part>`s are not objects.

    Coordinates with decimals, which some editions have, are rounded. Boxes are not compared with the picture's size.

    Raises:
        DataError: missing, not XML, or an object without a name or without a box of at least one pixel.
    """
    try:
        return tuple(_voc_object(item) for item in ElementTree.fromstring(path.read_bytes()).findall("object"))
    except (OSError, ElementTree.ParseError, ValueError, LookupError, OverflowError) as error:
        raise DataError(
            "cannot read the box annotation", path=path, found=error,
            expected="a complete XML file, <object> with <name> and <bndbox> of <xmin> <ymin> <xmax> <ymax>, from 1, "
            "both ends inside",
            remedy="unpack VOC2010 again; the rule `slime_lab` needs no XML files",
        ) from error  # fmt: skip


def _voc_object(item: ElementTree.Element) -> VocObject:
    name = (item.findtext("name") or "").strip()
    xmin, ymin, xmax, ymax = (
        round(float(item.findtext(f"bndbox/{e}") or "")) for e in ("xmin", "ymin", "xmax", "ymax")
    )
    box = Box(xmin - 1, ymin - 1, xmax, ymax)
    if not name or box.width < 1 or box.height < 1:
        raise ValueError(f"an object {name!r} with the box {xmin} {ymin} {xmax} {ymax}")
    flags = [(item.findtext(flag) or "0").strip() == "1" for flag in ("difficult", "truncated")]
    return VocObject(name, box, *flags)

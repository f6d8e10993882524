"""VOC's object boxes: `Annotations/<id>.xml`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from data_prep.pascal_part.boxes import Box
from slime_bench.errors import DataError

_REMEDY: Final = "unpack VOC2010 again; the rule `slime_lab` needs no XML files"
# VOC declares neither; refused, as entities can make a small file large.
_DECLARATION = re.compile(rb"<!\s*(DOCTYPE|ENTITY)", re.IGNORECASE)


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
    try:
        content = path.read_bytes()
    except OSError as error:
        found = "nothing" if isinstance(error, FileNotFoundError) else error.strerror
        raise DataError("cannot read the box annotation", path=path, found=found, remedy=_REMEDY) from error
    if _DECLARATION.search(content):
        raise _odd(path, "a document type or entity declaration")
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(
            "cannot read the box annotation",
            path=path,
            found=f"{len(content)} bytes that are no XML ({error})",
            expected="a complete XML file",
            remedy=_REMEDY,
        ) from error
    return tuple(_object(path, number, item) for number, item in enumerate(root.findall("object"), start=1))


def _object(path: Path, number: int, item: ElementTree.Element) -> VocObject:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise _odd(path, f"object {number} has no name")
    xmin, ymin, xmax, ymax = (_number(path, number, item, end) for end in ("xmin", "ymin", "xmax", "ymax"))
    box = Box(xmin - 1, ymin - 1, xmax, ymax)
    if box.width < 1 or box.height < 1:
        raise _odd(path, f"object {number} ({name}): box {xmin} {ymin} {xmax} {ymax}")
    flags = [(item.findtext(flag) or "0").strip() == "1" for flag in ("difficult", "truncated")]
    return VocObject(name, box, *flags)


def _number(path: Path, number: int, item: ElementTree.Element, end: str) -> int:
    text = item.findtext(f"bndbox/{end}")
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _odd(path, f"object {number}: {end} is {text!r}")
    return round(value)


def _odd(path: Path, found: str) -> DataError:
    return DataError(
        "the box annotation has another layout than VOC's",
        path=path,
        found=found,
        expected="<object> with <name> and <bndbox> of <xmin> <ymin> <xmax> <ymax>, from 1, both ends inside",
        remedy=_REMEDY,
    )

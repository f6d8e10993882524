"""Where the files of VOC2010 and PASCAL-Part lie, what VOC's image lists say, and how their pictures are read.

Nothing here imports torch, which worker processes need not load.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from data_prep.archive import opened
from slime_bench.data.reading import DECODING_ERRORS
from slime_bench.errors import DataError

IMAGES, BOXES, LISTS = "JPEGImages", "Annotations", "ImageSets/Main"
_DEPTH = 4
_VOC_MEMBER = re.compile(
    rf"(^|/)({IMAGES}/[^/]+\.jpg|{BOXES}/[^/]+\.xml|{LISTS}/(car|horse)_(train|val)\.txt)$", re.IGNORECASE
)
_LISTS: Final = {"support": "train", "test": "val"}
"""Split -> the list that it comes from; `val` is taken out of the support pool later."""


@dataclass(frozen=True)
class Entry:
    """One line of an image list: the picture's id, and 1 = shows the class, 0 = only difficult ones, -1 = does not."""

    id: str
    flag: int


def find_voc(source: Path, work: Path) -> Path:
    """The VOC2010 folder (with JPEGImages and ImageSets/Main) that `source` is or holds; archives are unpacked below
    `work`, as far as the two subjects need them.

    Raises:
        DataError: nothing there, a faulty archive, or no such folder in it. StorageError: `work` cannot be written.
    """
    folder = opened(source, work, lambda member: _VOC_MEMBER.search(member) is not None)
    found = [each for each in _folders(folder) if (each / LISTS).is_dir()]
    return _only(source, found, "VOC2010", f"a folder with {IMAGES} and {LISTS}")


def find_parts(source: Path, work: Path) -> Path:
    """The folder of `.mat` files that `source` is or holds, as `find_voc`."""
    folder = opened(source, work, lambda member: member.lower().endswith(".mat"))
    found = [each for each in _folders(folder) if next(each.glob("*.mat"), None) is not None]
    return _only(source, found, "Annotations_Part", "a folder of .mat files (Annotations_Part)")


def read_list(path: Path) -> list[Entry]:
    """The lines of one list, in its order.

    Raises:
        DataError: missing, no text, a line that is not `id flag`, an id that is no file name, or one listed twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        found = "nothing" if isinstance(error, FileNotFoundError) else str(error)
        raise DataError(
            "cannot read the image list",
            path=path,
            found=found,
            expected="VOC2010's list of this class and split",
            remedy="unpack VOC2010 again; name its folder, which holds ImageSets, with --voc",
        ) from error
    entries: dict[str, Entry] = {}
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        if (
            len(fields) != 2
            or fields[1] not in ("-1", "0", "1")
            or fields[0].startswith(".")
            or set(fields[0]) & set("/\\\0")
        ):
            raise _odd_list(path, f"line {number}: {line.strip()!r}")
        if fields[0] in entries:
            raise _odd_list(path, f"line {number}: {fields[0]} for the second time")
        entries[fields[0]] = Entry(fields[0], int(fields[1]))
    if not entries:
        raise _odd_list(path, "an empty file")
    return list(entries.values())


def read_lists(voc: Path, subject: str, splits: Sequence[str] = tuple(_LISTS)) -> dict[str, list[Entry]]:
    """Provisional split -> the entries of its list that are not -1: `support` from `<subject>_train`, `test` from
    `<subject>_val`.

    Raises:
        DataError: as `read_list`; no picture of the class; a picture in both lists.
    """
    lists = {}
    for split in splits:
        path = voc / LISTS / f"{subject}_{_LISTS[split]}.txt"
        lists[split] = [entry for entry in read_list(path) if entry.flag != -1]
        if not lists[split]:
            raise _odd_list(path, "no line with the flag 1 or 0")
    both = {entry.id for entry in lists.get("support", [])} & {entry.id for entry in lists.get("test", [])}
    if both:
        raise DataError(
            "pictures stand in the train list and in the val list",
            path=voc / LISTS,
            found=", ".join(sorted(both)[:5]),
            expected="disjoint lists, as train pictures must not be tested on",
            remedy="unpack VOC2010 again",
        )
    return lists


def read_picture(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """One picture as uint8 [H,W,3] RGB; grey ones get three equal channels, transparency is dropped.

    A camera's orientation mark is not followed: the masks were drawn on the pixels as they are stored.

    Args:
        size: the (H, W) that it must have, that of its masks.

    Raises:
        DataError: missing, cut short, no picture, more than 8 bits in a channel, or of another size.
    """
    try:
        with Image.open(path) as file:
            mode = file.mode
            pixels = None if mode.startswith(("I", "F")) else np.array(file.convert("RGB"))
    except DECODING_ERRORS as error:
        there = path.is_file()
        found = f"{path.stat().st_size} bytes that do not decode ({error})" if there else "nothing"
        raise DataError(
            "cannot read the image" if there else "the image is missing",
            path=path,
            found=found,
            expected="a complete JPEG or PNG file",
            remedy="unpack the images again",
        ) from error
    if pixels is None:
        raise DataError("image with more than 8 bits per channel", path=path, found=f"mode {mode}", expected="8 bits")
    if size is not None and pixels.shape[:2] != size:
        raise DataError(
            "image and masks differ in size",
            path=path,
            found=f"{pixels.shape[1]}x{pixels.shape[0]}",
            expected=f"{size[1]}x{size[0]} (width x height), the size of its masks",
            remedy="restore the original image: the masks are drawn on its very pixels",
        )
    return pixels


def _folders(root: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """`root` and the folders below it, without those that hold thousands of files and no folder."""
    yield root
    if depth:
        for folder in sorted(root.iterdir()):
            if folder.is_dir() and not folder.name.startswith(".") and folder.name not in (IMAGES, BOXES):
                yield from _folders(folder, depth - 1)


def _only(source: Path, found: Sequence[Path], name: str, what: str) -> Path:
    """The one folder that was found, or of several the one that has its usual `name`."""
    named = found if len(found) == 1 else [folder for folder in found if folder.name == name]
    if len(named) != 1:
        raise DataError(
            f"more than one {name} found" if found else f"no {name} found",
            path=source,
            found=", ".join(str(folder) for folder in found[:5]) or "no such folder",
            expected=what,
            remedy="name the folder itself, or the archive as it was downloaded",
        )
    return named[0]


def _odd_list(path: Path, found: str) -> DataError:
    return DataError(
        "the image list has another layout than VOC's",
        path=path,
        found=found,
        expected="lines of an image id and -1, 0 or 1",
        remedy="unpack VOC2010 again",
    )

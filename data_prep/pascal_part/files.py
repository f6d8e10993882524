"""Where the files of VOC2010 and PASCAL-Part lie, what VOC's image lists say, and how their pictures are read.

Nothing here imports torch, which worker processes need not load.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from data_prep.archive import opened
from slime_bench.data.label_maps import listing
from slime_bench.data.mask_files import DECODING_ERRORS, unreadable
from slime_bench.errors import DataError

IMAGES, BOXES, LISTS = "JPEGImages", "Annotations", "ImageSets/Main"
_VOC_MEMBER = re.compile(
    rf"(^|/)({IMAGES}/[^/]+\.jpg|{BOXES}/[^/]+\.xml|{LISTS}/(car|horse)_(train|val)\.txt)$", re.IGNORECASE
)
_ARCHIVE_2012 = "VOCtrainval_11-May-2012"
_LINE = re.compile(r"\s*([\w-]+)\s+(-1|0|1)\s*")
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
        DataError: nothing there, a faulty archive, no such folder in it, or another year's VOC. StorageError: `work`
            cannot be written.
    """
    if _ARCHIVE_2012 in source.name:  # before it is unpacked
        raise _other_year(source, source.name)
    folder = opened(source, work, lambda member: _VOC_MEMBER.search(member) is not None)
    found = {lists.parents[1] for lists in folder.rglob(LISTS)}
    voc = _only(source, found, "VOC2010", f"a folder with {IMAGES} and {LISTS}")
    if re.fullmatch(r"VOC20\d\d", voc.name) and voc.name != "VOC2010":
        raise _other_year(voc, voc.name)
    return voc


def find_parts(source: Path, work: Path) -> Path:
    """The folder of `.mat` files that `source` is or holds, as `find_voc`."""
    folder = opened(source, work, lambda member: member.lower().endswith(".mat"))
    found = {file.parent for file in folder.rglob("*.mat")}
    return _only(source, found, "Annotations_Part", "a folder of .mat files (Annotations_Part)")


def read_lists(voc: Path, subject: str, splits: Sequence[str] = tuple(_LISTS)) -> dict[str, list[Entry]]:
    """Provisional split -> the entries of its list that are not -1, in its order: `support` from `<subject>_train`,
    `test` from `<subject>_val`.

    Raises:
        DataError: a list is missing, or broken; no picture of the class; a picture in both lists; a later year.
    """
    lists = {}
    for split in splits:
        path = voc / LISTS / f"{subject}_{_LISTS[split]}.txt"
        entries = read_list(path)
        later = [entry.id for entry in entries if re.match(r"201[1-9]_", entry.id)]
        if later:
            raise _other_year(path, f"pictures of later years: {listing(later)}")
        lists[split] = [entry for entry in entries if entry.flag != -1]
        if not lists[split]:
            raise _broken(path, "no line with the flag 1 or 0")
    both = {entry.id for entry in lists.get("support", [])} & {entry.id for entry in lists.get("test", [])}
    if both:
        raise _broken(voc / LISTS, f"pictures in the train list and in the val list: {listing(sorted(both))}")
    return lists


def read_list(path: Path) -> list[Entry]:
    """The lines of one list, in its order. DataError: missing, no text, a line that is not `id flag`, or an id that is
    listed twice."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _broken(path, error) from error
    entries: dict[str, Entry] = {}
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match and match[1] not in entries:
            entries[match[1]] = Entry(match[1], int(match[2]))
        elif line.strip():
            raise _broken(path, f"line {number}: {line.strip()!r}")
    return list(entries.values())


def read_picture(path: Path, size: tuple[int, ...] | None = None) -> np.ndarray:
    """One picture as uint8 [H,W,3] RGB; grey ones get three equal channels, transparency is dropped.

    A camera's orientation mark is not followed: the masks were drawn on the pixels as they are stored.

    Args:
        size: the (H, W) that it must have, that of its masks.

    Raises:
        DataError: missing, cut short, no picture, or of another size.
    """
    try:
        with Image.open(path) as file:
            pixels = np.array(file.convert("RGB"))
    except DECODING_ERRORS as error:
        raise unreadable("image", path, error, "a complete JPEG or PNG file") from error
    if size is not None and pixels.shape[:2] != size:
        raise DataError(
            "image and masks differ in size", path=path, found=f"{pixels.shape[1]}x{pixels.shape[0]}",
            expected=f"{size[1]}x{size[0]} (width x height), the size of its masks",
            remedy="restore the original image: the masks are drawn on its very pixels",
        )  # fmt: skip
    return pixels


def _only(source: Path, found: Iterable[Path], name: str, what: str) -> Path:
    """The one folder that was found, or of several the one that has its usual `name`."""
    folders = sorted(found)
    named = folders if len(folders) == 1 else [folder for folder in folders if folder.name == name]
    if len(named) != 1:
        raise DataError(
            f"more than one {name} found" if folders else f"no {name} found", path=source,
            found=listing([str(folder) for folder in folders]) or "no such folder", expected=what,
            remedy="name the folder itself, or the archive as it was downloaded",
        )  # fmt: skip
    return named[0]


def _other_year(path: Path, found: str) -> DataError:
    return DataError(
        "this is another year's VOC", path=path, found=found,
        expected="VOC2010, whose lists PASCAL-Part and the papers' tables go by",
        remedy="download VOCtrainval_03-May-2010.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2010/ and name it, "
        "or its folder VOC2010, with --voc",
    )  # fmt: skip


def _broken(path: Path, found: object) -> DataError:
    return DataError(
        "cannot use the image list", path=path, found=found,
        expected="VOC2010's lists of this class, disjoint, with lines of an image id and -1, 0 or 1",
        remedy="unpack VOC2010 again; name its folder, which holds ImageSets, with --voc",
    )  # fmt: skip

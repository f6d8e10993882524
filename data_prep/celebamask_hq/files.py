"""CelebAMask-HQ's folder: which faces there are, which masks each has, which split each belongs to.

CelebA-HQ-img/<i>.jpg                                     1024x1024, i = 0..29999
CelebAMask-HQ-mask-anno/<i//2000>/<i:05d>_<attr>.png      512x512, one for each attribute that the face shows
CelebA-HQ-to-CelebA-mapping.txt                           `idx orig_idx orig_file` under a header line
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from data_prep.celebamask_hq.merge import ATTRIBUTES
from data_prep.processes import Stamp, stamp
from slime_bench.errors import DataError

IMAGES: Final = "CelebA-HQ-img"
MASKS: Final = "CelebAMask-HQ-mask-anno"
MAPPING: Final = "CelebA-HQ-to-CelebA-mapping.txt"
FACES_PER_FOLDER: Final = 2000

OFFICIAL_FACES: Final = {"support": 24183, "val": 2993, "test": 2824}
"""Faces per split of the whole data set; the official training split is our support pool."""

_FIRST_VAL, _FIRST_TEST = 162_771, 182_638
_IMAGE = re.compile(r"^(0|[1-9][0-9]*)\.jpg$")
_MASK = re.compile(r"^([0-9]{5,})_(.+)\.png$")
_SHOWN = 5
_AGAIN = "unpack the official archive again, and keep its files as they are"


@dataclass(frozen=True, slots=True)
class Face:
    """One face of the data set.

    Attributes:
        index: its number in CelebAMask-HQ.
        celeba: its number in CelebA (`orig_idx`), which decides the split; None without a line in the mapping file.
        attributes: those with a mask file, in the data set's order.
        misnamed: mask files of this face (relative to the mask folder) whose name or place is wrong.
        stamp: of the image.
    """

    index: int
    celeba: int | None
    attributes: tuple[str, ...]
    misnamed: tuple[str, ...] = ()
    stamp: Stamp = None

    @property
    def image(self) -> str:
        """Path of the image, relative to the data set."""
        return f"{IMAGES}/{self.index}.jpg"

    def mask(self, attribute: str) -> str:
        """Path of an attribute's mask, relative to the data set."""
        return f"{MASKS}/{self.index // FACES_PER_FOLDER}/{self.index:05d}_{attribute}.png"


def split_of(celeba: int) -> str:
    """`support`, `val` or `test` by a face's CelebA index.

    As the data set's own g_partition.py compares them: `orig_idx`, which begins with 0, with limits that are file
    numbers, which begin with 1. With this one-off its counts are those that papers state.
    """
    return "test" if celeba >= _FIRST_TEST else "val" if celeba >= _FIRST_VAL else "support"


def is_needed(name: str) -> bool:
    """Whether a file of the archive is read here; the annotations of pose and attributes are not."""
    parts = name.split("/")
    return parts[-1] == MAPPING or IMAGES in parts[:-1] or MASKS in parts[:-1]


def find_root(folder: Path) -> Path:
    """The folder that holds the images, the masks and the mapping file: `folder`, or the one folder in it that does.

    Raises:
        DataError: none, more than one, or not all three of them.
    """
    found = [each for each in (folder, *_folders(folder)) if (each / IMAGES).is_dir() or (each / MASKS).is_dir()]
    if len(found) != 1:
        here = ", ".join(each.name for each in (found or _folders(folder))[:_SHOWN])
        raise DataError(
            "this is not CelebAMask-HQ",
            path=folder,
            found=here or "no folder",
            expected=f"{IMAGES}/, {MASKS}/ and {MAPPING}, here or in one folder below",
            remedy="name the folder that the official archive unpacks to, or the archive itself",
        )
    missing = [name for name in (IMAGES, MASKS, MAPPING) if not (found[0] / name).exists()]
    if missing:
        raise DataError(
            "CelebAMask-HQ is not complete",
            path=found[0],
            found=f"no {', '.join(missing)}",
            expected=f"{IMAGES}/, {MASKS}/ and {MAPPING}",
            remedy=_AGAIN,
        )
    return found[0]


def read_mapping(path: Path) -> dict[int, int]:
    """A face's index -> its CelebA index. Further columns, empty lines and the header are passed over.

    Raises:
        DataError: no lines, lines that are cut short or hold something else than numbers (counted, the first ones
            shown), or a face that is listed twice.
    """
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    mapping: dict[int, int] = {}
    broken: list[str] = []
    twice: list[int] = []
    for number, line in enumerate(lines, start=1):
        columns = line.split()
        if not columns or (not mapping and not broken and columns[:2] == ["idx", "orig_idx"]):
            continue
        if len(columns) < 3 or not (_is_number(columns[0]) and _is_number(columns[1])):
            broken.append(f"line {number}: {line.strip()[:60]!r}")
            continue
        index = int(columns[0])
        if index in mapping:
            twice.append(index)
        mapping[index] = int(columns[1])
    if broken or not mapping:
        raise DataError(
            f"the mapping file has {len(broken)} broken line(s)" if broken else "the mapping file is empty",
            path=path,
            found=_listing(broken) if broken else f"{path.stat().st_size} bytes without a face",
            expected="`idx orig_idx orig_file` in each line, e.g. `0 119613 119614.jpg`",
            remedy=_AGAIN,
        )
    if twice:
        raise DataError(
            "the mapping file lists a face twice", path=path, found=_listing([f"face {index}" for index in twice]),
            expected="one line for each face", remedy=_AGAIN,
        )  # fmt: skip
    return mapping


def list_faces(root: Path) -> list[Face]:
    """All faces that have an image, a mask or a line in the mapping file, in order of their index; nothing is decoded.

    What is wrong with a single face (no image, no mapping line, misnamed masks) is for whoever makes it to say.

    Raises:
        DataError: the mapping file is broken, or there are files whose names say of no face.
    """
    mapping = read_mapping(root / MAPPING)
    strangers: list[str] = []
    images = set(_image_indices(root / IMAGES, strangers))
    attributes, misnamed = _mask_files(root / MASKS, strangers)
    if strangers:
        raise DataError(
            f"{len(strangers)} file(s) whose name says of no face",
            path=root,
            found=_listing(sorted(strangers)),
            expected=f"{IMAGES}/<i>.jpg and {MASKS}/<i//{FACES_PER_FOLDER}>/<i, five digits>_<attribute>.png",
            remedy="move them away; a browser or file manager adds ` (1)` to what is there already",
        )
    faces = [
        Face(
            index,
            mapping.get(index),
            tuple(attributes.get(index, ())),
            tuple(sorted(misnamed.get(index, ()))),
            stamp(root / IMAGES / f"{index}.jpg"),
        )
        for index in sorted(images | attributes.keys() | misnamed.keys() | mapping.keys())
    ]
    if not faces:
        raise DataError("no faces", path=root, found="empty folders", expected="images and masks", remedy=_AGAIN)
    return faces


def differences_from_official(faces: Sequence[Face]) -> str | None:
    """What to tell about a data set of all 30,000 faces whose splits are not the official ones; else None."""
    counts = Counter(split_of(face.celeba) for face in faces if face.celeba is not None)
    if len(faces) != sum(OFFICIAL_FACES.values()) or dict(counts) == OFFICIAL_FACES:
        return None
    listed = ", ".join(f"{counts[split]} {split} (official: {count})" for split, count in OFFICIAL_FACES.items())
    return f"the splits are not those of the official data set: {listed}"


def _image_indices(folder: Path, strangers: list[str]) -> Iterator[int]:
    for name in _names(folder, (".jpg", ".jpeg", ".png")):
        match = _IMAGE.match(name)
        if match:
            yield int(match[1])
        else:
            strangers.append(f"{IMAGES}/{name}")


def _mask_files(folder: Path, strangers: list[str]) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """(attributes in order, misnamed files) of each face."""
    order = {name: index for index, name in enumerate(ATTRIBUTES)}
    attributes: dict[int, list[str]] = {}
    misnamed: dict[int, list[str]] = {}
    for place in ("", *(each.name for each in _folders(folder))):
        for name in _names(folder / place, (".png", ".jpg", ".jpeg")):
            match = _MASK.match(name)
            if not match:
                strangers.append(f"{MASKS}/{place}/{name}")
                continue
            index, attribute = int(match[1]), match[2]
            if (
                attribute in order
                and place == str(index // FACES_PER_FOLDER)
                and name == f"{index:05d}_{attribute}.png"
            ):
                # One string object for each attribute, not one for each of 400,000 files.
                attributes.setdefault(index, []).append(ATTRIBUTES[order[attribute]])
            else:
                misnamed.setdefault(index, []).append(f"{place}/{name}")
    for names in attributes.values():
        names.sort(key=order.__getitem__)
    return attributes, misnamed


def _names(folder: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.lower().endswith(suffixes) and not entry.name.startswith(".") and not entry.is_dir():
                yield entry.name


def _folders(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _listing(items: Iterable[str]) -> str:
    shown = list(items)
    more = len(shown) - _SHOWN
    return ", ".join(shown[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

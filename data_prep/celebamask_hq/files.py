"""CelebAMask-HQ's folder: which faces there are, which masks each has, which split each belongs to.

CelebA-HQ-img/<i>.jpg                                     1024x1024, i = 0..29999
CelebAMask-HQ-mask-anno/<i//2000>/<i:05d>_<attr>.png      512x512, one for each attribute that the face shows
CelebA-HQ-to-CelebA-mapping.txt                           `idx orig_idx orig_file` under a header line
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from data_prep.celebamask_hq.merge import ATTRIBUTES
from slime_bench.data.label_maps import listing
from slime_bench.data.manifest import Stamp, stamp
from slime_bench.errors import DataError

IMAGES: Final = "CelebA-HQ-img"
MASKS: Final = "CelebAMask-HQ-mask-anno"
MAPPING: Final = "CelebA-HQ-to-CelebA-mapping.txt"
FACES_PER_FOLDER: Final = 2000

OFFICIAL_FACES: Final = {"support": 24183, "val": 2993, "test": 2824}
"""Faces per split of the whole data set; the official training split is our support pool."""

_FIRST_VAL, _FIRST_TEST = 162_771, 182_638
_IMAGE = re.compile(r"(0|[1-9][0-9]*)\.jpg")
_MASK = re.compile(rf"([0-9]{{5}})_({'|'.join(ATTRIBUTES)})\.png")
_PICTURES = (".jpg", ".jpeg", ".png")
_AGAIN = "unpack the official archive again, and keep its files as they are"


@dataclass(frozen=True, slots=True)
class Face:
    """One face of the data set.

    Attributes:
        index: its number in CelebAMask-HQ.
        celeba: its number in CelebA (`orig_idx`), which decides the split; None without a line in the mapping file.
        attributes: those with a mask file, in the data set's order.
        stamp: of the image.
    """

    index: int
    celeba: int | None
    attributes: tuple[str, ...]
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
    """The folder that holds the images, the masks and the mapping file: `folder`, or the one folder in it that does;
    DataError: there is none, or more than one."""
    below = sorted(each for each in folder.iterdir() if each.is_dir())
    found = [each for each in (folder, *below) if all((each / name).exists() for name in (IMAGES, MASKS, MAPPING))]
    if len(found) != 1:
        raise DataError(
            "this is not CelebAMask-HQ, or not all of it", path=folder,
            found=listing([each.name for each in found or folder.iterdir()]) or "nothing",
            expected=f"{IMAGES}/, {MASKS}/ and {MAPPING}, here or in one folder below",
            remedy="name the folder that the official archive unpacks to, or the archive itself",
        )  # fmt: skip
    return found[0]


def read_mapping(path: Path) -> dict[int, int]:
    """A face's index -> its CelebA index. Further columns, empty lines and the header are passed over. DataError: no
    faces, a line of another layout, or a face that is listed twice."""
    mapping: dict[int, int] = {}
    found = "no face"
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        columns = line.split()
        if not columns or columns[:2] == ["idx", "orig_idx"]:
            continue
        if len(columns) < 3 or not (columns[0].isdecimal() and columns[1].isdecimal()) or int(columns[0]) in mapping:
            mapping, found = {}, f"line {number}: {line.strip()[:60]!r}"
            break
        mapping[int(columns[0])] = int(columns[1])
    if not mapping:
        raise DataError(
            "the mapping file is broken", path=path, found=found,
            expected="a line `idx orig_idx orig_file` for each face, e.g. `0 119613 119614.jpg`", remedy=_AGAIN,
        )  # fmt: skip
    return mapping


def list_faces(root: Path) -> list[Face]:
    """All faces that have an image, a mask or a line in the mapping file, in order of their index; nothing is decoded.

    What is wrong with a single face (no image, no mapping line) is for whoever makes it to say.

    Raises:
        DataError: the mapping file is broken, or there are pictures with other names or in other places.
    """
    mapping = read_mapping(root / MAPPING)
    strangers: list[str] = []
    indices = set(mapping)
    attributes: dict[int, set[str]] = defaultdict(set)
    for name in _pictures(root / IMAGES):
        if match := _IMAGE.fullmatch(name):
            indices.add(int(match[1]))
        else:
            strangers.append(f"{IMAGES}/{name}")
    for folder in ("", *(each.name for each in (root / MASKS).iterdir() if each.is_dir())):
        for name in _pictures(root / MASKS / folder):
            match = _MASK.fullmatch(name)
            if match and folder == str(int(match[1]) // FACES_PER_FOLDER):
                attributes[int(match[1])].add(match[2])
            else:
                strangers.append(f"{MASKS}/{folder}/{name}")
    if strangers:
        raise DataError(
            f"{len(strangers)} picture(s) of another name, or in a wrong folder", path=root,
            found=listing(sorted(strangers)),
            expected=f"{IMAGES}/<i>.jpg and {MASKS}/<i//{FACES_PER_FOLDER}>/<i, five digits>_<attribute>.png",
            remedy="move them away; a browser or file manager adds ` (1)` to what is there already",
        )  # fmt: skip
    return [
        Face(
            index,
            mapping.get(index),
            tuple(name for name in ATTRIBUTES if name in attributes.get(index, ())),
            stamp(root / IMAGES / f"{index}.jpg"),
        )
        for index in sorted(indices | attributes.keys())
    ]


def differences_from_official(faces: Sequence[Face]) -> str | None:
    """What to tell about a data set of all 30,000 faces whose splits are not the official ones; else None."""
    counts = Counter(split_of(face.celeba) for face in faces if face.celeba is not None)
    if len(faces) != sum(OFFICIAL_FACES.values()) or dict(counts) == OFFICIAL_FACES:
        return None
    listed = ", ".join(f"{counts[split]} {split} (official: {count})" for split, count in OFFICIAL_FACES.items())
    return f"the splits are not those of the official data set: {listed}"


def _pictures(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.lower().endswith(_PICTURES) and not entry.name.startswith("."):
                yield entry.name

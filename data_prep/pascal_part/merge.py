"""From PASCAL-Part's parts to the classes of the papers' tables, and the painting of label maps."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np

from data_prep.pascal_part.annotations import PartObject
from slime_bench.errors import DataError

MERGES: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "car": {
        "body": ("frontside", "leftside", "rightside", "backside", "roofside", "leftmirror", "rightmirror", "door_N"),
        "light": ("headlight_N",),
        "plate": ("fliplate", "bliplate"),
        "wheel": ("wheel_N",),
        "window": ("window_N",),
    },
    "horse": {
        "head": ("head", "lear", "rear", "leye", "reye", "muzzle"),
        "neck+torso": ("neck", "torso"),
        "leg": tuple(f"{side}{end}{piece}" for side in "lr" for end in "fb" for piece in ("uleg", "lleg", "ho")),
        "tail": ("tail",),
    },
}
"""Subject -> class -> its parts, in label order after the background (SLiMe-lab `part_mapping`); `_N` is any number."""

_NUMBER = re.compile(r"_\d+$")


def class_names(subject: str) -> tuple[str, ...]:
    """The classes in label order, `background` first."""
    return ("background", *MERGES[subject])


def part_class(subject: str, part: str) -> int | None:
    """The label of a part, 1..K-1; None for a part that the subject does not have."""
    family = _NUMBER.sub("_N", part)
    for label, parts in enumerate(MERGES[subject].values(), start=1):
        if part in parts or (family != part and family in parts):
            return label
    return None


def check_parts(subject: str, objects: Iterable[PartObject], path: Path) -> None:
    """Refuse unknown part names in objects of the subject's class, before any of them is painted.

    Raises:
        DataError: names the object and the part, and lists the known ones.
    """
    for number, item in enumerate(objects, start=1):
        if item.name != subject:
            continue
        for part in item.parts:
            if part_class(subject, part.name) is None:
                known = ", ".join(name for parts in MERGES[subject].values() for name in parts)
                raise DataError(
                    f"unknown part `{part.name}`",
                    path=path,
                    found=f"object {number} ({item.name}), part {part.name}",
                    expected=f"{known} (N is any number)",
                    remedy="take the published annotations, or add the part to data_prep/pascal_part/merge.py",
                )


def paint(subject: str, objects: Iterable[PartObject], shape: tuple[int, int]) -> np.ndarray:
    """One label map with the parts of all `objects`: uint8 [H,W], 0 = background.

    Class by class in label order, the later wins where parts overlap. For cars the body comes first: wherever another
    part of any of the objects lies, body is erased (SLiMe-lab paints the two kinds apart and adds them, which is the
    same). lagm paints part by part in the file's order; its crops are painted in this order here, so that the three
    rules differ in their crops and not in their classes.

    Raises:
        ValueError: a part that `check_parts` would have refused.
    """
    label = np.zeros(shape, dtype=np.uint8)
    layers = np.zeros((len(MERGES[subject]) + 1, *shape), dtype=bool)
    for item in objects:
        for part in item.parts:
            index = part_class(subject, part.name)
            if index is None:
                raise ValueError(f"{part.name} is no part of a {subject}")
            layers[index] |= part.mask
    for index in range(1, len(layers)):
        label[layers[index]] = index
    return label

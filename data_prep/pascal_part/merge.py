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

_LABELS: Final = {
    subject: {part: label for label, parts in enumerate(classes.values(), start=1) for part in parts}
    for subject, classes in MERGES.items()
}


def class_names(subject: str) -> tuple[str, ...]:
    """The classes in label order, `background` first."""
    return ("background", *MERGES[subject])


def part_class(subject: str, part: str) -> int:
    """The label of a part, 1..K-1; KeyError for a part that the subject does not have."""
    return _LABELS[subject][re.sub(r"_\d+$", "_N", part)]


def check_parts(subject: str, objects: Iterable[PartObject], path: Path) -> None:
    """Refuse (DataError) unknown part names in objects of the subject's class, before any of them is painted."""
    for number, item in enumerate(objects, start=1):
        for part in item.parts if item.name == subject else ():
            try:
                part_class(subject, part.name)
            except KeyError as error:
                raise DataError(
                    f"unknown part `{part.name}`",
                    path=path,
                    found=f"object {number} ({item.name}), part {part.name}",
                    expected=f"{', '.join(_LABELS[subject])} (N is any number)",
                    remedy="take the published annotations, or add the part to data_prep/pascal_part/merge.py",
                ) from error


def paint(subject: str, objects: Iterable[PartObject], shape: tuple[int, ...]) -> np.ndarray:
    """One label map with the parts of all `objects`: uint8 [H,W], 0 = background.

    Class by class in label order, the later wins where parts overlap. For cars the body comes first: wherever another
    part of any of the objects lies, body is erased (SLiMe-lab paints the two kinds apart and adds them, which is the
    same). lagm paints part by part in the file's order; its crops are painted in this order here, so that the three
    rules differ in their crops and not in their classes.
    """
    label = np.zeros(shape, dtype=np.uint8)
    for item in objects:
        for part in item.parts:
            np.maximum(label, part_class(subject, part.name), out=label, where=part.mask)
    return label

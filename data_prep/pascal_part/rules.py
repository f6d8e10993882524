"""Which objects of a picture become samples, and how they are cut and painted: three readings, as data; docs/data.md
has them and their sources side by side.

Choices where a source is silent: the paper does not say that VOC's `difficult` objects are left out, so they stay, and
not what is painted in its crops, so that it is what the lab's code paints. lagm's code paints every object of the
class; `--paint own` gives the reading of protocol.md 2.1, the object's own parts. lagm's code has one minimum for all
classes (its option `minpx`, 32 by default); here it is 50 for cars, as in the paper.

An object of an XML rule that needs its own parts is looked up in the PASCAL-Part file: the object of its class whose
mask's extent has the greatest IoU with the box, at least .5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from data_prep.pascal_part.annotations import PartObject, VocObject
from data_prep.pascal_part.boxes import (
    Box,
    best_match,
    clip,
    cut,
    cut_square,
    extent,
    hull_overlap,
    iou,
    iou_uint8,
    short_extent,
    square,
)
from data_prep.pascal_part.merge import paint

PRESENT, DIFFICULT, ABSENT = 1, 0, -1
"""Flags of VOC's image lists."""

EMPTY = "object mask is empty"
OUTSIDE = "box lies outside the picture"
OVERLAPS = "overlaps another object"
SMALL = "too small"
UNANNOTATED = "no part annotation of this object"
NO_PARTS = "object has no parts"
UNLABELLED = "less than 1 % labelled"
NO_OBJECT = "image has no such object in its annotation"
NO_FILE = "image has no part annotation file"
FLAGGED = "image is listed as difficult"
REASONS: Final = (NO_FILE, FLAGGED, NO_OBJECT, EMPTY, OUTSIDE, OVERLAPS, SMALL, UNANNOTATED, NO_PARTS, UNLABELLED)
"""Every reason to drop, in the order of the tests: an object that fails several is counted under the first."""

SIDES: Final = {"car": 50, "horse": 32}
_MEASURES: Final[dict[str, Callable[[Box, Box], float]]] = {"iou": iou, "iou_uint8": iou_uint8, "hull": hull_overlap}


@dataclass(frozen=True)
class Rule:
    """One reading of the protocol, as a bundle of named choices.

    Attributes:
        boxes: `mask` = from the part annotation, `xml` = VOC's own.
        overlap: measure of overlap, see pascal_boxes: `iou`, `iou_uint8`, `hull`.
        among: the boxes that it is measured with, `all` or `same_class`.
        limit: an object with more overlap is dropped; at_limit: with exactly as much, too.
        smallest: `side` or `area`: what has to reach the subject's minimum (its side, or that squared).
        needs_parts: an object without parts of its own is dropped.
        paint: whose parts a crop shows: the object's `own`, those of all `kept` objects of its class, or of the
            `same_class`, kept or not.
        crop: `box`, or the `square` round it.
        labelled: share of pixels in the crop that need a part.
        flags: the flags of the image lists that are taken.
    """

    name: str
    boxes: str
    overlap: str
    among: str
    at_limit: bool
    smallest: str
    needs_parts: bool
    paint: str
    crop: str
    limit: float = 0.05
    labelled: float = 0.0
    flags: tuple[int, ...] = (PRESENT, DIFFICULT)


RULES: Final = {
    rule.name: rule
    for rule in (
        Rule("paper", "xml", "iou", "all", False, "side", True, "kept", "box"),
        Rule("slime_lab", "mask", "iou_uint8", "all", True, "area", True, "kept", "box"),
        Rule(
            "lagm", "xml", "hull", "same_class", False, "side", False, "same_class", "square",
            labelled=0.01, flags=(PRESENT,),
        ),
    )
}  # fmt: skip
PAINTS: Final = ("own", "kept", "same_class")


@dataclass(frozen=True)
class Crop:
    """A sample of a picture.

    Attributes:
        box: the cut-out in the picture.
        frame: (H, W) of the picture.
        label: uint8 [h,w] of the cut-out; a square is larger than its box where it is padded.
        facts: for the manifest.
    """

    box: Box
    frame: tuple[int, ...]
    label: np.ndarray
    facts: dict[str, Any]


Verdicts = dict[int, Crop | str]
"""Number of an object, from 1, in the file that its box comes from -> its sample, or the reason why there is none."""


@dataclass(frozen=True)
class _Candidate:
    number: int
    name: str
    box: Box
    part_object: int | None
    facts: dict[str, Any]


_NOWHERE: Final = Box(0, 0, 0, 0)
"""The box of an empty mask; it overlaps nothing."""


def judge(
    rule: Rule, subject: str, objects: Sequence[PartObject], voc: Sequence[VocObject], shape: tuple[int, ...]
) -> Verdicts:
    """What becomes of each object of the subject's class, in the order of the file that the boxes come from.

    Args:
        objects, voc: PASCAL-Part's and VOC's, of all classes; the latter for a rule with `boxes="xml"` only.
        shape: (H, W) of the picture.
    """
    candidates = _from_xml(voc, objects, shape) if rule.boxes == "xml" else _from_masks(objects)
    reasons = {
        each.number: _reason(rule, subject, each, candidates, objects) for each in candidates if each.name == subject
    }
    kept = [each for each in candidates if reasons.get(each.number, "another class") is None]
    verdicts: Verdicts = {number: why for number, why in reasons.items() if why}
    whole = None
    for each in kept:
        if whole is None or rule.paint == "own":
            whole = paint(subject, _painted(rule, subject, each, kept, objects), shape)
        box = square(each.box, shape[1], shape[0]) if rule.crop == "square" else each.box
        label = cut_out(rule, whole, box)
        enough = np.mean(label > 0) >= rule.labelled
        verdicts[each.number] = Crop(box, shape, label, each.facts) if enough else UNLABELLED
    return {number: verdicts[number] for number in reasons}


def cut_out(rule: Rule, array: np.ndarray, box: Box) -> np.ndarray:
    """What a sample shows of a picture or label map, [H,W] or [H,W,3]."""
    return cut_square(array, box) if rule.crop == "square" else cut(array, box)


def _from_masks(objects: Sequence[PartObject]) -> list[_Candidate]:
    boxes = [short_extent(item.mask) or _NOWHERE for item in objects]
    return [
        _Candidate(number, item.name, box, number - 1, {})
        for number, (item, box) in enumerate(zip(objects, boxes, strict=True), start=1)
    ]


def _from_xml(voc: Sequence[VocObject], objects: Sequence[PartObject], shape: tuple[int, ...]) -> list[_Candidate]:
    """VOC's objects, each with the part annotation that shows it; boxes are cut at the picture's edges."""
    extents = [extent(item.mask) for item in objects]
    found = []
    for number, item in enumerate(voc, start=1):
        same = [box if each.name == item.name else None for box, each in zip(extents, objects, strict=True)]
        match = best_match(item.box, same)
        facts: dict[str, Any] = {"difficult": item.difficult, "truncated": item.truncated}
        if match is not None:
            facts["part_object"] = match + 1
        found.append(_Candidate(number, item.name, clip(item.box, shape[1], shape[0]), match, facts))
    return found


def _reason(
    rule: Rule, subject: str, item: _Candidate, candidates: Sequence[_Candidate], objects: Sequence[PartObject]
) -> str | None:
    """The first reason to drop `item`; None: it stays."""
    box = item.box
    if box == _NOWHERE:
        return EMPTY
    if rule.boxes == "xml" and not box.area:
        return OUTSIDE
    if any(_overlap(rule, item, other) for other in candidates if other is not item):
        return OVERLAPS
    side = SIDES[subject]
    if box.area < side**2 if rule.smallest == "area" else min(box.width, box.height) < side:
        return SMALL
    if item.part_object is None and (rule.needs_parts or rule.paint != "same_class"):
        return UNANNOTATED
    if rule.needs_parts and item.part_object is not None and not objects[item.part_object].parts:
        return NO_PARTS
    return None


def _overlap(rule: Rule, item: _Candidate, other: _Candidate) -> bool:
    if rule.among == "same_class" and item.name != other.name:
        return False
    overlap = _MEASURES[rule.overlap](item.box, other.box)
    return overlap >= rule.limit if rule.at_limit else overlap > rule.limit


def _painted(
    rule: Rule, subject: str, item: _Candidate, kept: Sequence[_Candidate], objects: Sequence[PartObject]
) -> list[PartObject]:
    if rule.paint == "same_class":
        return [each for each in objects if each.name == subject]
    whose = [item] if rule.paint == "own" else kept
    indices = sorted({each.part_object for each in whose if each.part_object is not None})
    return [objects[index] for index in indices]

"""The work on one source picture: read, judge by a rule, cut, paint. Runs in worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.build_types import Dropped, Job, Made, Stamp, stamp
from data_prep.pascal_part.lists import BOXES, IMAGES, Entry
from data_prep.pascal_part.mat import PartObject, read_annotation
from data_prep.pascal_part.merge import check_parts
from data_prep.pascal_part.picture import read_picture
from data_prep.pascal_part.regan import read_pair
from data_prep.pascal_part.rules import FLAGGED, NO_FILE, NO_OBJECT, Crop, Refused, Rule, cut_out, judge
from data_prep.pascal_part.xml import VocObject, read_voc


@dataclass(frozen=True)
class VocPicture:
    """A picture of VOC2010 by the files that describe it; `boxes` is None where no rule asks for VOC's own boxes.

    `stamps`: of the three files, as a build that is resumed must know whether one has come or changed since.
    """

    entry: Entry
    split: str
    image: Path
    parts: Path
    boxes: Path | None
    stamps: tuple[Stamp, ...] = ()


@dataclass(frozen=True)
class ReganPicture:
    """A picture of Car_TestSet with its colour ground truth."""

    stem: str
    image: Path
    truth: Path


def picture(entry: Entry, split: str, voc: Path, parts: Path, needs_boxes: bool) -> VocPicture:
    """The files of one list entry."""
    boxes = voc / BOXES / f"{entry.id}.xml" if needs_boxes else None
    image, mat = voc / IMAGES / f"{entry.id}.jpg", parts / f"{entry.id}.mat"
    stamps = tuple(stamp(each) for each in (image, mat, boxes) if each is not None)
    return VocPicture(entry, split, image, mat, boxes, stamps)


def make_samples(job: Job, *, subject: str, rule: Rule) -> list[Made | Dropped]:
    """All samples of one picture, and what the rule leaves out.

    Raises:
        DataError, LabelError: a file is missing, unreadable, or does not fit the others.
    """
    if isinstance(job.payload, ReganPicture):
        return [_regan_sample(job.payload)]
    source: VocPicture = job.payload
    verdicts = verdicts_of(source, subject, rule)
    if isinstance(verdicts, str):
        return [Dropped(source.split, source.entry.id, verdicts)]
    pixels: np.ndarray | None = None
    results: list[Made | Dropped] = []
    for verdict in verdicts:
        if isinstance(verdict, Refused):
            results.append(Dropped(source.split, f"{source.entry.id} object {verdict.number}", verdict.reason))
            continue
        if pixels is None:
            pixels = read_picture(source.image, verdict.frame)
        results.append(
            Made(
                source.split,
                f"{source.entry.id}_{verdict.number}",
                cut_out(rule, pixels, verdict.box),
                verdict.label,
                _facts(source, rule, verdict),
            )
        )
    return results


def verdicts_of(source: VocPicture, subject: str, rule: Rule) -> list[Crop | Refused] | str:
    """What `rule` makes of each object of a picture, or the reason why the whole picture is left out.

    Reads the annotations, not the picture itself.
    """
    read = annotations_of(source, subject) if source.entry.flag in rule.flags else None
    return judge_picture(source, subject, rule, read)


def annotations_of(source: VocPicture, subject: str) -> tuple[tuple[PartObject, ...], tuple[VocObject, ...]] | None:
    """The part annotation and the boxes of a picture; None where there is no part annotation.

    Raises:
        DataError: a faulty file, unknown parts, or missing boxes.
    """
    if not source.parts.exists():
        return None
    objects = read_annotation(source.parts)
    check_parts(subject, objects, source.parts)
    return objects, read_voc(source.boxes) if source.boxes else ()


def judge_picture(
    source: VocPicture,
    subject: str,
    rule: Rule,
    read: tuple[tuple[PartObject, ...], tuple[VocObject, ...]] | None,
) -> list[Crop | Refused] | str:
    """As `verdicts_of`, of annotations that were read."""
    if source.entry.flag not in rule.flags:
        return FLAGGED
    if read is None:
        return NO_FILE
    objects, boxes = read
    # Without any object there is no mask to tell the size, and nothing to cut either.
    verdicts = judge(rule, subject, objects, boxes, objects[0].mask.shape) if objects else []
    return verdicts or NO_OBJECT


def _facts(source: VocPicture, rule: Rule, crop: Crop) -> dict[str, Any]:
    return {
        "source": source.entry.id,
        "object": crop.number,
        "box": list(crop.box),
        "rule": rule.name,
        "flag": source.entry.flag,
        "frame": list(crop.frame),
        **crop.facts,
    }


def _regan_sample(source: ReganPicture) -> Made:
    image, label, strangers = read_pair(source.image, source.truth)
    facts = {"source": f"{source.image.parent.name}/{source.image.name}", "unknown_pixels": strangers}
    return Made("test", f"regan_{source.stem}", image, label, facts)

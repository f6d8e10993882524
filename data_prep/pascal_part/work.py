"""The work on one source picture: read, judge by a rule, cut, paint. Runs in worker processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_prep.build import Dropped, Made
from data_prep.pascal_part.annotations import PartObject, VocObject, read_annotation, read_voc
from data_prep.pascal_part.files import BOXES, IMAGES, Entry, read_picture
from data_prep.pascal_part.merge import check_parts
from data_prep.pascal_part.regan import read_pair
from data_prep.pascal_part.rules import FLAGGED, NO_FILE, NO_OBJECT, Crop, Rule, Verdicts, cut_out, judge
from data_prep.processes import Job
from slime_bench.data.layouts import Pair
from slime_bench.data.manifest import Stamp, stamp

KEPT = "kept"
UNREADABLE = "unreadable"


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
    source = job.payload
    if isinstance(source, Pair):  # of Car_TestSet
        image, label, strangers = read_pair(source.image, source.label)
        facts = {"source": f"{source.image.parent.name}/{source.image.name}", "unknown_pixels": strangers}
        return [Made("test", f"regan_{source.id}", image, label, facts)]
    key, flag = source.entry.id, source.entry.flag
    verdicts = _judged(source, subject, rule, _annotations(source, subject) if flag in rule.flags else None)
    frames = [each.frame for each in verdicts.values() if isinstance(each, Crop)]
    pixels = read_picture(source.image, frames[0]) if frames else None
    results: list[Made | Dropped] = []
    for number, each in verdicts.items():
        if isinstance(each, str):
            results.append(Dropped(source.split, f"{key} object {number}" if number else key, each))
        elif pixels is not None:
            facts = {"source": key, "object": number, "box": list(each.box), "rule": rule.name, "flag": flag}
            facts |= {"frame": list(each.frame), **each.facts}
            image = cut_out(rule, pixels, each.box)
            results.append(Made(source.split, f"{key}_{number}", image, each.label, facts))
    return results


def count_verdicts(job: Job, *, subject: str, rules: Mapping[str, Rule]) -> Counter[tuple[str, str, str]]:
    """(split, rule, reason or `KEPT`) -> objects of one picture, or the picture where the whole of it is dropped, by
    every rule. Its annotations are read once, it is not decoded."""
    source: VocPicture = job.payload
    counts: Counter[tuple[str, str, str]] = Counter()
    read = _annotations(source, subject)
    for name, rule in rules.items():
        for each in _judged(source, subject, rule, read).values():
            counts[source.split, name, each if isinstance(each, str) else KEPT] += 1
    return counts


Annotations = tuple[tuple[PartObject, ...], tuple[VocObject, ...]]


def _annotations(source: VocPicture, subject: str) -> Annotations | None:
    """The part annotation and the boxes of a picture; None where there is no part annotation."""
    if not source.parts.exists():
        return None
    objects = read_annotation(source.parts)
    check_parts(subject, objects, source.parts)
    return objects, read_voc(source.boxes) if source.boxes else ()


def _judged(source: VocPicture, subject: str, rule: Rule, read: Annotations | None) -> Verdicts:
    """What `rule` makes of each object of a picture; number 0 is the whole picture, where that is left out."""
    if source.entry.flag not in rule.flags:
        return {0: FLAGGED}
    if read is None:
        return {0: NO_FILE}
    objects, boxes = read
    # Without any object there is no mask to tell the size, and nothing to cut either.
    return (judge(rule, subject, objects, boxes, objects[0].mask.shape) if objects else {}) or {0: NO_OBJECT}

"""A small VOC2010 with PASCAL-Part annotations in their raw layout, painted from mini-world pictures.

    <root>/VOCdevkit/VOC2010/{JPEGImages,Annotations,ImageSets/Main/<subject>_{train,val}.txt}
    <root>/Annotations_Part/<id>.mat        nested structs as MATLAB wrote the real ones
    <root>/Car_TestSet/{image_bg,image_no_bg,gt_mask}

Painted back, the parts of an object give the very label map of its mini-world picture: the body's parts reach under the
others, the torso under the legs. Unlike real masks, those of two crossing objects both stay whole, so that every box is
known in advance.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import io, ndimage

from data_prep.mini_world import render

CLASS_INDEX = {"car": 7, "horse": 13, "person": 15}
KINDS = {"car": "car", "horse": "horse", "person": "face"}
COLOURS = ((255, 255, 255), (255, 52, 255), (255, 74, 70), (0, 137, 65), (255, 255, 0), (28, 230, 255))
"""Of Car_TestSet's ground truth, in label order; its background is white."""


@dataclass(frozen=True)
class Thing:
    """An object: VOC class, (left, top, width, height), and where it is annotated."""

    name: str
    place: tuple[int, int, int, int]
    parts: bool = True
    in_mat: bool = True
    in_xml: bool = True
    difficult: bool = False

    @property
    def truncated(self) -> bool:
        """Whether it touches the right edge of the canvas."""
        return self.place[0] + self.place[2] >= CANVAS[0]


@dataclass(frozen=True)
class Case:
    """One picture of the twin."""

    things: tuple[Thing, ...]
    flag: int = 1
    mat: bool = True


CANVAS = (240, 180)  # width, height


def cases(subject: str) -> dict[str, Case]:
    """One picture for each reason to keep or to drop."""
    small, thin = ((40, 40), (100, 40)) if subject == "car" else ((24, 24), (60, 24))

    def one(*place: int, **how: bool) -> Thing:
        return Thing(subject, place, **how)  # type: ignore[arg-type]

    return {
        "whole": Case((one(20, 15, 150, 110), Thing("person", (195, 100, 30, 60)))),
        "two": Case((one(5, 10, 100, 80), Thing("person", (10, 120, 40, 50)), one(120, 60, 110, 90))),
        "cut by the edge": Case((one(180, 40, 60, 120),)),
        "crossing its like": Case((one(10, 10, 110, 100), one(60, 30, 120, 110))),
        "under a person": Case((Thing("person", (90, 20, 60, 100)), one(10, 10, 120, 100))),
        "small under a small person": Case((one(20, 20, 52, 52), Thing("person", (56, 55, 31, 31), parts=False))),
        "small": Case((one(30, 30, *small),)),
        "thin": Case((one(30, 30, *thin),)),
        "without parts": Case((one(40, 40, 100, 80, parts=False),)),
        "only in the XML": Case((one(40, 40, 100, 80, in_mat=False), Thing("person", (170, 20, 50, 60)))),
        "only in the mat": Case((one(40, 40, 100, 80, in_xml=False),)),
        "no object in the mat": Case((one(40, 40, 100, 80, in_mat=False),)),
        "no mat": Case((one(40, 40, 100, 80),), mat=False),
        "difficult": Case((one(40, 40, 100, 80, difficult=True),), flag=0),
        "absent": Case((Thing("person", (40, 40, 60, 80)),), flag=-1),
    }


_NO_OBJECT = "image has no such object in its annotation"
KEPT = "kept"
EXPECTED: dict[str, dict[str, dict[str, int]]] = {
    "whole": {"paper": {KEPT: 1}, "slime_lab": {KEPT: 1}, "lagm": {KEPT: 1}},
    "two": {"paper": {KEPT: 2}, "slime_lab": {KEPT: 2}, "lagm": {KEPT: 2}},
    "cut by the edge": {"paper": {KEPT: 1}, "slime_lab": {KEPT: 1}, "lagm": {KEPT: 1}},
    # IoU .25; the lab's 59 x 79 common pixels are 53 modulo 256, so .002.
    "crossing its like": {
        "paper": {"overlaps another object": 2},
        "slime_lab": {KEPT: 2},
        "lagm": {"overlaps another object": 2},
    },
    # IoU .25 with another class; the lab's 39 x 89 common pixels are 143 modulo 256, so .008.
    "under a person": {"paper": {"overlaps another object": 1}, "slime_lab": {KEPT: 1}, "lagm": {KEPT: 1}},
    # The lab's 15 x 16 = 240 common pixels of 2601 and 900 survive: .074.
    "small under a small person": {
        "paper": {"overlaps another object": 1},
        "slime_lab": {"overlaps another object": 1},
        "lagm": {KEPT: 1},
    },
    "small": {"paper": {"too small": 1}, "slime_lab": {"too small": 1}, "lagm": {"too small": 1}},
    # Enough pixels, too short a side.
    "thin": {"paper": {"too small": 1}, "slime_lab": {KEPT: 1}, "lagm": {"too small": 1}},
    "without parts": {
        "paper": {"object has no parts": 1},
        "slime_lab": {"object has no parts": 1},
        "lagm": {"less than 1 % labelled": 1},
    },
    "only in the XML": {
        "paper": {"no part annotation of this object": 1},
        "slime_lab": {_NO_OBJECT: 1},
        "lagm": {"less than 1 % labelled": 1},
    },
    "only in the mat": {"paper": {_NO_OBJECT: 1}, "slime_lab": {KEPT: 1}, "lagm": {_NO_OBJECT: 1}},
    "no object in the mat": {"paper": {_NO_OBJECT: 1}, "slime_lab": {_NO_OBJECT: 1}, "lagm": {_NO_OBJECT: 1}},
    "no mat": {rule: {"image has no part annotation file": 1} for rule in ("paper", "slime_lab", "lagm")},
    "difficult": {"paper": {KEPT: 1}, "slime_lab": {KEPT: 1}, "lagm": {"image is listed as difficult": 1}},
    "absent": {"paper": {}, "slime_lab": {}, "lagm": {}},
}
"""Case -> rule -> what becomes of its objects; the same for both subjects."""


def expected(rule: str, plain: int, with_cases: bool = True) -> dict[str, int]:
    """Outcomes of one split of the twin with `plain` further pictures."""
    total = Counter({KEPT: plain})
    for outcome in EXPECTED.values() if with_cases else ():
        total.update(outcome[rule])
    return dict(total)


@dataclass(frozen=True)
class Twin:
    """Where the twin lies.

    Attributes:
        ids: name of the case, or `plain`, -> ids of its pictures, first those of train, then those of val.
    """

    root: Path
    voc: Path
    parts: Path
    ids: dict[str, list[str]] = field(default_factory=dict)


def write_pascal_twin(root: Path, subject: str, train: int = 24, val: int = 6, *, with_cases: bool = True) -> Twin:
    """Write the raw layout: `train` and `val` plain pictures of one large object each, and every case in both lists."""
    twin = Twin(root, root / "VOCdevkit" / "VOC2010", root / "Annotations_Part", {})
    for split, year, plain in (("train", 2008, train), ("val", 2009, val)):
        wanted = [("plain", _plain(subject, index)) for index in range(plain)]
        wanted += list(cases(subject).items()) if with_cases else []
        lines = []
        for number, (name, case) in enumerate(wanted):
            key = f"{year}_{number:06d}"
            write_picture(twin, key, case, "support" if split == "train" else "test", 3 * number)
            lines.append(f"{key} {case.flag:2d}")
            twin.ids.setdefault(name, []).append(key)
        write_list(twin, subject, split, lines)
    return twin


def write_list(twin: Twin, subject: str, split: str, lines: list[str]) -> None:
    """ImageSets/Main/<subject>_<split>.txt."""
    path = twin.voc / "ImageSets" / "Main" / f"{subject}_{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def write_picture(twin: Twin, key: str, case: Case, mini_split: str, index: int) -> None:
    """The three files of one picture; its objects are the mini-world pictures `index`, `index + 1`, ..."""
    image = _background(index)
    objects = []
    for offset, thing in enumerate(case.things):
        pixels, label = _placed(thing, mini_split, index + offset)
        image = np.where((label > 0)[..., None], pixels, image)
        if thing.in_mat:
            parts = _parts(thing.name, label) if thing.parts else []
            objects.append((thing.name, label > 0, parts))
    for folder in (twin.voc / "JPEGImages", twin.voc / "Annotations", twin.parts):
        folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(twin.voc / "JPEGImages" / f"{key}.jpg", quality=95)
    (twin.voc / "Annotations" / f"{key}.xml").write_text(voc_xml(key, case))
    if case.mat:
        write_mat(twin.parts / f"{key}.mat", key, objects)


def write_mat(path: Path, key: str, objects: list[tuple[str, np.ndarray, list[tuple[str, np.ndarray]]]]) -> None:
    """One annotation: objects as (class, mask, [(part, mask)]), in the structure of PASCAL-Part's own files."""
    io.savemat(path, {"anno": anno(key, objects)}, do_compression=True)


def anno(key: str, objects: list[tuple[str, np.ndarray, list[tuple[str, np.ndarray]]]]) -> np.ndarray:
    """The variable `anno`: (1,1) struct of imname and objects; no objects and no parts are (0,0), as MATLAB's `[]`."""
    fields = [("class", "O"), ("class_ind", "O"), ("mask", "O"), ("parts", "O")]
    listed = np.zeros((1, len(objects)), dtype=fields) if objects else np.zeros((0, 0))
    for number, (name, mask, parts) in enumerate(objects):
        pieces = np.zeros((1, len(parts)), dtype=[("part_name", "O"), ("mask", "O")]) if parts else np.zeros((0, 0))
        for index, (part, part_mask) in enumerate(parts):
            pieces[0, index] = (part, part_mask.astype(np.uint8))
        listed[0, number] = (name, np.uint8(CLASS_INDEX.get(name, 20)), mask.astype(np.uint8), pieces)
    record = np.zeros((1, 1), dtype=[("imname", "O"), ("objects", "O")])
    record[0, 0] = (key, listed)
    return record


def voc_xml(key: str, case: Case) -> str:
    """VOC's description of a picture; a person has a part of its own, whose box is not an object's."""
    lines = ["<annotation>", "\t<folder>VOC2010</folder>", f"\t<filename>{key}.jpg</filename>"]
    lines += [f"\t<size><width>{CANVAS[0]}</width><height>{CANVAS[1]}</height><depth>3</depth></size>"]
    for thing in case.things:
        if not thing.in_xml:
            continue
        left, top, width, height = thing.place
        box = f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{left + width}</xmax><ymax>{top + height}</ymax>"
        part = f"<part><name>head</name><bndbox>{box}</bndbox></part>" if thing.name == "person" else ""
        lines += [
            "\t<object>",
            f"\t\t<name>{thing.name}</name><pose>Left</pose><truncated>{int(thing.truncated)}</truncated>",
            f"\t\t<difficult>{int(thing.difficult)}</difficult>{part}<bndbox>{box}</bndbox>",
            "\t</object>",
        ]
    return "\n".join([*lines, "</annotation>"]) + "\n"


def write_car_test_twin(root: Path, count: int = 4) -> Path:
    """ReGAN's `Car_TestSet`: pictures of two sizes with and without background, and their colours."""
    folder = root / "Car_TestSet"
    for index in range(count):
        picture = render("car", "test", index)
        label = picture.label.repeat(1 + index % 2, axis=0)
        image = picture.image.repeat(1 + index % 2, axis=0)
        shown = {
            "image_bg": image,
            "image_no_bg": np.where((label > 0)[..., None], image, 255).astype(np.uint8),
            "gt_mask": np.array(COLOURS, dtype=np.uint8)[label],
        }
        for kind, pixels in shown.items():
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / f"{index:03d}.png")
    return folder


def placed_label(thing: Thing, mini_split: str, index: int) -> np.ndarray:
    """The label map that an object of the twin has by itself: uint8 [H,W] of the canvas."""
    return _placed(thing, mini_split, index)[1]


def _plain(subject: str, index: int) -> Case:
    width, height = 130 + 9 * (index % 8), 100 + 7 * (index % 10)
    return Case(
        (Thing(subject, ((5 * index) % (CANVAS[0] - width), (3 * index) % (CANVAS[1] - height), width, height)),)
    )


def _background(index: int) -> np.ndarray:
    rng = np.random.default_rng(index)
    tile = rng.integers(60, 200, (CANVAS[1] // 20, CANVAS[0] // 20, 3), dtype=np.uint8)
    return np.kron(tile, np.ones((20, 20, 1), dtype=np.uint8))


def _placed(thing: Thing, mini_split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """The object's mini-world picture cut to its extent and scaled to its place: pixels [H,W,3] and label map [H,W]."""
    picture = render(KINDS[thing.name], mini_split, index)
    rows, columns = np.nonzero(picture.label.any(axis=1))[0], np.nonzero(picture.label.any(axis=0))[0]
    left, top, width, height = thing.place
    # Both ends are taken, so that the object fills its place from edge to edge.
    row = np.linspace(rows[0], rows[-1], height).round().astype(int)
    column = np.linspace(columns[0], columns[-1], width).round().astype(int)
    pixels = np.zeros((CANVAS[1], CANVAS[0], 3), dtype=np.uint8)
    label = np.zeros((CANVAS[1], CANVAS[0]), dtype=np.uint8)
    pixels[top : top + height, left : left + width] = picture.image[np.ix_(row, column)]
    label[top : top + height, left : left + width] = _to_the_edges(picture.label[np.ix_(row, column)])
    return pixels, label


def _to_the_edges(label: np.ndarray) -> np.ndarray:
    """Widens an object whose outermost pixel was lost in scaling down: an empty edge repeats the line beside it."""
    label = label.copy()
    for turned in (label, label[::-1], label.T, label.T[::-1]):  # views of it
        first = int(np.flatnonzero(turned.any(axis=1))[0])
        turned[:first] = turned[first]
    return label


def _parts(name: str, label: np.ndarray) -> list[tuple[str, np.ndarray]]:
    found = {"car": _car_parts, "horse": _horse_parts, "person": _person_parts}[name](label)
    return [(part, mask) for part, mask in found if mask.any()]


def _instances(part: str, mask: np.ndarray) -> list[tuple[str, np.ndarray]]:
    components, count = ndimage.label(mask)
    return [(f"{part}_{number}", components == number) for number in range(1, count + 1)]


def _thirds(mask: np.ndarray, axis: int, pieces: int) -> list[np.ndarray]:
    """`mask` cut into `pieces` bands of equal length along an axis (0: rows)."""
    ends = np.flatnonzero(mask.any(axis=1 - axis))
    if not ends.size:
        return [mask] * pieces
    position = np.arange(mask.shape[axis]).reshape((-1, 1) if axis == 0 else (1, -1))
    band = (position - ends[0]) * pieces // (ends[-1] + 1 - ends[0])
    return [mask & (band == number) for number in range(pieces)]


def _car_parts(label: np.ndarray) -> list[tuple[str, np.ndarray]]:
    body, light, plate, wheel, window = (label == index for index in range(1, 6))
    front, door, back = _thirds(body | light | plate | window, 1, 3)
    upper = _thirds(body | window, 0, 3)[0]
    mirror = _thirds(_thirds(body, 0, 5)[1], 1, 5)[1]
    parts = [("frontside", front), ("leftside", door | back), ("roofside", upper), ("door_1", door)]
    parts += [*_instances("wheel", wheel), ("leftmirror", mirror), ("fliplate", plate)]
    # In PASCAL-Part, too, the order of parts follows no rule: body parts may come after those that they lie under.
    return _instances("window", window) + parts + _instances("headlight", light) + [("backside", back)]


def _horse_parts(label: np.ndarray) -> list[tuple[str, np.ndarray]]:
    head, torso, leg, tail = (label == index for index in range(1, 5))
    ear, _, muzzle = _thirds(head, 0, 3)
    parts = [("tail", tail), ("head", head), ("lear", ear), ("muzzle", muzzle), ("leye", _thirds(head, 1, 4)[1])]
    for name, column in zip(("lf", "rf", "lb", "rb"), _thirds(leg, 1, 4), strict=True):
        parts += list(zip((f"{name}uleg", f"{name}lleg", f"{name}ho"), _thirds(column, 0, 3), strict=True))
    neck, *rest = _thirds(torso | _thirds(leg, 0, 3)[0], 1, 3)
    return [*parts, ("neck", neck), ("torso", np.logical_or.reduce(rest))]


def _person_parts(label: np.ndarray) -> list[tuple[str, np.ndarray]]:
    parts = {"head": label > 0, "mouth": label == 3, "nose": label == 4, "neck": label == 7, "torso": label == 8}
    return [*parts.items(), ("hair", label == 9), ("lear", label == 6)]

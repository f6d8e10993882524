"""A small COCO in its raw layout: scenes of rectangles as polygons, run lengths and run-length texts.

<root>/{train2017,val2017}/<12 digits>.jpg
<root>/annotations/instances_{train2017,val2017}.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORY_IDS = [each for each in range(1, 91) if each not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
"""The 80 ids of COCO, which has gaps; label k is the k-th of them."""
SIZE = (60, 80)  # height, width
POLYGON, RUNS, TEXT = "polygon", "runs", "text"
FORMS = (POLYGON, RUNS, TEXT)


@dataclass(frozen=True)
class Thing:
    """An object: label, (top, left, bottom, right) in whole pixels, and how it is annotated."""

    label: int
    box: tuple[int, int, int, int]
    form: str = POLYGON
    crowd: bool = False

    def mask(self, size: tuple[int, int]) -> np.ndarray:
        found = np.zeros(size, bool)
        top, left, bottom, right = self.box
        found[top:bottom, left:right] = True
        return found


Scene = Sequence[Thing]


def alone(label: int, side: int = 40, form: str = POLYGON) -> list[Thing]:
    """A scene with one object."""
    return [Thing(label, (2, 3, 2 + side, 3 + side), form)]


def runs_of(mask: np.ndarray) -> list[int]:
    """Run lengths of bool [H,W], columns first, zeros first."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *edges, flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths


def text_of(runs: Sequence[int]) -> str:
    """The run-length text of numbers: differences to the last but one from the fourth on, five bits a character."""
    text = ""
    for index, count in enumerate(runs):
        value, more = count - (runs[index - 2] if index > 2 else 0), True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


def annotation(thing: Thing, number: int, image: int, size: tuple[int, int]) -> dict[str, Any]:
    """The JSON object of one thing."""
    top, left, bottom, right = thing.box
    runs = runs_of(thing.mask(size))
    middle = (left + right) // 2  # two polygons, as of an object that something hides in part
    halves = [(left, middle), (middle, right)]
    shape: Any = {
        POLYGON: [[float(each) for each in (a, top, b, top, b, bottom, a, bottom)] for a, b in halves if a < b],
        RUNS: {"size": list(size), "counts": runs},
        TEXT: {"size": list(size), "counts": text_of(runs)},
    }[thing.form]
    return {
        "id": number,
        "image_id": image,
        "category_id": CATEGORY_IDS[thing.label - 1],
        "iscrowd": int(thing.crowd),
        "area": float((bottom - top) * (right - left)),
        "bbox": [left, top, right - left, bottom - top],
        "segmentation": shape,
    }


def expected_label(scene: Scene, size: tuple[int, int], overlap: str = "later", crowd: str = "class") -> np.ndarray:
    """uint8 [H,W], painted with whole rectangles."""
    label = np.zeros(size, np.uint8)
    single = [thing for thing in scene if not thing.crowd]
    if overlap == "smaller":
        single.sort(key=lambda thing: -thing.mask(size).sum())
    for thing in [thing for thing in scene if thing.crowd]:
        if crowd != "background":
            label[thing.mask(size)] = thing.label if crowd == "class" else 255
    for thing in single:
        label[thing.mask(size)] = thing.label
    return label


def write_coco_split(
    root: Path, name: str, scenes: Sequence[Scene], classes: Sequence[str], size: tuple[int, int] = SIZE, first: int = 9
) -> list[str]:
    """Write the images and annotations of a split; returns the stems of the images."""
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, objects, stems = [], [], []
    for index, scene in enumerate(scenes):
        number = first + 3 * index
        stem = f"{number:012d}"
        label = expected_label(scene, size).astype(np.int64)
        noise = np.random.default_rng(number).integers(0, 60, (*size, 3))
        pixels = (label[..., None] * np.array([37, 91, 53]) % 190 + noise).astype(np.uint8)
        Image.fromarray(pixels).save(root / name / f"{stem}.jpg")
        images.append({"id": number, "file_name": f"{stem}.jpg", "height": size[0], "width": size[1], "license": 1})
        objects += [annotation(thing, 7000 + len(objects) + at, number, size) for at, thing in enumerate(scene)]
        stems.append(stem)
    named = zip(CATEGORY_IDS, classes[1:], strict=False)
    categories = [{"id": key, "name": label, "supercategory": "any"} for key, label in named]
    content = {
        "info": {"year": 2017},
        "licenses": [],
        "images": images[::-1],  # the real files are in no order either
        "annotations": objects,
        "categories": categories,
    }
    (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
    return stems


def write_coco_twin(root: Path, classes: Sequence[str]) -> dict[str, list[str]]:
    """By default three images of each class to train on, and three of several classes to test on."""
    labels = range(1, len(classes))
    train = [alone(label, form=FORMS[label % 3]) for _ in range(3) for label in labels]
    val = [
        [Thing(1, (5, 5, 40, 50)), Thing(2, (20, 30, 50, 70), TEXT)],
        [Thing(80 if len(classes) > 80 else 1, (0, 0, 60, 80), RUNS, crowd=True), Thing(3, (10, 10, 30, 30))],
        [Thing(17 if len(classes) > 17 else 1, (8, 4, 40, 60))],
    ]
    return {
        "train2017": write_coco_split(root, "train2017", train, classes, first=100),
        "val2017": write_coco_split(root, "val2017", val, classes, first=9000),
    }

"""COCO's `instances_*.json`, read once into a compact index, and label maps made of it on demand.

Coordinates lie in float32 arrays and every other key of the file is dropped while it is parsed, so that a file of 20 MB
(val2017) takes about as much memory again. Label maps are never kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from slime_bench.data.datasets.coco_masks import Polygon, decode_runs, fill_polygon, fill_truncated, polygon_area, run_lengths
from slime_bench.data.labels import IGNORE, nearest
from slime_bench.data.layouts import listing
from slime_bench.errors import DataError

LATER, SMALLER = OVERLAPS = ("later", "smaller")
CLASS, IGNORED, BACKGROUND = CROWDS = ("class", "ignore", "background")
ALL, FIRST = POLYGONS = ("all", "first")

_REMEDY: Final = "download the annotations again (annotations_trainval2017.zip), or correct the file"


@dataclass(frozen=True)
class Rules:
    """How the masks of objects become one label map; see `CocoConfig`."""

    overlap: str = LATER
    crowd: str = CLASS
    polygons: str = ALL


@dataclass(frozen=True)
class Runs:
    """A mask as run lengths: (height, width), and numbers or text."""

    size: tuple[int, int]
    counts: tuple[int, ...] | str


@dataclass(frozen=True)
class Annotation:
    """One object: its category, and polygons (float32 [N,2] each) or run lengths."""

    image: int
    category: int
    crowd: bool
    shape: tuple[Polygon, ...] | Runs


@dataclass(frozen=True)
class Photo:
    """An image of the file; (height, width) in pixels."""

    id: int
    file: str
    size: tuple[int, int]


class Instances:
    """The objects of one annotation file.

    Args:
        path: an `instances_*.json`.
        classes: class names in label order; those of the file's categories have to be among them.

    Raises:
        DataError: unreadable, not of this kind, an object of an unknown category or image, or a category that is no
            class.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self.path = path
        content = _read(path)
        self.photos: list[Photo] = sorted(content["images"], key=lambda photo: photo.file)
        categories = self._categories(content["categories"])
        known = {photo.id for photo in self.photos}
        self._objects: dict[int, list[Annotation]] = {}
        for each in content["annotations"]:
            if each.category not in categories or each.image not in known:
                what = "image" if each.category in categories else "category"
                raise DataError(
                    f"an annotation of an unknown {what}",
                    path=path,
                    found=f"{what}_id {each.image if what == 'image' else each.category} (image {each.image})",
                    expected=f"one of the file's {len(known)} images"
                    if what == "image"
                    else f"one of the categories {listing([f'{key} {name}' for key, name in categories.items()])}",
                    remedy=_REMEDY,
                )
            self._objects.setdefault(each.image, []).append(each)
        names = list(classes)
        strangers = [name for name in categories.values() if name not in names[1:]]
        if strangers:
            close = nearest(strangers[0], names[1:])
            raise DataError(
                f"the annotations have categories that are no class: {listing(strangers)}",
                path=path,
                found=f"{len(categories)} categories",
                expected=f"the classes {listing(names[1:])}",
                remedy="name them in `data.classes`"
                + (f"; did you mean `{close[0]}` by `{strangers[0]}`?" if close else ""),
            )
        self._label_of = {key: names.index(name) for key, name in categories.items()}

    def shown(self, photo: Photo) -> set[int]:
        """The labels of an image's objects, hidden ones included; no mask is decoded."""
        return {self._label_of[each.category] for each in self._objects.get(photo.id, [])}

    def label(self, photo: Photo, rules: Rules) -> NDArray[np.uint8]:
        """The label map of an image, uint8 [H,W]: 0 where no object is.

        Crowd regions come first, so that single objects lie above them.

        Raises:
            DataError: run lengths that do not fit the image.
        """
        label = np.zeros(photo.size, np.uint8)
        objects = sorted(self._objects.get(photo.id, []), key=lambda each: not each.crowd)  # stable
        if rules.overlap == SMALLER:
            objects.sort(key=lambda each: (not each.crowd, -self._area(each, photo)))
        for each in objects:
            value = self._label_of[each.category]
            if each.crowd and rules.crowd != CLASS:
                if rules.crowd == BACKGROUND:
                    continue
                value = IGNORE
            if isinstance(each.shape, Runs):
                label[self._mask(each.shape, photo)] = value
            elif rules.polygons == FIRST:
                fill_truncated(label, each.shape[0], value)
            else:
                for polygon in each.shape:
                    fill_polygon(label, polygon, value)
        return label

    def _area(self, each: Annotation, photo: Photo) -> float:
        if isinstance(each.shape, Runs):
            return float(self._mask(each.shape, photo).sum())
        return sum(polygon_area(polygon) for polygon in each.shape)

    def _mask(self, runs: Runs, photo: Photo) -> NDArray[np.bool_]:
        try:
            if runs.size != photo.size:
                raise ValueError(f"a mask of {runs.size[1]}x{runs.size[0]}")
            counts = run_lengths(runs.counts) if isinstance(runs.counts, str) else runs.counts
            return decode_runs(counts, *photo.size)
        except ValueError as error:
            raise DataError(
                "the mask of an object does not fit its image",
                path=f"{self.path}: {photo.file}",
                found=str(error),
                expected=f"run lengths of {photo.size[1]}x{photo.size[0]} pixels (width x height)",
                remedy=_REMEDY,
            ) from error

    def _categories(self, found: Sequence[Mapping[str, Any]]) -> dict[int, str]:
        try:
            return {int(each["id"]): str(each["name"]) for each in found}
        except (KeyError, TypeError, ValueError) as error:
            raise _unlike(self.path, f"a category without id or name ({error!r})") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes(), object_hook=_compact)
    except FileNotFoundError as error:
        raise DataError(
            "the annotations are not there", path=path, found="nothing", expected="an instances_*.json", remedy=_REMEDY
        ) from error
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DataError(
            "cannot read the annotations", path=path, found=found, expected="COCO's JSON of instances", remedy=_REMEDY
        ) from error
    if not isinstance(content, dict):
        raise _unlike(path, type(content).__name__)
    for key, kind in (("images", Photo), ("annotations", Annotation), ("categories", dict)):
        values = content.get(key)
        if not isinstance(values, list):
            raise _unlike(path, f"the keys {listing(sorted(content))}")
        odd = next((each for each in values if not isinstance(each, kind)), None)
        if odd is not None:
            raise _unlike(path, f"in `{key}`: {str(odd)[:100]}")
    return content


def _compact(each: dict[str, Any]) -> Any:
    """What is kept of one JSON object, as soon as it is parsed."""
    if "segmentation" in each and "category_id" in each:
        crowd = bool(each.get("iscrowd", 0))
        return Annotation(int(each["image_id"]), int(each["category_id"]), crowd, _shape(each["segmentation"]))
    if "file_name" in each and "height" in each:
        return Photo(int(each["id"]), str(each["file_name"]), (int(each["height"]), int(each["width"])))
    return each


def _shape(found: Any) -> tuple[Polygon, ...] | Runs:
    if isinstance(found, dict):
        height, width = found["size"]
        counts = found["counts"]
        return Runs((int(height), int(width)), counts if isinstance(counts, str) else tuple(map(int, counts)))
    if not isinstance(found, list) or not found:
        raise ValueError(f"a segmentation that is {str(found)[:60] or 'empty'}")
    polygons = tuple(np.asarray(each, np.float32).reshape(-1, 2) for each in found)
    if not all(np.isfinite(each).all() for each in polygons):
        raise ValueError("a polygon with a corner that is no number")
    return polygons


def _unlike(path: Path, found: str) -> DataError:
    return DataError(
        "the file does not hold COCO's instances",
        path=path,
        found=found,
        expected="`images` (id, file_name, height, width), `annotations` (image_id, category_id, segmentation) and "
        "`categories` (id, name)",
        remedy="name a folder with annotations/instances_<split>.json, or correct the file",
    )

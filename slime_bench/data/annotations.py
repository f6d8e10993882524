"""What labelling tools write, as masks: polygons and other shapes of labelme and COCO, and one file for each part.

A shape that comes later in the file lies above the earlier ones. What is covered, cut off or left out is said in the
mask's notes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageOps
from pydantic import FiniteFloat

from slime_bench.data.coco_json import (
    EXPORTS,
    KINDS,
    find_image,
    is_coco,
    is_labelme,
    read_as,
    read_coco,
    read_json,
    region_of,
)
from slime_bench.data.label_maps import BACKGROUND, IGNORE, IGNORE_NAME, counted, listing
from slime_bench.data.layouts import JSON, Pair
from slime_bench.data.mask_files import DECODING_ERRORS, Mask, read_mask, upright_size
from slime_bench.errors import DataError, LabelError

_FIXED: Final = {BACKGROUND: 0, "_background_": 0, IGNORE_NAME: IGNORE, "__ignore__": IGNORE}
"""Names that have a value of their own; those with underscores are labelme's."""
_POINTS: Final = {"polygon": "3 or more", "rectangle": "2 or 4", "circle": "2", "mask": "2"}
"""labelme's shapes that have an area, and how many points they have."""


def read_annotation(pair: Pair) -> Mask:
    """The mask of an annotated image: of a JSON file of labelme or COCO, of one file for each part, or `read_mask`.

    Where the files name the classes, `Mask.names` has them, in order of the name (COCO: of the file's categories); what
    is called `background` is 0, and `ignore` is 255.

    Raises:
        DataError: a file that cannot be read or is of another kind, or does not list the image.
        LabelError: shapes without an area or outside the picture, another size than the image's, no binary mask.
    """
    if pair.parts:
        return _of_parts(pair)
    if pair.label.suffix.lower() != JSON:
        return read_mask(pair.label)
    content = read_json(pair.label)
    if is_labelme(content):
        return _of_labelme(pair)
    if is_coco(content):
        return _of_coco(pair)
    keys = f"the keys {listing(sorted(map(str, content)))}" if isinstance(content, dict) else "a list"
    raise DataError(
        "the JSON file is of no kind that is read here", path=pair.label, found=keys, expected=KINDS,
        remedy=f"export the annotations in another format: {EXPORTS}",
    )  # fmt: skip


class _Canvas:
    """A label map of `size` (H, W) that is painted one part after the other, and remembers what each covers. `classes`:
    their names in order of the value."""

    def __init__(self, path: Path, size: tuple[int, int], classes: Iterable[str]) -> None:
        self.path = path
        names = dict.fromkeys(classes)
        self.number = {name: value for name, value in _FIXED.items() if name in names}
        self.number |= numbered([name for name in names if name not in _FIXED], path)
        self.size, self.values = size, np.zeros(size, np.int64)
        self.notes: list[str] = []
        self._under = np.zeros(size, np.int64)

    def paint(self, region: NDArray[np.bool_], name: str) -> None:
        value, before = self.number[name], self.values[region]
        self._under[region] = np.where((before != 0) & (before != value), before, self._under[region])
        self.values[region] = value

    def mask(self, titles: dict[str, str] | None = None) -> Mask:
        """What was painted. `titles`: name -> what the notes call it."""
        title = {value: (titles or {}).get(name, name) for name, value in self.number.items()}
        name = {value: name for name, value in self.number.items()}
        over = (self._under != 0) & (self._under != self.values)
        pairs, counts = np.unique(np.stack([self.values[over], self._under[over]]), axis=1, return_counts=True)
        covering = [
            f"{title.get(top, BACKGROUND)} over {title[below]}: {count} pixels belong to {name.get(top, BACKGROUND)}"
            for (top, below), count in zip(pairs.T.tolist(), counts.tolist(), strict=True)
        ]
        prefix = "" if titles else f"{self.path.name}: "
        names = {value: name for value, name in name.items() if value not in (0, IGNORE)}
        notes = tuple(f"{prefix}{note}" for note in (*self.notes, *covering))
        return Mask(self.path, self.values, names=names, notes=notes)


def numbered(names: Sequence[str], path: Path) -> dict[str, int]:
    """1, 2, ... for classes that files name; LabelError for more than a label map can hold."""
    if len(names) >= IGNORE:
        raise LabelError(
            "there are too many classes", path=path, found=f"{len(names)} names", expected=f"at most {IGNORE - 1}",
            remedy="annotate the parts of one kind of object; each class is one that is looked for in every picture",
        )  # fmt: skip
    return {name: value for value, name in enumerate(names, 1)}


# --- shapes: labelme and COCO


@dataclass(frozen=True)
class _Shape:
    """A shape of labelme. Points are x, y in pixels; `mask` is a PNG file in base64, whose upper left pixel lies at the
    first point."""

    label: str
    points: list[tuple[FiniteFloat, FiniteFloat]]
    shape_type: str | None = "polygon"
    mask: str | None = None


@dataclass(frozen=True)
class _Labelme:
    shapes: list[_Shape]
    imageHeight: int | None = None
    imageWidth: int | None = None
    imagePath: str | None = None


def _of_labelme(pair: Pair) -> Mask:
    """Drawn as labelme's own export does: with Pillow, the outline included."""
    file = read_as(_Labelme, pair.label, "labelme's JSON")
    size = upright_size(pair.image)
    declared = (file.imageHeight or size[0], file.imageWidth or size[1])
    _check_declared(pair, declared, size)
    canvas = _Canvas(pair.label, size, sorted({each.label for each in file.shapes}))
    made_for = PureWindowsPath(file.imagePath or pair.image.name).name  # which knows both kinds of slashes
    if made_for != pair.image.name:
        canvas.notes.append(f"drawn on {made_for}, and given with {pair.image.name}")
    left_out: list[str] = []
    for place, shape in enumerate(file.shapes, 1):
        kind = shape.shape_type or "polygon"
        if kind not in _POINTS:
            left_out.append(f"{kind} `{shape.label}`")
            continue
        where = f"shape {place} ({kind} `{shape.label}`)"
        points = _checked(canvas, where, shape.points, least=3 if kind == "polygon" else 2)
        if (kind == "rectangle" and len(points) not in (2, 4)) or (kind in ("circle", "mask") and len(points) != 2):
            raise _few(pair.label, where, len(points), _POINTS[kind])
        canvas.paint(_drawn(canvas, where, kind, points, shape.mask), shape.label)
    if left_out:
        canvas.notes.append(
            f"left out, as only polygons, rectangles, circles and masks are filled: {listing(left_out)}"
        )
    return canvas.mask()


def _drawn(canvas: _Canvas, where: str, kind: str, points: NDArray[np.float64], mask: str | None) -> NDArray[np.bool_]:
    """The pixels of a shape of labelme, bool [H,W]."""
    height, width = canvas.size
    picture = Image.new("L", (width, height))
    draw = ImageDraw.Draw(picture)
    if kind == "mask":
        try:
            with Image.open(io.BytesIO(base64.b64decode(mask or "", validate=True))) as file:
                region = np.array(file.convert("L")) > 0
        except DECODING_ERRORS as error:
            raise LabelError(
                "the mask of a shape does not decode", path=canvas.path, found=f"{where}: {len(mask or '')} characters",
                expected="a PNG file in base64, as labelme writes it", remedy="save the file in labelme again",
            ) from error  # fmt: skip
        left, top = (int(value) for value in np.rint(points.min(axis=0)))
        picture.paste(Image.fromarray(region), (left, top))
    elif kind == "circle":
        (x, y), edge = points
        radius = float(np.hypot(*(edge - points[0])))
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=1, outline=1)
    elif kind == "rectangle" and len(points) == 2:
        draw.rectangle([*points.min(axis=0), *points.max(axis=0)], fill=1, outline=1)
    else:
        draw.polygon([(float(x), float(y)) for x, y in points], fill=1, outline=1)
    return np.array(picture) > 0


def _of_coco(pair: Pair) -> Mask:
    """Drawn by pycocotools: an object is the union of its polygons. Crowd regions are ignored, and lie below."""
    file = read_coco(pair.label)
    photo, names = find_image(file, pair.image, pair.label), file.used()
    _check_declared(pair, (photo.height, photo.width), upright_size(pair.image))
    objects = [each for each in file.annotations if each.image_id == photo.id]
    boxes = [each for each in objects if not each.segmentation]
    if boxes and len(boxes) == len(objects):
        raise LabelError(
            "the annotations are bounding boxes, without outlines", path=pair.label,
            found=f"{len(boxes)} object(s) of {photo.file_name} without `segmentation`",
            expected="polygons or run lengths",
            remedy=f"export with outlines ({EXPORTS}); what was drawn as boxes has to be drawn again as polygons",
        )  # fmt: skip
    canvas = _Canvas(pair.label, (photo.height, photo.width), [*names.values(), IGNORE_NAME])
    if boxes:
        canvas.notes.append(
            f"left out, as they are bounding boxes only: {listing([names[x.category_id] for x in boxes])}"
        )
    for place, each in sorted(enumerate(objects, 1), key=lambda item: not item[1].iscrowd):  # stable
        if each.segmentation:
            where = f"object {place} of {photo.file_name} (`{names[each.category_id]}`)"
            for polygon in each.segmentation if isinstance(each.segmentation, list) else ():
                _checked(canvas, where, polygon, least=3)
            region = region_of(each, canvas.size, canvas.path, where)
            canvas.paint(region, IGNORE_NAME if each.iscrowd else names[each.category_id])
    return canvas.mask()


def _checked(canvas: _Canvas, where: str, points: ArrayLike, least: int) -> NDArray[np.float64]:
    """Points [N,2] of a shape, which lie in the picture, or not far outside."""
    array = np.asarray(points, np.float64)
    if array.size % 2:
        raise _few(canvas.path, where, f"{array.size} numbers", "an even number: x, y, x, y, ...")
    array = array.reshape(-1, 2)
    if len(array) < least:
        raise _few(canvas.path, where, len(array), f"{least} or more")
    height, width = canvas.size
    size, low, high = np.array([width, height]), array.min(axis=0), array.max(axis=0)
    if (high < 0).any() or (low > size).any() or (low < -size).any() or (high > 2 * size).any():
        raise LabelError(
            "a shape lies outside the picture", path=canvas.path,
            found=f"{where}: x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g}",
            expected=f"points in a picture of {width}x{height} (width x height)",
            remedy="the annotation may be one of another picture, or of this one in another size: give the file that "
            "was annotated",
        )  # fmt: skip
    if (low < -1).any() or (high > size + 1).any():
        canvas.notes.append(f"{where} reaches out of the picture, and is cut off at its border")
    return array


def _few(path: Path, where: str, found: object, expected: str) -> LabelError:
    return LabelError(
        "a shape has the wrong number of points", path=path, found=f"{where}: {found}", expected=expected,
        remedy="draw it again, or delete it in the labelling tool, and save or export again",
    )  # fmt: skip


def _check_declared(pair: Pair, declared: tuple[int, int], size: tuple[int, int]) -> None:
    """Refuse annotations that were made for a picture of another size, both as (height, width)."""
    if declared != size:
        turned = declared == size[::-1]
        raise LabelError(
            "the annotations are of a picture of another size", path=pair.label,
            found=f"{declared[1]}x{declared[0]}", expected=f"{size[1]}x{size[0]} (width x height) as {pair.image}",
            remedy="the picture's EXIF orientation turns it, as viewers show it: save it turned, and annotate that file"
            if turned else "give the picture that was annotated, in its original size",
        )  # fmt: skip


# --- one file for each part


def _of_parts(pair: Pair) -> Mask:
    regions = [(name, path, _painted(path)) for name, path in pair.parts]
    _, first, region = regions[0]
    canvas = _Canvas(pair.label, (region.shape[0], region.shape[1]), sorted({name for name, _ in pair.parts}))
    titles: dict[str, str] = {}
    for name, path, region in regions:
        if region.shape != canvas.size:
            raise LabelError(
                "the files of the parts differ in size", path=path, found=f"{region.shape[1]}x{region.shape[0]}",
                expected=f"{canvas.size[1]}x{canvas.size[0]} (width x height) as {first.name}",
                remedy="export all parts in the size of their image, without interpolation",
            )  # fmt: skip
        if not region.any():
            canvas.notes.append(f"{path.name}: nothing is painted")
        titles.setdefault(name, path.name)
        canvas.paint(region, name)
    return canvas.mask(titles)


def _painted(path: Path) -> NDArray[np.bool_]:
    """Where the part is, bool [H,W], in a picture or array of two values: what is opaque in one with transparency,
    otherwise what is neither 0 nor black."""
    values: NDArray[Any] | None = _layers(path)
    if values is None:
        mask = read_mask(path).by_colour()
        values, shown = mask.values, counted(mask.values, mask.coloured)
    else:
        shown = f"{np.unique(values).size} colours or opacities"
    found = np.unique(values).tolist()
    if len(found) > 2 or (len(found) == 2 and 0 not in found):
        many = len(found) > 2
        raise LabelError(
            "a part's own mask has more than two values" if many else "nothing says which of two values is the part",
            path=path, found=shown,
            expected="0 or black (or transparent) for the rest, and one other value for the part",
            remedy="soft edges have values in between: paint with a hard brush, and export without anti-aliasing; a "
            "mask of several classes is given alone" if many else "make the rest black",
        )  # fmt: skip
    painted: NDArray[np.bool_] = values != 0
    return painted


def _layers(path: Path) -> NDArray[np.uint32] | None:
    """Of a picture that is transparent in places, [H,W]: 0 there, elsewhere one value for each colour and opacity."""
    if path.suffix.lower() == ".npy":
        return None
    try:
        with Image.open(path) as file:
            if not file.has_transparency_data or getattr(file, "n_frames", 1) > 1:
                return None
            array = np.ascontiguousarray(ImageOps.exif_transpose(file).convert("RGBA"))
    except DECODING_ERRORS:
        return None  # `read_mask` says what is wrong with it
    opacity = array[..., 3]
    return None if (opacity == 255).all() else np.where(opacity == 0, 0, array.view(np.uint32)[..., 0])

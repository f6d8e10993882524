"""COCO's JSON: run lengths and polygons of objects, in COCO's own files and in those of labelling tools."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath, PureWindowsPath
from typing import Annotated, Any, Final, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import AfterValidator, FiniteFloat, TypeAdapter, ValidationError

from slime_bench.data.label_maps import listing
from slime_bench.data.manifest import Stamp, stamp
from slime_bench.errors import DataError, LabelError
from slime_bench.storage import read_text

T = TypeVar("T")

KINDS: Final = "labelme's JSON (one file for each image), or COCO JSON with polygons or run lengths"
EXPORTS: Final = (
    "in CVAT choose `COCO 1.0` or `Segmentation mask 1.1`, in Label Studio `COCO` or `Brush labels to PNG`, in "
    "Roboflow `COCO Segmentation` or `Semantic Segmentation Masks`; labelme's own files are read as they are"
)


@dataclass(frozen=True)
class Runs:
    """A mask as COCO's run lengths: (height, width), and numbers or text."""

    size: tuple[int, int]
    counts: list[int] | str


Polygon = Annotated[list[FiniteFloat], AfterValidator(np.asarray)]
"""x, y, x, y, ... in pixels of the image, whose upper left pixel reaches from 0 to 1; float64 once it is read, as the
files of COCO itself hold millions of corners."""


@dataclass(frozen=True)
class CocoObject:
    """One object; without `segmentation` it is a bounding box only."""

    image_id: int | str
    category_id: int | str
    segmentation: Runs | list[Polygon] | None = None
    iscrowd: bool = False


@dataclass(frozen=True)
class CocoImage:
    id: int | str
    file_name: str
    height: int
    width: int

    @property
    def parts(self) -> tuple[str, ...]:
        """Of `file_name`, which may have been written on Windows, in Unicode's composed form (NFC)."""
        path = PureWindowsPath(self.file_name) if "\\" in self.file_name else PurePath(self.file_name)
        return tuple(unicodedata.normalize("NFC", part) for part in path.parts)


@dataclass(frozen=True)
class CocoCategory:
    id: int | str
    name: str


@dataclass(frozen=True)
class CocoFile:
    """What is used of a file; every other key is dropped while it is parsed."""

    images: list[CocoImage]
    annotations: list[CocoObject]
    categories: list[CocoCategory]

    def used(self) -> dict[int | str, str]:
        """id -> name of the categories that have objects, in the file's order. Roboflow's first category, which is
        called after the project, has none."""
        there = {each.category_id for each in self.annotations}
        return {each.id: each.name for each in self.categories if each.id in there}

    def annotated(self) -> list[CocoImage]:
        """The images that have objects."""
        there = {each.image_id for each in self.annotations}
        return [each for each in self.images if each.id in there]


def is_coco(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("images"), list) and "annotations" in content


def is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def read_json(path: Path) -> Any:
    """What a JSON file holds; DataError for a file that cannot be read, that is not UTF-8, or no JSON."""
    try:
        return json.loads(read_text(path, DataError))
    except (ValueError, RecursionError) as error:
        raise DataError(
            "the file is no valid JSON", path=path, found=error, expected=KINDS,
            remedy="the file may have been cut short or edited by hand: export it again",
        ) from error  # fmt: skip


def read_coco(path: Path) -> CocoFile:
    """The images, objects and categories of a COCO file. The last file is kept, as there is one for many images.
    DataError: it cannot be read, is of another kind, or an object is of a category that is not in it."""
    return _read_coco(path, stamp(path))


@lru_cache(maxsize=1)
def _read_coco(path: Path, changed: Stamp) -> CocoFile:
    content = read_as(CocoFile, path, "COCO JSON")
    nameless = {each.category_id for each in content.annotations} - {each.id for each in content.categories}
    if nameless:
        raise DataError(
            "the annotations have categories without a name", path=path, found=f"category_id {min(nameless, key=str)}",
            expected="an entry in `categories` for each `category_id`", remedy="export the annotations again",
        )  # fmt: skip
    return content


def find_image(content: CocoFile, image: Path, path: Path) -> CocoImage:
    """The entry of a picture in the file: by its name, and by its folder where several have that name; DataError: there
    is none, or several."""
    name = unicodedata.normalize("NFC", image.name)
    found = [each for each in content.images if each.parts[-1:] == (name,)]
    if len(found) > 1:
        found = [each for each in found if each.parts[-2:] == image.parts[-2:]] or found
    if len(found) == 1:
        return found[0]
    names = [each.file_name for each in found or content.images]
    raise DataError(
        "the annotations list several pictures of this name" if found else "the annotations do not list this picture",
        path=path, found=listing(names) or "no image", expected=f"{image.name} among the `file_name`s",
        remedy="give the picture that was annotated, under the name that it had in the labelling tool"
        if not found else "rename all but one of them, in the file as well",
    )  # fmt: skip


def read_as(kind: type[T], path: Path, title: str) -> T:
    """The content of a JSON file as its dataclass `kind`; a DataError says where in the file it is something else."""
    try:
        return TypeAdapter(kind).validate_json(read_text(path, DataError))
    except ValidationError as error:
        # A mask may be of two kinds: what is wrong with the likelier one.
        worst = max(error.errors(include_url=False), key=lambda each: len(each["loc"]))
        raise DataError(
            f"the file is not {title} as it should be", path=path, expected=KINDS,
            found=f"{'.'.join(map(str, worst['loc'])) or 'the file'}: {worst['msg']}",
            remedy=f"download the annotations again, or export them again: {EXPORTS}",
        ) from error  # fmt: skip


def region_of(each: CocoObject, size: tuple[int, int], path: Path, where: str) -> NDArray[np.bool_]:
    """The pixels of an object in an image of `size` (H, W), bool [H,W]. LabelError, which names the file and `where` in
    it: see `mask_of`, and an object without an outline."""
    try:
        if not each.segmentation:
            raise ValueError("no outline")
        return mask_of(each.segmentation, *size)
    except ValueError as error:
        raise LabelError(
            "the outline of an object does not fit its image", path=path, found=f"{where}: {error}",
            expected=f"polygons, or run lengths of {size[1]}x{size[0]} pixels (width x height)",
            remedy="download the annotations again, or export them again",
        ) from error  # fmt: skip


def mask_of(shape: Runs | Sequence[ArrayLike], height: int, width: int) -> NDArray[np.bool_]:
    """The pixels of an object, bool [height,width]: of all its polygons, or of its run lengths. ValueError: run lengths
    of another size, or that do not add up to the image; a polygon of an odd number."""
    from pycocotools import mask as coco

    if not isinstance(shape, Runs):
        flat = [np.asarray(each, np.float64).ravel().tolist() for each in shape]
        odd = [len(each) for each in flat if len(each) % 2]
        if odd:
            raise ValueError(f"a polygon of {odd[0]} numbers")
        polygons = [each for each in flat if len(each) >= 6]  # fewer corners enclose nothing
        if not polygons:
            return np.zeros((height, width), bool)
        return coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))).astype(bool)
    size, counts = shape.size, shape.counts
    if size != (height, width):
        raise ValueError(f"a mask of {size[1]}x{size[0]}")
    # pycocotools leaves what the run lengths do not reach as the memory happens to be.
    if isinstance(counts, str):
        decoded = coco.decode({"size": size, "counts": counts.encode()})
        if coco.encode(np.asfortranarray(decoded))["counts"] != counts.encode():
            raise ValueError("run lengths of another image")
        return decoded.astype(bool)
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError(f"run lengths of {sum(counts)} pixels for an image of {width}x{height}")
    return coco.decode(coco.frPyObjects({"size": size, "counts": counts}, height, width)).astype(bool)

"""Annotated images, as files or as what the Python call takes (paths, PIL images, arrays): read, and checked against
each other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slime_bench.data.annotations import read_annotation
from slime_bench.data.class_files import ClassSpec, parse_classes, read_classes
from slime_bench.data.layouts import Pair, find_pairs, parts_of
from slime_bench.data.mask_files import Mask, array_mask, picture_mask, read_mask
from slime_bench.data.masks import Classes, resolve
from slime_bench.data.reading import check_size, read_image, rgb
from slime_bench.errors import ConfigError, DataError

Picture = str | Path | Image.Image | NDArray[np.uint8]
Masklike = str | Path | Image.Image | NDArray[Any]
Classlike = str | Path | Sequence[str] | Mapping[str, Any] | None
Example = tuple[Pair, NDArray[np.uint8], Mask]
"""An annotated image as it was given: the names of its files, uint8 [H,W,3], and its mask."""
_SINGLE = (str, Path, Image.Image, np.ndarray)


@dataclass(frozen=True)
class Support:
    """Annotated images.

    Attributes:
        names: of the image files.
        images: uint8 [H,W,3] each. labels: uint8 [H,W] each, 0..K-1 or 255 = ignore.
    """

    names: tuple[str, ...]
    images: tuple[NDArray[np.uint8], ...]
    labels: tuple[NDArray[np.uint8], ...]
    classes: Classes

    @property
    def ids(self) -> list[str]:
        """Ids in the data set, by position: random draws are keyed by them, and a file may have any name."""
        return [f"{index:03d}" for index in range(len(self.images))]

    def fingerprint(self) -> str:
        """SHA-256 of the pixels and labels."""
        digest = hashlib.sha256()
        for array in (*self.images, *self.labels):
            digest.update(f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def pair_up(images: Sequence[Path], masks: Sequence[Path], folder: Path | None) -> list[Pair]:
    """Every annotated image and its mask: in order, or of a folder in any layout that `data.layouts` knows. Several
    masks of one image are its parts.

    Raises:
        ConfigError: as many masks as images it is not, or both a folder and files. DataError: see `find_pairs`.
    """
    if folder is not None:
        if images or masks:
            raise ConfigError(
                "annotated images are given twice", path="--support", found="--support beside --image or --mask",
                expected="one of the two", remedy="put the files into the folder, or name all of them",
            )  # fmt: skip
        return find_pairs(folder)
    if len(images) == 1 and len(masks) > 1:
        parts = parts_of(masks, images[0])
        return [Pair(images[0].stem, images[0], masks[0], parts)]
    if len(images) != len(masks):
        raise ConfigError(
            "every annotated image needs its mask", path="--image, --mask",
            found=f"{len(images)} image(s), {len(masks)} mask(s)", expected="as many masks as images, in their order",
            remedy="give --image and --mask once for each annotated image; several masks of one image are its parts",
        )  # fmt: skip
    return [Pair(image.stem, image, mask) for image, mask in zip(images, masks, strict=True)]


def read_support(pairs: Sequence[Pair], spec: ClassSpec, *, accept: bool = False) -> Support:
    """The annotated images of files, their label maps and classes.

    Raises:
        DataError, LabelError, ConfigError: an unreadable file, a mask of another size; see also `resolve`.
    """
    return _support([(pair, read_image(pair.image), read_annotation(pair)) for pair in pairs], spec, accept)


def _support(examples: Sequence[Example], spec: ClassSpec, accept: bool) -> Support:
    pairs, images, masks = zip(*examples, strict=True)
    for pair, image, mask in examples:
        check_size(pair, image, mask.values)
    classes, labels = resolve(masks, spec, accept=accept)
    return Support(tuple(pair.image.name for pair in pairs), images, tuple(labels), classes)


def read_picture(image: Picture) -> NDArray[np.uint8]:
    """uint8 [H,W,3] RGB of a path (see `read_image`), a PIL image, or an array uint8 [H,W,3] or [H,W].

    Raises:
        DataError: an unreadable file, or an array of another kind.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image).expanduser())
    if isinstance(image, Image.Image):
        return rgb(image)
    array = np.asarray(image)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=-1)
    if array.ndim != 3 or array.shape[-1] != 3 or array.dtype != np.uint8 or array.size == 0:
        raise DataError(
            "this array is no picture", path="image", found=f"an array {list(array.shape)} of {array.dtype}",
            expected="uint8 [H,W,3] RGB in 0..255, or [H,W] grey",
            remedy="convert it, e.g. (255 * array).round().astype(numpy.uint8); channels come last",
        )  # fmt: skip
    return array


def read_examples(
    images: Picture | Sequence[Picture], masks: Masklike | Sequence[Masklike], spec: ClassSpec
) -> Support:
    """Annotated pictures, one or several.

    Raises:
        DataError, LabelError, ConfigError: see `read_support`; not as many masks as pictures.
    """
    pictures = [images] if isinstance(images, _SINGLE) else list(images)
    maps = [masks] if isinstance(masks, _SINGLE) else list(masks)
    if not pictures or len(pictures) != len(maps):
        raise ConfigError(
            "every annotated picture needs its mask", path="images, masks",
            found=f"{len(pictures)} picture(s), {len(maps)} mask(s)",
            expected="as many masks as pictures, in their order", remedy="give both as lists of one length",
        )  # fmt: skip
    examples: list[Example] = []
    for index, (image, mask) in enumerate(zip(pictures, maps, strict=True)):
        named = [Path(each) if isinstance(each, str | Path) else None for each in (image, mask)]
        pair = Pair(f"{index}", named[0] or Path(f"images[{index}]"), named[1] or Path(f"masks[{index}]"))
        examples.append((pair, read_picture(image), _mask(mask, pair.label)))
    return _support(examples, spec, accept=False)


def _mask(mask: Masklike, path: Path) -> Mask:
    if isinstance(mask, str | Path):
        return read_mask(Path(mask).expanduser())
    if isinstance(mask, Image.Image):
        return picture_mask(mask, path)
    return array_mask(np.asarray(mask), path)


def read_classlike(classes: Classlike) -> ClassSpec:
    """What is said of the classes: names, name -> index or colour, or the path of a file; ConfigError as
    `parse_classes`."""
    if classes is None:
        return ClassSpec(source="classes")
    if isinstance(classes, str | Path):
        return read_classes(Path(classes).expanduser())
    return parse_classes(dict(classes) if isinstance(classes, Mapping) else list(classes), "classes")

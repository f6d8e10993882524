"""The annotated images of `slime-bench segment`: read, and checked against each other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slime_bench.data.annotations import read_annotation
from slime_bench.data.class_files import ClassSpec
from slime_bench.data.layouts import Pair, find_pairs, parts_of
from slime_bench.data.mask_files import Mask
from slime_bench.data.masks import Classes, resolve
from slime_bench.data.reading import check_size, read_image
from slime_bench.errors import ConfigError


@dataclass(frozen=True)
class Example:
    """An annotated image as it was given: the names of its files, uint8 [H,W,3], and its mask."""

    pair: Pair
    image: NDArray[np.uint8]
    mask: Mask


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
    return support_of([Example(pair, read_image(pair.image), read_annotation(pair)) for pair in pairs], spec, accept)


def support_of(examples: Sequence[Example], spec: ClassSpec, accept: bool = False) -> Support:
    """Annotated images that were read, with the classes of their masks.

    Raises:
        LabelError: a mask of another size than its image; see also `resolve`.
    """
    for each in examples:
        check_size(each.pair, each.image, each.mask.values)
    classes, labels = resolve([each.mask for each in examples], spec, accept=accept)
    names, images = (tuple(each.pair.image.name for each in examples), tuple(each.image for each in examples))
    return Support(names, images, tuple(labels), classes)

"""The annotated images of `slime-bench segment`: read, checked against each other, and laid out as a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slime_bench.data.layouts import IMAGES, LABELS, find_pairs
from slime_bench.data.reading import read_image
from slime_bench.errors import ConfigError, LabelError
from slime_bench.segment.masks import Classes, ClassSpec, Mask, read_mask, resolve


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

    def write(self, root: Path) -> None:
        """The data set `root/support/images|labels/<id>.png`; OSError where it cannot be written."""
        for kind, arrays in ((IMAGES, self.images), (LABELS, self.labels)):
            (root / "support" / kind).mkdir(parents=True)
            for name, array in zip(self.ids, arrays, strict=True):
                Image.fromarray(array).save(root / "support" / kind / f"{name}.png", compress_level=1)


def pair_up(images: Sequence[Path], masks: Sequence[Path], folder: Path | None) -> list[tuple[Path, Path]]:
    """(image, mask) of every annotated image: in order, or of a folder in any layout that `data.layouts` knows.

    Raises:
        ConfigError: as many masks as images it is not, or both a folder and files. DataError: see `find_pairs`.
    """
    if folder is not None:
        if images or masks:
            raise ConfigError(
                "annotated images are given twice", path="--support", found="--support beside --image or --mask",
                expected="one of the two", remedy="put the files into the folder, or name all of them",
            )  # fmt: skip
        return [(pair.image, pair.label) for pair in find_pairs(folder)]
    if len(images) != len(masks):
        raise ConfigError(
            "every annotated image needs its mask", path="--image, --mask",
            found=f"{len(images)} image(s), {len(masks)} mask(s)", expected="as many masks as images, in their order",
            remedy="give --image and --mask once for each annotated image",
        )  # fmt: skip
    return list(zip(images, masks, strict=True))


def read_support(pairs: Sequence[tuple[Path, Path]], spec: ClassSpec) -> Support:
    """The annotated images, their label maps and classes.

    Raises:
        DataError, LabelError, ConfigError: an unreadable file, a mask of another size; see also `resolve`.
    """
    images, masks = [], []
    for image_path, mask_path in pairs:
        images.append(read_image(image_path))
        masks.append(read_mask(mask_path))
        _check_size(images[-1], masks[-1], image_path)
    classes, labels = resolve(masks, spec)
    return Support(tuple(image.name for image, _ in pairs), tuple(images), tuple(labels), classes)


def _check_size(image: NDArray[np.uint8], mask: Mask, image_path: Path) -> None:
    (height, width), (rows, columns) = image.shape[:2], mask.values.shape
    if (height, width) == (rows, columns):
        return
    remedy = "export the mask in the size of its image, without interpolation"
    with Image.open(image_path) as file:
        if file.size == (columns, rows) == (height, width):
            remedy = "the camera's orientation turns this image, as viewers show it: turn the mask likewise"
    raise LabelError(
        "image and mask differ in size", path=mask.path, found=f"{columns}x{rows}",
        expected=f"{width}x{height} (width x height) as {image_path}", remedy=remedy,
    )  # fmt: skip

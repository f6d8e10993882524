"""Reading of images and samples, and folders of them as data sets; `layouts` says which files pair up."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slime_bench.data.annotations import read_annotation
from slime_bench.data.label_maps import (
    IGNORE,
    class_index,
    counted,
    relabelled,
    validate_colours,
)
from slime_bench.data.layouts import Pair, find_pairs
from slime_bench.data.mask_files import DECODING_ERRORS, Mask, unreadable
from slime_bench.data.masks import check_hard_edges
from slime_bench.data.pictures import check_pixels, opened, reduce, upright
from slime_bench.errors import DataError, LabelError


@dataclass(frozen=True)
class Sample:
    """An image, uint8 [H,W,3] RGB in 0..255 in the size of its file, and its label map, int64 [H,W]: 0 = background,
    255 = ignore. The id is the file's stem."""

    id: str
    image: NDArray[np.uint8]
    label: NDArray[np.int64]


class Photo(NamedTuple):
    """A picture to be segmented: uint8 [h,w,3] RGB, and (H, W) of its file, which is more where it was read smaller."""

    pixels: NDArray[np.uint8]
    size: tuple[int, int]


def read_image(path: Path) -> NDArray[np.uint8]:
    """One image as uint8 [H,W,3] RGB, whatever its suffix says of its format.

    Grey images get three equal channels, CMYK is converted, transparency is dropped, of 16-bit RGB the upper 8 bits are
    kept, and the camera's orientation is applied; see `upright`.

    Raises:
        DataError: missing, unreadable, cut short, of more than 179 megapixels, or grey with more than 8 bits.
    """
    return _read(path, None).pixels


def read_photo(path: Path, side: int) -> Photo:
    """`read_image` for a picture of which only the content is wanted: a very large JPEG, of up to 1000 megapixels, is
    decoded at reduced size, as long as both sides keep `side` pixels; see `pictures.reduce`.

    Its pixels are then not those of `read_image` made smaller, to the last grey level; the labels found in them may
    differ at edges.
    """
    return _read(path, side)


def _read(path: Path, side: int | None) -> Photo:
    try:
        with opened(path) as file:
            size = None if side is None else reduce(file, side)
            check_pixels(file)
            pixels = rgb(file, path)
            return Photo(pixels, size or (pixels.shape[0], pixels.shape[1]))
    except DECODING_ERRORS as error:
        raise unreadable("image", path, error, "a complete PNG or JPEG file") from error


def rgb(picture: Image.Image, path: Path = Path("image")) -> NDArray[np.uint8]:
    """A picture, of the file `path`, as uint8 [H,W,3] RGB, see `read_image`; DataError for grey of more than 8 bits."""
    if not picture.mode.startswith(("I", "F")):
        return np.array(upright(picture).convert("RGB"))
    raise DataError(
        "image with more than 8 bits per pixel", path=path, found=f"mode {picture.mode}", expected="8-bit RGB or grey",
        remedy="convert the image to 8 bits; only you know which range of values matters",
    )  # fmt: skip


def read_label(pair: Pair, classes: Sequence[str], colours: Mapping[int, int] | None = None) -> NDArray[np.int64]:
    """The label map of one sample as int64 [H,W]: indices in a file, classes of its colours, or by their names.

    Args:
        pair: see `read_annotation` for what its label may be. classes: the K class names.
        colours: as `validate_colours` gives them. Without a colour for the background, every colour that is none of
            them is background; with one, such a colour is an error. Grey label maps and arrays hold indices all the
            same; a palette then counts as colours.

    Raises:
        DataError, LabelError: as `read_annotation`; colours or names that are no class, and labels beyond the classes.
    """
    mask = read_annotation(pair)
    if mask.names:
        labels = {value: class_index(name, classes, path=str(mask.path)) for value, name in mask.names.items()}
        return relabelled(mask.values, {**labels, IGNORE: IGNORE})
    mask = mask.by_colour() if colours else mask.by_index()
    label = _by_colour(mask, colours) if mask.coloured else mask.values
    strange = (label < 0) | ((label >= len(classes)) & (label != IGNORE))
    if strange.any():
        raise LabelError(
            "label outside the classes", path=pair.label, found=counted(label[strange]),
            expected=f"0..{len(classes) - 1} ({', '.join(classes)}) or {IGNORE} (ignore)",
            remedy="name the missing classes in `data.classes`, or map these labels to a class or to 255",
        )  # fmt: skip
    return label


def _by_colour(mask: Mask, colours: Mapping[int, int] | None) -> NDArray[np.int64]:
    path = mask.path
    if not colours:
        raise LabelError(
            "the label map is a colour picture", path=path, found=counted(mask.values, coloured=True),
            expected="one channel of class indices (8-bit grey or palette), or the classes' colours in `data.colours`",
            remedy="say which colour is which class, e.g. data.colours={wheel:[255,255,0]}, or convert the colours to "
            "class indices; grey conversion would invent classes",
        )  # fmt: skip
    strange = ~np.isin(mask.values, list(colours))
    if 0 in colours.values() and strange.any():
        check_hard_edges(mask, named=True)
        raise LabelError(
            "the label map has colours that are no class", path=path,
            found=counted(mask.values[strange], coloured=True),
            expected=f"only the {len(colours)} colours of `data.colours`",
            remedy="add the missing colours, or leave the background's out: every other colour is then background",
        )  # fmt: skip
    return relabelled(mask.values, colours)


def check_size(pair: Pair, image: NDArray[np.uint8], label: NDArray[Any]) -> None:
    """Refuse a label map [H,W] of another size than its image [H,W,3]: a LabelError with both sizes, and the camera's
    orientation where only that stands between them."""
    (height, width), (rows, columns) = image.shape[:2], label.shape
    if (height, width) == (rows, columns):
        return
    remedy = "export the label map in the size of its image, without interpolation"
    if pair.image.is_file():
        with Image.open(pair.image) as file:
            if file.size == (columns, rows):  # as the file has it, before `read_image` has turned it
                remedy = "the image's EXIF orientation turns it, as viewers show it: turn the label map likewise"
    raise LabelError(
        "image and label map differ in size", path=pair.label, found=f"{columns}x{rows}",
        expected=f"{width}x{height} (width x height) as {pair.image}", remedy=remedy,
    )  # fmt: skip


class FolderDataset(Sequence[Sample]):
    """The samples of a folder in any layout of `slime_bench.data.layouts`, in order of the id. Files are listed and
    paired at once (DataError as `find_pairs`), and decoded and checked on demand.

    Args:
        classes: class names in label order.
        colours: class name -> RGB of label maps that are colour pictures; see `read_label`.
        pairs: the samples, where they are not all of the folder's.
    """

    def __init__(
        self,
        folder: str | Path,
        classes: Sequence[str],
        colours: Mapping[str, Sequence[int]] | None = None,
        *,
        pairs: Sequence[Pair] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.classes = tuple(classes)
        self.colours = {name: list(colour) for name, colour in (colours or {}).items()}
        self._table = validate_colours(self.colours, self.classes)
        self.pairs = find_pairs(self.folder) if pairs is None else list(pairs)

    @property
    def ids(self) -> list[str]:
        return [pair.id for pair in self.pairs]

    @property
    def meaning(self) -> list[Any]:
        """What decides the samples besides the files (JSON), for whoever remembers a verdict."""
        return []

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        """A sample; DataError or LabelError for an unreadable file, sizes that differ, or labels that are no class."""
        pair = self.pairs[index]
        image, label = read_image(pair.image), self.label(index)
        check_size(pair, image, label)
        return Sample(pair.id, image, label)

    def label(self, index: int) -> NDArray[np.int64]:
        """Only the label map, int64 [H,W], checked against the classes: a choice by content need not decode images."""
        return read_label(self.pairs[index], self.classes, self._table)

    def select(self, ids: Sequence[str]) -> Self:
        """The samples called `ids`, in that order; KeyError for an id that is not there."""
        by_id, chosen = {pair.id: pair for pair in self.pairs}, copy.copy(self)
        chosen.pairs = [by_id[key] for key in ids]
        return chosen

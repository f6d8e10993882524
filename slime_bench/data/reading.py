"""Reading of images and label maps, and folders of them as data sets; `layouts` says which files pair up."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from slime_bench.data.label_maps import (
    IGNORE,
    Colours,
    labels_of_colours,
    listing,
    validate_classes,
    validate_colours,
)
from slime_bench.data.layouts import Pair, find_pairs
from slime_bench.errors import DataError, LabelError

DECODING_ERRORS: Final = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""What PIL and NumPy raise on files that are cut short, overwritten or of another kind."""

_LABEL_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
_COLOUR_MODES = ("RGB", "RGBA", "P", "PA")
_LOSSLESS = ("PNG", "BMP", "GIF", "TIFF", "PPM")
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Sample:
    """An image, uint8 [H,W,3] RGB in 0..255 in the size of its file, and its label map, int64 [H,W]: 0 = background,
    255 = ignore. The id is the file's stem."""

    id: str
    image: NDArray[np.uint8]
    label: NDArray[np.int64]


def read_image(path: Path) -> NDArray[np.uint8]:
    """One image as uint8 [H,W,3] RGB, whatever its suffix says of its format.

    Grey images get three equal channels, CMYK is converted, transparency is dropped, of 16-bit RGB the upper 8 bits are
    kept, and the camera's orientation is applied, as image viewers and OpenCV do.

    Raises:
        DataError: missing, unreadable, cut short, or grey with more than 8 bits.
    """
    try:
        with Image.open(path) as file:
            mode = file.mode
            if not mode.startswith(("I", "F")):
                return np.array(ImageOps.exif_transpose(file).convert("RGB"))
    except DECODING_ERRORS as error:
        raise _unreadable("image", path, error, "a complete PNG or JPEG file") from error
    raise DataError(
        "image with more than 8 bits per pixel", path=path, found=f"mode {mode}", expected="8-bit RGB or grey",
        remedy="convert the image to 8 bits; only you know which range of values matters",
    )  # fmt: skip


def read_label(path: Path, colours: Colours | None = None) -> NDArray[np.int64]:
    """One label map as int64 [H,W].

    Args:
        path: a PNG (grey or palette index), a colour PNG whose colours `colours` holds, or a `.npy` array of whole
            numbers, which may be stored as floats.
        colours: as `validate_colours` gives them. Without a colour for the background, every colour that is none of
            them is background; with one, such a colour is an error. Grey label maps and arrays hold indices all the
            same; a palette then counts as colours.

    Raises:
        DataError: missing, unreadable or cut short.
        LabelError: not one whole number per pixel, a format that loses pixels, or colours that are no class.
    """
    array = _read_array(path) if path.suffix.lower() == ".npy" else _read_picture(path, colours or {})
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise LabelError(
            "not a label map", path=path, found=f"an array {list(array.shape)} of {array.dtype}",
            expected="[H,W] whole numbers, one class index per pixel",
            remedy="save class indices, e.g. `np.save(file, label.astype(np.uint8))`",
        )  # fmt: skip
    if array.dtype.kind == "f":
        array = array.astype(np.float64)
        broken = ~(np.isfinite(array) & (np.abs(array) < 2**31) & (array == np.round(array)))
        if broken.any():
            raise LabelError(
                "the label map holds numbers that are no class index", path=path,
                found=f"{listing([f'{value:g}' for value in np.unique(array[broken])])} ({int(broken.sum())} pixels)",
                expected="whole numbers, one class index per pixel",
                remedy="resize and save label maps without interpolation; scores become labels by their argmax",
            )  # fmt: skip
    return array.astype(np.int64)


def check_label(label: NDArray[np.int64], classes: Sequence[str], path: Path) -> None:
    """Refuse labels that are no class: every value must lie in 0..K-1 or be 255 (ignore).

    Args:
        label: int64 [H,W]. classes: the K class names. path: the file, for the message.

    Raises:
        LabelError: names the values, and how many pixels carry each.
    """
    strangers = (label < 0) | ((label >= len(classes)) & (label != IGNORE))
    if not strangers.any():
        return
    values, counts = np.unique(label[strangers], return_counts=True)
    raise LabelError(
        "label outside the classes", path=path,
        found=listing([f"{value} ({count} pixels)" for value, count in zip(values, counts, strict=True)]),
        expected=f"0..{len(classes) - 1} ({', '.join(classes)}) or {IGNORE} (ignore)",
        remedy="name the missing classes in `data.classes`, or map these labels to a class or to 255",
    )  # fmt: skip


def read_sample(pair: Pair, classes: Sequence[str], colours: Colours | None = None) -> Sample:
    """Decode and check one sample.

    Raises:
        DataError, LabelError: an unreadable file, sizes that differ, or labels outside `classes`.
    """
    image, label = read_image(pair.image), read_label(pair.label, colours)
    if image.shape[:2] != label.shape:
        size, turned = f"{label.shape[1]}x{label.shape[0]}", label.shape == image.shape[1::-1] and _turns(pair.image)
        raise LabelError(
            "image and label map differ in size", path=pair.label,
            found=f"{size}, the size before the image's EXIF orientation is applied" if turned else size,
            expected=f"{image.shape[1]}x{image.shape[0]} (width x height) as {pair.image}"
            + (" is shown" if turned else ""),
            remedy="turn the label map as viewers show the image, or save the image with its orientation applied"
            if turned
            else "export the label map in the size of its image, without interpolation",
        )  # fmt: skip
    check_label(label, classes, pair.label)
    return Sample(pair.id, image, label)


class FolderDataset:
    """The samples of a folder in any layout of `slime_bench.data.layouts`, in order of the id.

    Files are listed and paired at once and decoded on demand; see `read_sample` for what is refused.

    Args:
        folder: where the files lie.
        classes: class names in label order.
        colours: class name -> RGB of label maps that are colour pictures; see `read_label`.
        pairs: the samples, where they are not all of the folder's.

    Raises:
        DataError: see `find_pairs`.
        ConfigError: a bad class list or colour.
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
        self.classes = validate_classes(classes)
        self.colours = {name: list(colour) for name, colour in (colours or {}).items()}
        self._table = validate_colours(self.colours, self.classes)
        self.pairs = find_pairs(self.folder) if pairs is None else list(pairs)

    @property
    def ids(self) -> list[str]:
        return [pair.id for pair in self.pairs]

    @property
    def meaning(self) -> list[Any]:
        """What decides the samples besides the files of their folders (JSON), for whoever remembers a verdict."""
        return []

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        return read_sample(self.pairs[index], self.classes, self._table)

    def label(self, index: int) -> NDArray[np.int64]:
        """Only the label map, int64 [H,W], checked against the classes: a choice by content need not decode images."""
        path = self.pairs[index].label
        label = read_label(path, self._table)
        check_label(label, self.classes, path)
        return label

    def select(self, ids: Sequence[str]) -> FolderDataset:
        """The samples called `ids`, in that order; KeyError for an id that is not there."""
        by_id = {pair.id: pair for pair in self.pairs}
        return FolderDataset(self.folder, self.classes, self.colours, pairs=[by_id[key] for key in ids])


def _read_array(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, allow_pickle=False)
    except (*DECODING_ERRORS, MemoryError) as error:  # a header may promise more than there is memory
        if "pickle" in str(error):  # NumPy's own message ends with how to load it all the same
            error = ValueError("pickled Python objects, which could run any code")
        raise _unreadable("label map", path, error, "a NumPy array saved without pickling") from error
    if not isinstance(array, np.ndarray):  # several arrays in one file
        array.close()
        return np.empty(0, dtype=object)
    return array


def _read_picture(path: Path, colours: Colours) -> NDArray[Any]:
    try:
        with Image.open(path) as file:
            mode, kind = file.mode, file.format
            coloured = bool(colours) and mode in _COLOUR_MODES
            array = np.array(file.convert("RGB") if coloured else file)
    except DECODING_ERRORS as error:
        raise _unreadable("label map", path, error, "a complete PNG file") from error
    if kind not in _LOSSLESS:
        raise LabelError(
            "the label map is stored in a format that changes pixels", path=path, found=f"a {kind} file",
            expected="a PNG file",
            remedy="export the label map as PNG from its source; converting this file keeps the false labels in it",
        )  # fmt: skip
    if coloured:
        return _indices(path, array, colours)
    if mode not in _LABEL_MODES:
        raise LabelError(
            "the label map is a colour picture", path=path, found=f"mode {mode}, {array.shape[-1]} channels",
            expected="one channel of class indices (8-bit grey or palette), or the classes' colours in `data.colours`",
            remedy="say which colour is which class, e.g. data.colours={wheel:[255,255,0]}, or convert the colours to "
            "class indices; grey conversion would invent classes",
        )  # fmt: skip
    return array


def _indices(path: Path, picture: NDArray[np.uint8], colours: Colours) -> NDArray[np.int64]:
    labels, strangers = labels_of_colours(picture, colours)
    if strangers and 0 in colours.values():
        raise LabelError(
            "the label map has colours that are no class", path=path,
            found=listing([f"{list(colour)} ({count} pixels)" for colour, count in strangers.items()]),
            expected=f"only the {len(colours)} colours of `data.colours`",
            remedy="add the missing colours, or leave the background's out: every other colour is then background",
        )  # fmt: skip
    return labels


def _turns(path: Path) -> bool:
    """Whether the EXIF orientation of an image exchanges its width and height."""
    with Image.open(path) as file:
        return file.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)


def _unreadable(kind: str, path: Path, error: BaseException, expected: str) -> DataError:
    if isinstance(error, FileNotFoundError):
        found, remedy = "nothing", "restore the file, or prepare the data again"
    elif isinstance(error, PermissionError):
        found, remedy = "a file this user may not read", "change the file's permissions"
    else:
        size = path.stat().st_size if path.is_file() else 0
        found = f"{size} bytes that do not decode ({type(error).__name__}: {error})"
        remedy = "copy or download the file again, or prepare the data again"
    return DataError(f"cannot read the {kind}", path=path, found=found, expected=expected, remedy=remedy)

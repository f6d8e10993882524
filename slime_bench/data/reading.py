"""Reading of images, masks and samples, and folders of them as data sets; `layouts` says which files pair up."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from slime_bench.data.label_maps import IGNORE, counted, pack, relabelled, validate_classes, validate_colours
from slime_bench.data.layouts import Pair, find_pairs
from slime_bench.errors import DataError, LabelError

DECODING_ERRORS: Final = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""What PIL and NumPy raise on files that are cut short, overwritten or of another kind."""

MASK_FORMS: Final = "class indices in a PNG file (8-bit grey or palette) or a .npy array saved without pickling"
_LOSSLESS = ("PNG", "BMP", "GIF", "TIFF", "PPM")
_MODES = ("1", "L", "LA", "P", "I", "I;16", "I;16B", "I;16L", "F", "RGB", "RGBA")


@dataclass(frozen=True)
class Sample:
    """An image, uint8 [H,W,3] RGB in 0..255 in the size of its file, and its label map, int64 [H,W]: 0 = background,
    255 = ignore. The id is the file's stem."""

    id: str
    image: NDArray[np.uint8]
    label: NDArray[np.int64]


@dataclass(frozen=True)
class Mask:
    """What a file of labels holds, before anybody has said what its values mean.

    Attributes:
        values: int64 [H,W]: indices, or colours as 0xRRGGBB where `coloured`.
        palette: index -> 0xRRGGBB of a palette picture.
    """

    path: Path
    values: NDArray[np.int64]
    coloured: bool = False
    palette: dict[int, int] = field(default_factory=dict)

    def by_colour(self) -> Mask:
        """A palette picture as one of colours; any other mask as it is."""
        if not self.palette:
            return self
        return replace(self, values=relabelled(self.values, self.palette), coloured=True, palette={})


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


def read_mask(path: Path) -> Mask:
    """The mask in a file: a lossless picture (grey, palette or colours) or a `.npy` array of whole numbers, which may
    be stored as floats. A camera's orientation is applied, as it is to images; what is fully transparent was never
    painted, and is 0 or black.

    Raises:
        DataError: missing, unreadable or cut short.
        LabelError: a format that loses pixels (JPEG), numbers that are no indices, or an array of another kind.
    """
    kind, mode, palette = _LOSSLESS[0], "", {}
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, allow_pickle=False)
            if not isinstance(array, np.ndarray):
                raise ValueError("several arrays in one file")
        else:
            with Image.open(path) as file:
                kind, picture = str(file.format), ImageOps.exif_transpose(file)
            mode, array = picture.mode, np.array(picture)
            if mode == "P":
                colours = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
                palette = dict(enumerate(pack(colours).tolist()))
            elif mode in ("LA", "RGBA"):
                array = np.where(array[..., -1:] == 0, 0, array[..., :-1])
    except (*DECODING_ERRORS, MemoryError) as error:  # an array's header may promise more than there is memory
        raise _unreadable("label map", path, error, MASK_FORMS) from error
    if kind not in _LOSSLESS:
        raise LabelError(
            "the label map is stored in a format that changes pixels", path=path, found=f"a {kind} file",
            expected=MASK_FORMS,
            remedy="export the label map as PNG from its source; converting this file keeps the false labels in it",
        )  # fmt: skip
    form = f"{f'mode {mode}, ' if mode else ''}an array {list(array.shape)} of {array.dtype}"
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    known = not mode or mode in _MODES
    if known and array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8:
        return Mask(path, pack(array), coloured=True)
    if not known or array.ndim != 2 or array.dtype.kind not in "biuf":
        raise LabelError(
            "not a label map", path=path, found=form, expected=MASK_FORMS,
            remedy="save one whole number for each pixel, the index of its class, e.g. as an 8-bit PNG",
        )  # fmt: skip
    if array.dtype.kind == "f":
        array = array.astype(np.float64)
        broken = ~(np.isfinite(array) & (np.abs(array) < 2**31) & (array == np.round(array)))
        if broken.any():
            raise LabelError(
                "the label map holds numbers that are no class index", path=path,
                found=f"{np.unique(array[broken])[0]:g} and the like ({int(broken.sum())} pixels)", expected=MASK_FORMS,
                remedy="resize and save label maps without interpolation; scores become labels by their argmax",
            )  # fmt: skip
    return Mask(path, array.astype(np.int64), palette=palette)


def read_label(path: Path, colours: Mapping[int, int] | None = None) -> NDArray[np.int64]:
    """One label map as int64 [H,W]: the indices in the file, or the classes of its colours.

    Args:
        path: see `read_mask`.
        colours: as `validate_colours` gives them. Without a colour for the background, every colour that is none of
            them is background; with one, such a colour is an error. Grey label maps and arrays hold indices all the
            same; a palette then counts as colours.

    Raises:
        DataError, LabelError: as `read_mask`; colours that are no class.
    """
    mask = read_mask(path)
    if colours:
        mask = mask.by_colour()
    if not mask.coloured:
        return mask.values
    if not colours:
        raise LabelError(
            "the label map is a colour picture", path=path, found=counted(mask.values, coloured=True),
            expected="one channel of class indices (8-bit grey or palette), or the classes' colours in `data.colours`",
            remedy="say which colour is which class, e.g. data.colours={wheel:[255,255,0]}, or convert the colours to "
            "class indices; grey conversion would invent classes",
        )  # fmt: skip
    strange = ~np.isin(mask.values, list(colours))
    if 0 in colours.values() and strange.any():
        raise LabelError(
            "the label map has colours that are no class", path=path,
            found=counted(mask.values[strange], coloured=True),
            expected=f"only the {len(colours)} colours of `data.colours`",
            remedy="add the missing colours, or leave the background's out: every other colour is then background",
        )  # fmt: skip
    return relabelled(mask.values, colours)


def check_label(label: NDArray[np.int64], classes: Sequence[str], path: Path) -> None:
    """Refuse labels that are no class: every value must lie in 0..K-1 or be 255 (ignore).

    Args:
        label: int64 [H,W]. classes: the K class names. path: the file, for the message.

    Raises:
        LabelError: names the values, and how many pixels carry each.
    """
    strange = (label < 0) | ((label >= len(classes)) & (label != IGNORE))
    if strange.any():
        raise LabelError(
            "label outside the classes", path=path, found=counted(label[strange]),
            expected=f"0..{len(classes) - 1} ({', '.join(classes)}) or {IGNORE} (ignore)",
            remedy="name the missing classes in `data.classes`, or map these labels to a class or to 255",
        )  # fmt: skip


def check_size(pair: Pair, image: NDArray[np.uint8], label: NDArray[Any]) -> None:
    """Refuse a label map [H,W] of another size than its image [H,W,3].

    Raises:
        LabelError: names both sizes; and the camera's orientation, where only that stands between them.
    """
    (height, width), (rows, columns) = image.shape[:2], label.shape
    if (height, width) == (rows, columns):
        return
    remedy = "export the label map in the size of its image, without interpolation"
    with Image.open(pair.image) as file:
        if file.size == (columns, rows):  # as the file has it, before `read_image` has turned it
            remedy = "the image's EXIF orientation turns it, as viewers show it: turn the label map likewise"
    raise LabelError(
        "image and label map differ in size", path=pair.label, found=f"{columns}x{rows}",
        expected=f"{width}x{height} (width x height) as {pair.image}", remedy=remedy,
    )  # fmt: skip


def read_sample(pair: Pair, classes: Sequence[str], colours: Mapping[int, int] | None = None) -> Sample:
    """Decode and check one sample.

    Raises:
        DataError, LabelError: an unreadable file, sizes that differ, or labels outside `classes`.
    """
    image, label = read_image(pair.image), read_label(pair.label, colours)
    check_size(pair, image, label)
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


def _unreadable(kind: str, path: Path, error: BaseException, expected: str) -> DataError:
    found = getattr(error, "strerror", None)  # of a file that is not there, a folder, or one that may not be read
    if found is None:
        found = f"{path.stat().st_size} bytes that do not decode ({type(error).__name__}: {error})"
    remedy = "correct the name, or restore the file or export it again"
    return DataError(f"cannot read the {kind}", path=path, found=found, expected=expected, remedy=remedy)

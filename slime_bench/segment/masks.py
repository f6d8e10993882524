"""Masks as people draw them: grey indices, palette PNG, colour pictures, `.npy`. Reading only; meaning comes later."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from slime_bench.data.reading import DECODING_ERRORS
from slime_bench.errors import DataError, LabelError

RGB = tuple[int, int, int]
INDICES, COLOURS = "indices", "colours"

_LOSSY = ("JPEG", "MPO", "JPEG2000")
_EXPECTED = "8-bit grey or palette indices, a colour picture, or a .npy array of class indices"


@dataclass(frozen=True)
class Mask:
    """One mask as it is in its file.

    Attributes:
        values: int64 [H,W]: class indices, or colours packed as 0xRRGGBB.
        kind: `indices` or `colours`.
        ignores: whether 255 may mean "ignore": so in files of one channel.
        palette: colour of each index of a palette file.
    """

    path: Path
    values: NDArray[np.int64]
    kind: str
    ignores: bool = False
    palette: dict[int, RGB] = field(default_factory=dict)


def pack(colours: NDArray[np.uint8]) -> NDArray[np.int64]:
    """uint8 [...,3] RGB -> int64 [...], 0xRRGGBB."""
    red, green, blue = (colours[..., channel].astype(np.int64) for channel in range(3))
    return (red << 16) | (green << 8) | blue


def unpack(value: int) -> RGB:
    """0xRRGGBB -> (r, g, b)."""
    return value >> 16 & 255, value >> 8 & 255, value & 255


def hexadecimal(colour: RGB) -> str:
    """`#rrggbb`."""
    return "#" + "".join(f"{channel:02x}" for channel in colour)


def read_mask(path: Path) -> Mask:
    """The mask in a file. A camera's orientation in the file is applied, as it is to images.

    Raises:
        DataError: missing, unreadable or cut short. LabelError: a lossy file (JPEG), or a file of another kind.
    """
    return _read_array(path) if path.suffix.lower() == ".npy" else _read_picture(path)


def _read_array(path: Path) -> Mask:
    try:
        array = np.asarray(np.load(path, allow_pickle=False))
    except DECODING_ERRORS as error:
        raise _unreadable(path, error) from error
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim == 2 and (np.issubdtype(array.dtype, np.integer) or array.dtype == np.bool_):
        return _indices(path, array)
    if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8:
        return Mask(path, pack(array), COLOURS)
    raise LabelError(
        "this is not a mask", path=path, found=f"an array {list(array.shape)} of {array.dtype}",
        expected="[H,W] integers, or [H,W,3] colours of uint8",
        remedy="save class indices, e.g. `np.save(file, mask.astype(np.uint8))`",
    )  # fmt: skip


def _read_picture(path: Path) -> Mask:
    try:
        with Image.open(path) as file:
            kind = file.format
            turned = ImageOps.exif_transpose(file)
            mode, array = turned.mode, np.array(turned)
            colours = turned.getpalette("RGB") if mode in ("P", "PA") else None
    except DECODING_ERRORS as error:
        raise _unreadable(path, error) from error
    if kind in _LOSSY:
        raise LabelError(
            "a JPEG cannot hold a mask", path=path, found=f"a {kind} file, whose compression changes the classes",
            expected=_EXPECTED, remedy="export the mask as PNG from the program that drew it; do not convert this file",
        )  # fmt: skip
    if colours is not None:
        triples = zip(colours[::3], colours[1::3], colours[2::3], strict=True)
        return _indices(path, array if mode == "P" else array[..., 0], dict(enumerate(triples)))
    if mode in ("1", "L", "I") or mode.startswith("I;16"):
        return _indices(path, array)
    if mode in ("LA", "La"):
        return _indices(path, np.where(array[..., 1] == 0, 0, array[..., 0]))
    if mode in ("RGB", "RGBX"):
        return Mask(path, pack(array[..., :3]), COLOURS)
    if mode == "RGBA":  # what is fully transparent was never painted
        return Mask(path, np.where(array[..., 3] == 0, 0, pack(array[..., :3])), COLOURS)
    raise LabelError(
        "this is not a mask", path=path, found=f"a picture of mode {mode}", expected=_EXPECTED,
        remedy="export the mask as an 8-bit PNG",
    )  # fmt: skip


def _indices(path: Path, array: NDArray[np.generic], palette: dict[int, RGB] | None = None) -> Mask:
    return Mask(path, array.astype(np.int64), INDICES, ignores=True, palette=palette or {})


def _unreadable(path: Path, error: BaseException) -> DataError:
    if isinstance(error, FileNotFoundError):
        found, remedy = "nothing", "correct the name"
    elif isinstance(error, IsADirectoryError):
        found, remedy = "a folder", "name a file; a folder of annotated images goes to --support"
    elif isinstance(error, PermissionError):
        found, remedy = "a file this user may not read", "change the file's permissions"
    else:
        size = path.stat().st_size if path.is_file() else 0
        found = f"{size} bytes that do not decode ({type(error).__name__}: {error})"
        remedy = "export the mask again"
    return DataError("cannot read the mask", path=path, found=found, expected=_EXPECTED, remedy=remedy)

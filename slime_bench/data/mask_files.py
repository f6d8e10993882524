"""What a file of labels holds, before anybody has said what its values mean.

Files that cannot hold a label map are refused here, each by its kind: formats that change pixels, several frames, soft
transparency, numbers that are no indices.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slime_bench.data.label_maps import pack, relabelled
from slime_bench.data.pictures import DECODED, LARGEST, broken_link, size_of, upright
from slime_bench.errors import DataError, LabelError

DECODING_ERRORS: Final = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""What PIL and NumPy raise on files that are cut short, overwritten or of another kind."""

MASK_FORMS: Final = (
    "class indices in a lossless picture (8- or 16-bit grey, or palette: PNG, TIFF, lossless WebP) or in a .npy array "
    "saved without pickling"
)
_LOSSLESS = ("PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP")
_MODES = ("1", "L", "LA", "P", "I", "I;16", "I;16B", "I;16L", "F", "RGB", "RGBA")
_LOSSY_TIFF = {"jpeg": "JPEG", "tiff_jpeg": "JPEG", "webp": "WebP", "jpeg2000": "JPEG 2000"}
HARD_EDGES: Final = "draw and scale masks without anti-aliasing (hard brush, nearest neighbour), and save them as PNG"


@dataclass(frozen=True)
class Mask:
    """What a file of labels holds.

    Attributes:
        values: int64 [H,W]: indices, or colours as 0xRRGGBB where `coloured`.
        palette: index -> 0xRRGGBB of a palette picture.
        names: value -> class, where the file itself says it; the background has none.
        notes: sentences for the user.
        unpainted: pixels that are fully transparent; they have the value 0.
    """

    path: Path
    values: NDArray[np.int64]
    coloured: bool = False
    palette: dict[int, int] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unpainted: int = 0

    def by_colour(self) -> Mask:
        """A palette picture as one of colours; any other mask as it is."""
        if not self.palette:
            return self
        return replace(self, values=relabelled(self.values, self.palette), coloured=True, palette={})

    def by_index(self) -> Mask:
        """Three equal channels as the one that they repeat; any other mask as it is."""
        one = self.values & 255
        if not self.coloured or (self.values != one * 0x010101).any():
            return self
        return replace(self, values=one, coloured=False)


def read_mask(path: Path) -> Mask:
    """The mask in a file: a lossless picture (grey, palette or colours) or a `.npy` array of whole numbers, which may
    be stored as floats. A camera's orientation is applied, as it is to images; what is fully transparent was never
    painted, and is 0 or black.

    Raises:
        DataError: missing, unreadable or cut short.
        LabelError: a format that changes pixels, several frames, soft transparency, numbers that are no indices, or an
            array of another kind.
    """
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, allow_pickle=False)
            if not isinstance(array, np.ndarray):
                raise ValueError("several arrays in one file")
            return array_mask(array, path)
        with open(path, "rb") as file:
            lossy = _lossy(file.read(64))
        if lossy is None:
            with Image.open(path) as picture:
                lossy = _LOSSY_TIFF.get(str(picture.info.get("compression")))
                lossy = lossy or (None if picture.format in _LOSSLESS else picture.format)
                if lossy is None:
                    frames = getattr(picture, "n_frames", 1)
                    if frames > 1:
                        raise LabelError(
                            "the mask has more than one picture in its file", path=path,
                            found=f"{frames} frames or pages ({picture.format})", expected="one picture",
                            remedy="export the one that is meant as a PNG of its own, flattened and without animation",
                        )  # fmt: skip
                    return picture_mask(picture, path)
    except (*DECODING_ERRORS, MemoryError) as error:  # an array's header may promise more than there is memory
        raise unreadable("label map", path, error, MASK_FORMS) from error
    raise LabelError(
        "the label map is stored in a format that changes pixels", path=path, found=lossy,
        expected=MASK_FORMS,
        remedy="export the mask as PNG from the program that it was drawn in; converting this file keeps the false "
        "labels in it",
    )  # fmt: skip


def _lossy(head: bytes) -> str | None:
    """The format, by the first bytes of a file, of one that changes pixels where Pillow may not say it; or None."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        # The extended form has its frames later, and an animation is refused for its frames.
        return "lossy WebP" if head[12:16] == b"VP8 " or (head[12:16] == b"VP8X" and b"VP8 " in head[30:]) else None
    # In an ISO media file the brand follows `ftyp`.
    return ("AVIF" if head[8:11] == b"avi" else "HEIC") if head[4:8] == b"ftyp" else None


def picture_mask(picture: Image.Image, path: Path) -> Mask:
    """The mask in a picture, whose file or name is `path`; LabelError as `read_mask`."""
    turned = upright(picture)
    if turned.mode == "PA" or (turned.mode == "P" and "transparency" in turned.info):
        turned = turned.convert("RGBA")
    mode, array, unpainted = turned.mode, np.array(turned), 0
    palette: dict[int, int] = {}
    if mode == "P":
        colours = np.array(turned.getpalette("RGB"), np.uint8).reshape(-1, 3)
        palette = dict(enumerate(pack(colours).tolist()))
    elif mode in ("LA", "RGBA"):
        array, unpainted = _opaque(array, path)
    if mode not in _MODES:
        raise _no_label_map(path, f"mode {mode}")
    return replace(array_mask(array, path), palette=palette, unpainted=unpainted)


def _opaque(array: NDArray[np.uint8], path: Path) -> tuple[NDArray[np.uint8], int]:
    """What is painted of a picture with an alpha channel, uint8 [H,W,C-1], and how many pixels are not. Refused are
    half-transparent pixels, and black paint among transparent pixels, which would be one."""
    paint, alpha = array[..., :-1], array[..., -1]
    soft = int(((alpha > 0) & (alpha < 255)).sum())
    if soft:
        raise LabelError(
            "the mask has soft edges", path=path, found=f"{soft} half-transparent pixels",
            expected="pixels that are either painted or not", remedy=HARD_EDGES,
        )  # fmt: skip
    opaque, unpainted = alpha == 255, int((alpha == 0).sum())
    black = int((opaque & (paint == 0).all(axis=-1)).sum())
    # A grey picture may hold indices, of which 0 is the background, if there are others.
    if unpainted and black and (paint.shape[-1] == 3 or black == opaque.sum()):
        raise LabelError(
            "black paint on a transparent layer: painted and empty pixels would both be the background", path=path,
            found=f"{black} painted black pixels, {unpainted} transparent ones (in the alpha channel)",
            expected="a part in a colour of its own, the background black or transparent",
            remedy="paint the part in another colour, or put a white layer under it, export it without transparency "
            'and say which is which: --classes with lines `background: "#ffffff"` and `name: "#000000"`',
        )  # fmt: skip
    return np.where(alpha[..., None] == 0, np.uint8(0), paint), unpainted


def array_mask(array: NDArray[Any], path: Path) -> Mask:
    """The mask in an array, whose file or name is `path`: whole numbers [H,W] or [H,W,1], or uint8 colours [H,W,3];
    LabelError for an array of another kind, or numbers that are no index."""
    form = f"an array {list(array.shape)} of {array.dtype}"
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8 and array.size:
        return Mask(path, pack(array), coloured=True)
    if array.ndim != 2 or array.dtype.kind not in "biuf" or not array.size:
        raise _no_label_map(path, form)
    if array.dtype.kind == "f":
        array = array.astype(np.float64)
        broken = ~(np.isfinite(array) & (np.abs(array) < 2**31) & (array == np.round(array)))
        if broken.any():
            raise LabelError(
                "the label map holds numbers that are no class index", path=path,
                found=f"{np.unique(array[broken])[0]:g} and the like ({int(broken.sum())} pixels)", expected=MASK_FORMS,
                remedy="resize and save label maps without interpolation; scores become labels by their argmax",
            )  # fmt: skip
    return Mask(path, array.astype(np.int64))


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image as viewers show it; DataError where it cannot be read."""
    try:
        with Image.open(path) as picture:
            width, height = upright(picture).size
    except DECODING_ERRORS as error:
        raise unreadable("image", path, error, "a complete PNG or JPEG file") from error
    return height, width


def _no_label_map(path: Path, found: str) -> LabelError:
    return LabelError(
        "not a label map", path=path, found=found, expected=MASK_FORMS,
        remedy="save one whole number for each pixel, the index of its class, e.g. as an 8-bit PNG",
    )  # fmt: skip


def unreadable(kind: str, path: Path, error: BaseException, expected: str) -> DataError:
    """The error for a file that does not decode, or is too large for it."""
    if isinstance(error, Image.DecompressionBombError):
        width, height = size_of(path)
        return DataError(
            f"the {kind} is too large", path=path, found=f"{width}x{height} pixels" if width else "more",
            expected=f"at most {DECODED / 1e6:.0f} megapixels; photos to be segmented {LARGEST / 1e6:.0f}, as JPEG",
            remedy="export it smaller, e.g. 4000 pixels wide; its parts are looked for at a few hundred pixels anyway",
        )  # fmt: skip
    # What the system says of a file that is not there, of a folder, or of one that may not be read.
    found = broken_link(path) or getattr(error, "strerror", None)
    if found is None:
        found = f"{path.stat().st_size} bytes that do not decode ({type(error).__name__}: {error})"
    remedy = "correct the name, or restore the file or export it again"
    return DataError(f"cannot read the {kind}", path=path, found=found, expected=expected, remedy=remedy)

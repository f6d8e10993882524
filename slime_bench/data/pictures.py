"""Picture files as viewers show them: the right way up, and very large ones decoded no larger than they need be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

LARGE: Final = 50_000_000
"""Pixels above which a photo is handled in parts, or decoded at reduced size where its format can do that."""
DECODED: Final = 178_956_970
"""Pixels above which nothing is decoded: the limit at which Pillow refuses by itself."""
LARGEST: Final = 1_000_000_000
"""Pixels that a photo may have where it is decoded at reduced size; its label map has as many."""
SUFFIXES: Final = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jp2", ".ppm", ".pgm",
    ".pbm", ".pnm",
)  # fmt: skip
"""Of files that Pillow reads as one picture; of several frames or pages it is the first."""

_Turn = Image.Transpose
_TURNS: Final = {
    2: _Turn.FLIP_LEFT_RIGHT, 3: _Turn.ROTATE_180, 4: _Turn.FLIP_TOP_BOTTOM, 5: _Turn.TRANSPOSE, 6: _Turn.ROTATE_270,
    7: _Turn.TRANSVERSE, 8: _Turn.ROTATE_90,
}  # fmt: skip
_XMP: Final = ("xmp", "XML:com.adobe.xmp")


def upright(picture: Image.Image) -> Image.Image:
    """A picture turned by the orientation of its EXIF, as image viewers and OpenCV do.

    EXIF that cannot be read counts as none, and what only XMP says of the orientation is left alone: Pillow's own
    `exif_transpose` fails on the one and obeys the other.
    """
    said = picture.info.pop("xmp", None)  # by which a TIFF would turn itself while it is loaded
    picture.load()  # in a PNG the EXIF may follow the pixels
    if said is not None:
        picture.info["xmp"] = said
    turn = _TURNS.get(_orientation(picture))
    return picture if turn is None else picture.transpose(turn)


def _orientation(picture: Image.Image) -> int:
    """1..8 by the EXIF that is known of a picture by now; 1 = as it is."""
    bare = Image.Image()
    bare.info = {name: each for name, each in picture.info.items() if name not in _XMP}
    try:
        found = bare.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # whatever malformed bytes make Pillow raise: the pixels are none the worse
        return 1
    return found if isinstance(found, int) else 1


def opened(path: Path) -> Image.Image:
    """A picture file that is not decoded yet. Unlike `Image.open`, JPEG and PNG files may have any number of pixels."""
    with open(path, "rb") as file:
        head = file.read(8)
    # The constructors themselves have no limit: whoever decodes says what is too much.
    for start, kind in ((b"\xff\xd8\xff", JpegImageFile), (b"\x89PNG\r\n\x1a\n", PngImageFile)):
        if head.startswith(start):
            return kind(path)
    return Image.open(path)


def reduce(picture: Image.Image, side: int) -> tuple[int, int] | None:
    """Let a large picture of `opened` be decoded smaller, where its format can do that.

    A JPEG of more than `LARGE` pixels is decoded at 1/2, 1/4 or 1/8 of its size, as long as both sides keep `side`
    pixels. The result is (H, W) of its file as it is shown; None where it is decoded as it is.
    """
    width, height = picture.size
    if not LARGE < width * height <= LARGEST:
        return None
    picture.draft(picture.mode, (side, side))
    if picture.size == (width, height):
        return None
    return (width, height) if _orientation(picture) >= 5 else (height, width)


def check_pixels(picture: Image.Image) -> None:
    """Raises DecompressionBombError for a picture that would be decoded to more than `DECODED` pixels."""
    if picture.width * picture.height > DECODED:
        raise Image.DecompressionBombError


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) of a picture file before any turn, from its head; (0, 0) where it cannot be read."""
    try:
        with opened(path) as picture:
            return picture.size
    except Exception:  # whoever decodes it says what is wrong
        return 0, 0


def broken_link(path: Path) -> str | None:
    """What to say of a link to nothing; None of anything else."""
    return f"a link to {os.readlink(path)}, which is not there" if path.is_symlink() and not path.exists() else None

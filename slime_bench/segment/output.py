"""What `slime-bench segment` writes for one image, and the table of areas. Pure functions."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from slime_bench.segment.masks import RGB

VIEW = (640, 1600)
"""Smallest and largest longer side of an overlay in pixels."""
BLEND = 0.6
"""Part of the class's colour in a blended pixel; the rest is the image in grey, whose colours would mix in."""
_INK, _PAPER = (20, 20, 20), (255, 255, 255)
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601

Picture = NDArray[np.uint8]
"""[H,W,3] RGB."""


def label_png(label: NDArray[np.uint8], colours: Sequence[RGB]) -> bytes:
    """A label map uint8 [H,W] as an 8-bit palette PNG: pixel values are labels, viewers show the colours."""
    picture = Image.fromarray(label)
    picture.putpalette([channel for colour in colours for channel in colour])
    return _encoded(picture, "PNG")


def view(image: Picture, limits: tuple[int, int] = VIEW) -> Picture:
    """An image for looking at: small ones are enlarged by a whole factor, large ones shrunk."""
    longer = max(image.shape[:2])
    if longer < limits[0]:
        factor = math.ceil(limits[0] / longer)
        size, resample = (image.shape[1] * factor, image.shape[0] * factor), Image.Resampling.BICUBIC
    elif longer > limits[1]:
        size = (max(1, image.shape[1] * limits[1] // longer), max(1, image.shape[0] * limits[1] // longer))
        resample = Image.Resampling.BILINEAR
    else:
        return image
    return np.array(Image.fromarray(image).resize(size, resample))


def blend(image: Picture, label: NDArray[np.uint8], colours: Sequence[RGB]) -> Picture:
    """The image with every class but the background in its colour, outlined.

    Args:
        label: uint8 [h,w], brought to the image's size by nearest neighbour. Only labels with a colour are drawn.
    """
    height, width = image.shape[:2]
    if label.shape != (height, width):
        label = np.array(Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST))
    table = np.zeros((256, 3), dtype=np.float32)
    table[: len(colours)] = colours
    shown = (label > 0) & (label < len(colours))
    colour = table[label]
    part = np.where(_edges(label, max(1, max(height, width) // 400)), 1.0, BLEND).astype(np.float32)[..., None]
    grey = (image @ _LUMA)[..., None]
    mixed: Picture = np.where(shown[..., None], grey * (1 - part) + colour * part, image).round().astype(np.uint8)
    return mixed


def overlay(image: Picture, label: NDArray[np.uint8], names: Sequence[str], colours: Sequence[RGB]) -> bytes:
    """JPEG of the blended image above a legend of the classes that it shows, with their part of the area.

    Args:
        image: as `view` gives it. label: uint8 [H,W] in the size of the file.
    """
    pixels = np.bincount(label.ravel(), minlength=len(names))
    entries = [
        (f"{names[index]} {percent(pixels[index] / label.size)}", colours[index])
        for index in range(1, len(names))
        if pixels[index]
    ] or [("nothing found", _PAPER)]
    return _encoded(stack([Image.fromarray(blend(image, label, colours)), legend(entries, image.shape[1])]), "JPEG")


def areas_csv(rows: Iterable[tuple[str, Sequence[int]]], names: Sequence[str]) -> bytes:
    """`image,class,pixels,fraction`: a line for each image and class, UTF-8.

    Args:
        rows: (file name, pixels of each class).
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["image", "class", "pixels", "fraction"])
    for image, pixels in rows:
        for name, count in zip(names, pixels, strict=True):
            writer.writerow([image, name, count, f"{count / sum(pixels):.6f}"])
    return buffer.getvalue().encode("utf-8", "backslashreplace")  # a name need not be valid Unicode


def percent(part: float) -> str:
    """`12.3 %`; a little is not nothing: `<0.1 %`."""
    return "<0.1 %" if 0 < part < 0.001 else f"{100 * part:.1f} %"


def legend(entries: Sequence[tuple[str, RGB]], width: int, size: int | None = None) -> Image.Image:
    """A white strip with a coloured square and a text for each entry, in as many lines as it takes."""
    size = size or max(14, min(26, width // 32))
    face, gap = font(size), size // 2
    drawn = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    places, x, y = [], gap, gap
    for words, colour in entries:
        text = " ".join(words.split())
        taken = size + gap + math.ceil(drawn.textlength(text, font=face))
        if x > gap and x + taken > width - gap:
            x, y = gap, y + size + gap
        places.append((x, y, text, colour))
        x += taken + 2 * gap
    strip = Image.new("RGB", (width, y + size + gap), _PAPER)
    drawn = ImageDraw.Draw(strip)
    for left, top, text, colour in places:
        outline = None if text == "nothing found" else _INK
        drawn.rectangle((left, top, left + size, top + size), fill=colour, outline=outline)
        drawn.text((left + size + gap, top + size // 2), text, fill=_INK, font=face, anchor="lm")
    return strip


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one width below each other."""
    sheet = Image.new("RGB", (pictures[0].width, sum(each.height for each in pictures)), _PAPER)
    top = 0
    for each in pictures:
        sheet.paste(each, (0, top))
        top += each.height
    return sheet


@lru_cache
def font(size: int) -> Any:
    """matplotlib's own DejaVu Sans, which has more scripts than Pillow's."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size) if path.is_file() else ImageFont.load_default(size)


def _edges(label: NDArray[np.uint8], width: int) -> NDArray[np.bool_]:
    """Pixels within `width` of another label, towards the left and the top of a border on its other side as well."""
    edges = np.zeros(label.shape, dtype=bool)
    for step in range(1, width + 1):
        down, right = label[step:] != label[:-step], label[:, step:] != label[:, :-step]
        edges[step:] |= down
        edges[:-step] |= down
        edges[:, step:] |= right
        edges[:, :-step] |= right
    return edges


def _encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return buffer.getvalue()

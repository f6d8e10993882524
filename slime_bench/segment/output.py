"""What `slime-bench segment` shows: label maps, overlays, the grid, the table of areas, lines on the terminal."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import maximum_filter, minimum_filter
from torch import Tensor
from tqdm import tqdm

from slime_bench.data.label_maps import RGB
from slime_bench.data.transforms import fitted_size
from slime_bench.segment.folder import Record

VIEW = (640, 1600)
"""Smallest and largest longer side of an overlay in pixels."""
BLEND = 0.6
"""Part of the class's colour in a blended pixel; the rest is the image in grey, whose colours would mix in."""
TILE, GAP, TEXT = 232, 12, 15
COLUMNS = 3
_CELL = 2 * TILE + 2 * GAP
_INK, _GREY, _PAPER = (20, 20, 20), (110, 110, 110), (255, 255, 255)


@dataclass(frozen=True)
class Shown:
    """One image of the grid: its file's name, the picture, and its labels uint8 [H,W] of any size."""

    name: str
    image: Image.Image
    label: NDArray[np.uint8]


def label_png(label: NDArray[np.uint8], colours: Sequence[RGB]) -> bytes:
    """A label map uint8 [H,W] as an 8-bit palette PNG: pixel values are labels, viewers show the colours."""
    return _encoded(_painted(label, colours), "PNG")


def view(image: Image.Image) -> Image.Image:
    """An image for looking at: small ones are enlarged by a whole factor, large ones shrunk."""
    longer = max(image.size)
    if longer < VIEW[0]:
        return _scaled(image, longer * math.ceil(VIEW[0] / longer))
    return _scaled(image, VIEW[1]) if longer > VIEW[1] else image


def thumbnail(image: Image.Image, label: Image.Image) -> tuple[Image.Image, NDArray[np.uint8]]:
    """A picture and its label map no larger than the grid needs them; small ones as they are."""
    if max(image.size) > VIEW[1]:
        image = _scaled(image, VIEW[1])
    if max(label.size) > VIEW[1]:
        label = label.resize(image.size, Image.Resampling.NEAREST)
    return image, np.array(label)


def pixel_counts(label: NDArray[np.uint8], classes: int) -> list[int]:
    """Pixels of each class in a label map uint8 [H,W], without a copy of it as `np.bincount` makes one in 64 bits."""
    return Image.fromarray(label).histogram()[:classes]


def scores_npz(scores: Tensor, size: tuple[int, int], fit: str, classes: Sequence[str]) -> bytes:
    """Score maps [K,S,S] as an npz: `scores` float16 [K,h,w] without padding, `classes` [K], `size` (H, W).

    They stay in the resolution in which the method has made them: enlarged bilinearly to `size`, in which they would
    take some hundred times the space, they are those that the label map is the argmax of, but for rounding.
    """
    height, width = fitted_size(size, scores.shape[-1], fit)
    buffer = io.BytesIO()
    maps = scores[:, :height, :width].half().numpy()
    np.savez_compressed(buffer, scores=maps, classes=np.array(classes), size=np.array(size))
    return buffer.getvalue()


def blend(image: Image.Image, label: NDArray[np.uint8], colours: Sequence[RGB], opacity: float = BLEND) -> Image.Image:
    """The image with every class but the background in its colour, outlined.

    Args:
        label: uint8 [h,w], brought to the image's size by nearest neighbour. Only labels with a colour are drawn.
        opacity: part of the class's colour.
    """
    label = np.array(Image.fromarray(label).resize(image.size, Image.Resampling.NEAREST))
    width = 2 * max(1, max(image.size) // 400) + 1
    paint = _painted(label, colours).convert("RGB")
    mixed = Image.blend(image.convert("L").convert("RGB"), paint, opacity)
    mixed.paste(paint, mask=Image.fromarray(maximum_filter(label, width) != minimum_filter(label, width)))
    return Image.composite(mixed, image, Image.fromarray((label > 0) & (label < len(colours))))


def overlay(image: Image.Image, label: NDArray[np.uint8], names: Sequence[str], colours: Sequence[RGB]) -> bytes:
    """JPEG of the blended image above a legend of the classes that it shows, with their part of the area.

    Args:
        image: as `view` gives it. label: uint8 [H,W] in the size of the file.
    """
    pixels = pixel_counts(label, len(names))
    found = [index for index in range(1, len(names)) if pixels[index]]
    entries = [(f"{names[index]} {percent(pixels[index] / label.size)}", colours[index]) for index in found]
    below = legend(entries or [("nothing found", _PAPER)], image.width)
    return _encoded(_stacked([blend(image, label, colours), below]), "JPEG", quality=90)


def grid_png(
    support: Sequence[Shown], results: Sequence[Shown], total: int, names: Sequence[str], colours: Sequence[RGB]
) -> bytes:
    """PNG: a legend, the annotated images with their masks, the results; beside each image its classes.

    Args:
        total: number of results that there are; `results` may be a part of them.
    """
    columns = max(1, min(COLUMNS, max(len(support), len(results))))
    width = max(columns * _CELL + GAP, 480)
    of = f" ({len(results)} of {total})" if len(results) < total else ""
    parts = [legend(list(zip(names[1:], colours[1:], strict=True)), width, TEXT + 1)]
    for title, shown in (("annotated", support), (f"segmented{of}", results)):
        if shown:
            parts.append(Image.new("RGB", (width, TEXT + 2 * GAP), _PAPER))
            ImageDraw.Draw(parts[-1]).text((GAP, GAP), title, fill=_INK, font=font(TEXT + 3))
        for start in range(0, len(shown), columns):
            tiles = [_tile(each, colours) for each in shown[start : start + columns]]
            parts.append(Image.new("RGB", (width, max(tile.height for tile in tiles)), _PAPER))
            for column, tile in enumerate(tiles):
                parts[-1].paste(tile, (GAP + column * _CELL, 0))
    return _encoded(_stacked(parts), "PNG")


def legend(entries: Sequence[tuple[str, RGB]], width: int, size: int | None = None) -> Image.Image:
    """A white strip with a coloured square and a text for each entry, in as many lines as it takes."""
    size = size or max(14, min(26, width // 32))
    face, gap = font(size), size // 2
    places, x, y = [], gap, gap
    for words, colour in entries:
        text = " ".join(words.split())
        taken = size + gap + math.ceil(face.getlength(text))
        if x > gap and x + taken > width - gap:
            x, y = gap, y + size + gap
        places.append((x, y, text, colour))
        x += taken + 2 * gap
    strip = Image.new("RGB", (width, y + size + gap), _PAPER)
    drawn = ImageDraw.Draw(strip)
    for left, top, text, colour in places:
        drawn.rectangle((left, top, left + size, top + size), fill=colour, outline=None if colour == _PAPER else _INK)
        drawn.text((left + size + gap, top + size // 2), text, fill=_INK, font=face, anchor="lm")
    return strip


@lru_cache
def font(size: int) -> Any:
    """matplotlib's own DejaVu Sans, which has more scripts than Pillow's."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def areas_csv(images: Iterable[Record], names: Sequence[str]) -> bytes:
    """`image,class,pixels,fraction,confidence`: a line for each image and class, UTF-8; see `segment.confidence`."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["image", "class", "pixels", "fraction", "confidence"])
    for each in images:
        sure = each.confidence or [None] * len(names)
        for name, count, one in zip(names, each.pixels, sure, strict=True):
            said = "" if one is None else f"{one:.3f}"
            writer.writerow([each.file, name, count, f"{count / sum(each.pixels):.6f}", said])
    return buffer.getvalue().encode("utf-8", "backslashreplace")  # a name need not be valid Unicode


def class_list(names: Sequence[str]) -> bytes:
    """The content of `classes.yaml`."""
    listed = yaml.safe_dump(list(names), allow_unicode=True, width=1000)
    return f"# classes of labels/, from label 0 on\n{listed}".encode()


def percent(part: float) -> str:
    """`12.3 %`; a little is not nothing: `<0.1 %`."""
    return "<0.1 %" if 0 < part < 0.001 else f"{100 * part:.1f} %"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text below each other, the last column to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join([*cells[:-1], cells[-1].strip().rjust(widths[-1])]) for cells in lines)


def note(stage: str, text: str) -> None:
    """`stage   text` on stderr; further lines of `text` are indented."""
    print(f"{stage:<10}" + text.replace("\n", "\n" + " " * 10), file=sys.stderr, flush=True)


def progress(stage: str, total: int) -> tqdm[Any]:
    """A bar on stderr with the time that is left; in a file it is written every ten seconds."""
    shape = "{desc:<10}[{bar:24}] {n_fmt}/{total_fmt}{postfix}  {elapsed} (left: {remaining})"
    often = 0.25 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=stage, bar_format=shape, ascii=" #", mininterval=often, file=sys.stderr)


def _painted(label: NDArray[np.uint8], colours: Sequence[RGB]) -> Image.Image:
    picture = Image.fromarray(label)
    picture.putpalette([channel for colour in colours for channel in colour])
    return picture


def _scaled(image: Image.Image, longer: int) -> Image.Image:
    """The image with a longer side of so many pixels."""
    factor = longer / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC if factor > 1 else Image.Resampling.BILINEAR)


def _tile(shown: Shown, colours: Sequence[RGB]) -> Image.Image:
    """The image, the same with its classes, and its name below, of which no more is seen than fits."""
    image = _scaled(shown.image, TILE)
    tile = Image.new("RGB", (2 * TILE + GAP // 2, image.height + TEXT + 2 * GAP), _PAPER)
    tile.paste(image, (0, 0))
    tile.paste(blend(image, shown.label, colours), (TILE + GAP // 2, 0))
    name = " ".join(shown.name.encode("utf-8", "replace").decode("utf-8").split())
    name = name if len(name) <= 50 else f"{name[:24]}…{name[-24:]}"
    ImageDraw.Draw(tile).text((0, image.height + GAP // 3), name, fill=_GREY, font=font(TEXT))
    return tile


def _stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one width below each other."""
    sheet = Image.new("RGB", (pictures[0].width, sum(each.height for each in pictures)), _PAPER)
    top = 0
    for each in pictures:
        sheet.paste(each, (0, top))
        top += each.height
    return sheet


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()

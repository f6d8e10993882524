"""The picture at the end of `slime-bench segment`: annotated images, then some of the results. Pure functions."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from slime_bench.segment.masks import RGB
from slime_bench.segment.output import Picture, blend, font, legend, stack

TILE, GAP, TEXT = 232, 12, 15
COLUMNS = 3
_INK, _GREY, _PAPER = (20, 20, 20), (110, 110, 110), (255, 255, 255)


@dataclass(frozen=True)
class Shown:
    """One image of the grid: uint8 [h,w,3], its labels uint8 [H,W] of any size, and its file's name."""

    name: str
    image: Picture
    label: NDArray[np.uint8]


def grid_png(
    support: Sequence[Shown], results: Sequence[Shown], total: int, names: Sequence[str], colours: Sequence[RGB]
) -> bytes:
    """PNG: a legend, the annotated images with their masks, the results; beside each image its classes.

    Args:
        total: number of results that there are; `results` may be a part of them.
    """
    columns = max(1, min(COLUMNS, max(len(support), len(results))))
    width = max(columns * _cell_width() + GAP, 480)
    of = f" ({len(results)} of {total})" if len(results) < total else ""
    parts = [legend(list(zip(names[1:], colours[1:], strict=True)), width, TEXT + 1)]
    for title, shown in (("annotated", support), (f"segmented{of}", results)):
        if shown:
            parts.append(_title(title, width))
            parts += [_row(shown[start : start + columns], width, colours) for start in range(0, len(shown), columns)]
    buffer = io.BytesIO()
    stack(parts).save(buffer, "PNG")
    return buffer.getvalue()


def evenly(count: int, wanted: int) -> list[int]:
    """At most `wanted` positions of 0..count-1, evenly spread, first and last among them."""
    if count <= wanted:
        return list(range(count))
    return [place * (count - 1) // max(1, wanted - 1) for place in range(wanted)]


def _cell_width() -> int:
    return 2 * TILE + 2 * GAP


def _title(text: str, width: int) -> Image.Image:
    strip = Image.new("RGB", (width, TEXT + 2 * GAP), _PAPER)
    ImageDraw.Draw(strip).text((GAP, GAP), text, fill=_INK, font=font(TEXT + 3))
    return strip


def _row(shown: Sequence[Shown], width: int, colours: Sequence[RGB]) -> Image.Image:
    pairs = []
    for each in shown:
        scale = TILE / max(each.image.shape[:2])
        size = (max(1, round(each.image.shape[1] * scale)), max(1, round(each.image.shape[0] * scale)))
        image = np.array(Image.fromarray(each.image).resize(size, Image.Resampling.BICUBIC))
        pairs.append((each.name, image, blend(image, each.label, colours)))
    height = max(image.shape[0] for _, image, _ in pairs)
    strip = Image.new("RGB", (width, height + TEXT + 2 * GAP), _PAPER)
    drawn = ImageDraw.Draw(strip)
    for column, (name, *pictures) in enumerate(pairs):
        left = GAP + column * _cell_width()
        for place, picture in enumerate(pictures):
            strip.paste(Image.fromarray(picture), (left + place * (TILE + GAP // 2), 0))
        drawn.text((left, height + GAP // 3), _shortened(name, drawn), fill=_GREY, font=font(TEXT))
    return strip


def _shortened(name: str, drawn: ImageDraw.ImageDraw) -> str:
    """A file name that fits below its pictures; what no font can draw is left to the CSV."""
    text = " ".join(name.encode("utf-8", "replace").decode("utf-8").split())
    while drawn.textlength(text, font=font(TEXT)) > 2 * TILE and len(text) > 4:
        middle = len(text) // 2
        text = f"{text[: middle - 2]}…{text[middle + 1 :]}"
    return text

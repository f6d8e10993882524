"""Test images, label maps, predictions and class maps as small pictures inside the page."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slime_bench.colours import palette
from slime_bench.report.collect import read_optional
from slime_bench.report.figures import Pixels, paint
from slime_bench.results.artifacts import QUALITATIVE_FILE, GridItem, coloured, read_qualitative
from slime_bench.results.result import TrialResult

SIDE = 144
"""Pixels of the longer side of a picture."""
MOST_BYTES = 2_000_000
"""Of all pictures of a page, before base64."""


def gallery(
    groups: Mapping[str, Sequence[TrialResult]], folders: Mapping[str, Path], most: int = MOST_BYTES
) -> dict[str, Any] | None:
    """The kept pictures of the trials, as plain JSON values; None without any.

    When they would take more than `most` bytes, later seeds are left out first.

    Args:
        groups: label of a row -> its trials by seed, in the order of the tables.
    """
    pictures: dict[str, str] = {}  # by a key that follows from the content, so that each is in the page once

    def add(content: bytes, kind: str) -> str:
        key = hashlib.sha256(content).hexdigest()[:12]
        pictures[key] = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
        return key

    trials = [(rank, label, one) for label, members in groups.items() for rank, one in enumerate(members)]
    found: dict[str, dict[str, Any]] = {}
    left_out = 0
    for _, label, one in sorted(trials, key=lambda each: each[0]):  # first seeds first; the sort is stable
        path = folders[one.signature] / QUALITATIVE_FILE
        if sum(map(len, pictures.values())) * 3 // 4 >= most:  # base64 has four signs for three bytes
            left_out += path.is_file()
        elif (content := read_optional(path, read_qualitative)) is not None:
            items, classes = content
            entries = [_entry(item, classes, add) for item in items]
            found[one.signature] = {"label": label, "seed": one.seed, "classes": classes, "items": entries}
    if not found:
        return None
    most_classes = max(len(entry["classes"]) for entry in found.values())
    return {
        "trials": [found[one.signature] for _, _, one in trials if one.signature in found],
        "pictures": pictures,
        "colours": ["#" + bytes(colour).hex() for colour in palette(most_classes)],
        "leftOut": left_out,
    }


def outline(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a region [H,W] that touch another, without the picture's own border."""
    from scipy.ndimage import binary_erosion

    return region & ~binary_erosion(region, border_value=1)


def heat(score: NDArray[Any], region: NDArray[np.bool_]) -> Pixels:
    """A class map [h,w] from its minimum to its maximum as RGB, sized as `region` [H,W], with its outline in white."""
    height, width = region.shape
    grown = Image.fromarray(np.asarray(score, dtype=np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    pixels = coloured(np.asarray(grown))
    pixels[outline(region)] = 255
    return pixels


def _entry(item: GridItem, classes: Sequence[str], add: Callable[[bytes, str], str]) -> dict[str, Any]:
    colours = palette(len(classes))
    label, prediction = (_small(each.astype(np.uint8)) for each in (item.label, item.prediction))
    maps = [heat(score, label == index) for index, score in enumerate(item.maps)]
    return {
        "id": item.image_id, "image": add(_webp(_small(item.image.astype(np.uint8), smooth=True)), "webp"),
        "label": add(_png(paint(label, colours)), "png"), "prediction": add(_png(paint(prediction, colours)), "png"),
        "maps": [add(_webp(each), "webp") for each in maps],
        "has": [bool((label == index).any()) for index in range(len(classes))],
    }  # fmt: skip


def _small(pixels: Pixels, smooth: bool = False) -> Pixels:
    """The picture with no side longer than `SIDE`."""
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize(size, method))


def _webp(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=72, method=4)
    return buffer.getvalue()


def _png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    # A palette of its own few colours: a third of the bytes, and not one pixel changed.
    image = Image.fromarray(pixels)
    few = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    exact = np.array_equal(np.asarray(few.convert("RGB")), pixels)
    (few if exact else image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()

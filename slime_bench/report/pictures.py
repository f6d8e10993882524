"""Test images, label maps, predictions and class maps as small pictures inside the page."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slime_bench.report.collect import read_optional
from slime_bench.report.figures import paint as painted
from slime_bench.results.artifacts import QUALITATIVE_FILE, GridItem, read_qualitative
from slime_bench.results.result import TrialResult

SIDE = 144
"""Pixels of the longer side of a picture."""
MOST_BYTES = 2_000_000
"""Of all pictures of a page, before base64."""
IGNORED = (150, 150, 150)
# Okabe and Ito's colours, which all kinds of colour vision tell apart, then lighter and darker ones.
_PARTS = ("E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7")
_BACKGROUND = (26, 26, 26)

Pixels = NDArray[np.uint8]


@dataclass
class Album:
    """Pictures by a key that follows from their content, so that each is in the page once."""

    most: int = MOST_BYTES
    size: int = 0
    pictures: dict[str, str] = field(default_factory=dict)

    def add(self, content: bytes, kind: str) -> str:
        key = hashlib.sha256(content).hexdigest()[:12]
        if key not in self.pictures:
            self.pictures[key] = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
            self.size += len(content)
        return key

    @property
    def full(self) -> bool:
        return self.size >= self.most


def gallery(
    rows: Sequence[tuple[str, str]], results: Sequence[TrialResult], folders: Mapping[str, Path], most: int = MOST_BYTES
) -> dict[str, Any] | None:
    """The kept pictures of the trials, as plain JSON values; None without any.

    When they would take more than `most` bytes, later seeds are left out first.

    Args:
        rows: series and label, in the order of the tables.
    """
    album = Album(most)
    found: list[tuple[tuple[int, int], dict[str, Any]]] = []
    order = {series: index for index, (series, _) in enumerate(rows)}
    labels = dict(rows)
    trials: list[tuple[int, int, TrialResult]] = []
    for series, index in order.items():
        members = sorted((one for one in results if one.series == series), key=lambda one: one.seed)
        trials += [(rank, index, one) for rank, one in enumerate(members)]
    left_out = 0
    for _, index, one in sorted(trials, key=lambda each: each[:2]):
        path = folders[one.signature] / QUALITATIVE_FILE
        if not path.is_file():
            continue
        if album.full:
            left_out += 1
            continue
        content = read_optional(path, read_qualitative)
        if content is None:
            continue
        items, classes = content
        entries = [_entry(item, classes, album) for item in items]
        entry = {"label": labels[one.series], "seed": one.seed, "classes": classes, "items": entries}
        found.append(((index, one.seed), entry))
    if not found:
        return None
    found.sort(key=lambda each: each[0])
    most_classes = max(len(entry["classes"]) for _, entry in found)
    colours = ["#" + bytes(colour).hex() for colour in class_colours(most_classes)]
    return {
        "trials": [entry for _, entry in found],
        "pictures": album.pictures,
        "colours": colours,
        "leftOut": left_out,
    }


def class_colours(number: int) -> list[tuple[int, int, int]]:
    """A colour for each class, the background first."""
    found = [_BACKGROUND]
    for index in range(number - 1):
        turn, place = divmod(index, len(_PARTS))
        red, green, blue = bytes.fromhex(_PARTS[place])
        white, share = (255, 0.0) if not turn else (255 * (turn % 2), 1 - 0.6 ** ((turn + 1) // 2))
        found.append(tuple(round(part + (white - part) * share) for part in (red, green, blue)))  # type: ignore[arg-type]
    return found[:number]


def paint(labels: NDArray[Any], classes: int) -> Pixels:
    """Label map [H,W] as RGB [H,W,3]; labels outside the classes are grey."""
    return painted(labels, np.array(class_colours(classes), dtype=np.uint8), IGNORED)


def outline(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a region [H,W] that touch another, without the picture's own border."""
    inner = np.pad(region, 1, mode="edge")
    return region & ~(inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:])


def heat(score: NDArray[Any], region: NDArray[np.bool_]) -> Pixels:
    """A class map [h,w] from its minimum to its maximum as RGB, sized as `region` [H,W], with its outline in white."""
    from matplotlib import colormaps
    from PIL import Image

    values = np.asarray(score, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    unit = (values - low) / (high - low) if high > low else np.zeros_like(values)
    height, width = region.shape
    grown = np.asarray(Image.fromarray(unit).resize((width, height), Image.Resampling.BILINEAR))
    pixels = np.asarray(colormaps["magma"](grown)[..., :3] * 255).round().astype(np.uint8)
    pixels[outline(region)] = 255
    return pixels


def _entry(item: GridItem, classes: Sequence[str], album: Album) -> dict[str, Any]:
    label, prediction = (_small(each.astype(np.uint8)) for each in (item.label, item.prediction))
    maps = [heat(score, label == index) for index, score in enumerate(item.maps)]
    return {
        "id": item.image_id,
        "image": album.add(_webp(_small(item.image.astype(np.uint8), smooth=True)), "webp"),
        "label": album.add(_png(paint(label, len(classes))), "png"),
        "prediction": album.add(_png(paint(prediction, len(classes))), "png"),
        "maps": [album.add(_webp(each), "webp") for each in maps],
        "has": [bool((label == index).any()) for index in range(len(classes))],
    }


def _small(pixels: Pixels, smooth: bool = False) -> Pixels:
    """The picture with no side longer than `SIDE`."""
    from PIL import Image

    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize(size, method))


def _webp(pixels: Pixels) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=72, method=4)
    return buffer.getvalue()


def _png(pixels: Pixels) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    # A palette of its own few colours: a third of the bytes, and not one pixel changed.
    image = Image.fromarray(pixels)
    few = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    exact = np.array_equal(np.asarray(few.convert("RGB")), pixels)
    (few if exact else image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()

"""Whether two trials counted the same pixels in the same test images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slime_bench.errors import ResultError
from slime_bench.results.result import PER_IMAGE_FILE, read_per_image_arrays


@dataclass(frozen=True)
class Images:
    """The test images of two trials.

    Attributes:
        unknown: why nothing can be said, else empty.
        a, b: numbers of images. common: of images that both have, by their ids.
        only_a, only_b: ids of the others.
        differ: id -> pixels by which the counts of a common image differ, summed over classes and over intersection and
            union; the largest first. Those that do not differ are left out.
    """

    unknown: str = ""
    a: int = 0
    b: int = 0
    common: int = 0
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()
    differ: tuple[tuple[str, int], ...] = ()


def compare_images(a: Path, b: Path) -> Images:
    """The counts per image in the folders of two trials; nothing is raised for tables that are not there or spoilt."""
    try:
        (ids_a, classes_a, *counts_a), (ids_b, classes_b, *counts_b) = (
            read_per_image_arrays(folder / PER_IMAGE_FILE) for folder in (a, b)
        )
    except ResultError as error:
        return Images(unknown=f"{error.summary} {error.path}")
    if set(classes_a) != set(classes_b):
        return Images(unknown=f"{PER_IMAGE_FILE} of the two has other classes")
    order = [classes_b.index(name) for name in classes_a]
    places_a, places_b = ({name: row for row, name in enumerate(ids)} for ids in (ids_a, ids_b))
    common = [name for name in ids_a if name in places_b]
    rows_a, rows_b = ([places[name] for name in common] for places in (places_a, places_b))
    pixels, other = np.zeros(len(common), np.int64), np.zeros(len(common), bool)
    for left, right in zip(counts_a, counts_b, strict=True):  # intersection, union, presence
        gap = np.abs(left[rows_a].astype(np.int64) - right[rows_b][:, order].astype(np.int64))
        pixels += gap.sum(1) if left.dtype != bool else 0
        other |= gap.any(1)  # a class may have gone from an annotation although no count shows it
    differ = [(common[row], int(pixels[row])) for row in np.flatnonzero(other)]
    return Images(
        a=len(ids_a),
        b=len(ids_b),
        common=len(common),
        only_a=tuple(name for name in ids_a if name not in places_b),
        only_b=tuple(name for name in ids_b if name not in places_a),
        differ=tuple(sorted(differ, key=lambda each: (-each[1], each[0]))),
    )

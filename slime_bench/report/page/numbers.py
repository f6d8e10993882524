"""The numbers behind the tables, in the page itself, so that it can state them under every convention.

The page gets the per-image counts of each trial and reduces them again; a trial without usable counts, or with more
than a page can hold, brings what its result file says under each convention. Both are the same numbers.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slime_bench.errors import ResultError
from slime_bench.metrics import CONVENTION_RULES
from slime_bench.metrics.ratio import Array
from slime_bench.report.intervals import read_images
from slime_bench.results.result import TrialResult

MOST_CELLS = 400_000
"""Images times classes, over all trials of a page: about a megabyte."""


def series_numbers(
    results: Sequence[TrialResult], folders: Mapping[str, Path], most: int = MOST_CELLS
) -> dict[str, dict[str, Any]]:
    """Series -> its classes and trials, as plain JSON values.

    A trial: `seed`; `images`; `stored`: convention -> IoU in 0..1 for each class, None where undefined; `counts`: see
    `encoded`, None where there are none; `why` there are none.
    """
    found: dict[str, dict[str, Any]] = {}
    left = most
    for result in sorted(results, key=lambda one: one.seed):
        entry = found.setdefault(result.series, {"classes": result.classes, "trials": []})
        counts, why = None, ""
        cells = result.num_test_images * len(result.classes)
        if cells > left:
            why = "too many images for a page"
        else:
            try:
                images = read_images(result, folders.get(result.signature))
            except ResultError as error:
                why = error.summary.rstrip(".")
            else:
                counts = encoded(images.intersection, images.union, images.present)
                left -= cells
        stored = {
            name: [result.conventions[name]["per_class"][each] for each in result.classes] for name in CONVENTION_RULES
        }
        entry["trials"].append(
            {"seed": result.seed, "images": result.num_test_images, "stored": stored, "counts": counts, "why": why}
        )
    return found


def encoded(intersection: Array, union: Array, present: Array) -> str:
    """Counts [N,K] as base64 of variable-length integers, image by image, class by class.

    Each cell is 2 * union + present, followed by the intersection where the union is not 0. An integer is a sequence of
    7-bit groups, the lowest first; all bytes but the last have their highest bit set.
    """
    content = bytearray()
    cells = zip(intersection.ravel().tolist(), union.ravel().tolist(), present.ravel().tolist(), strict=True)
    for inside, either, there in cells:
        _append(content, 2 * either + there)
        if either:
            _append(content, inside)
    return base64.b64encode(bytes(content)).decode("ascii")


def without_counts(series: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Why trials have no counts in the page: none or one sentence for each reason."""
    reasons: dict[str, int] = {}
    for trial in _trials(series.values()):
        if trial["why"]:
            reasons[trial["why"]] = reasons.get(trial["why"], 0) + 1
    return [
        f"{number} trial(s) without per-image counts here ({why}): the page shows what their result files say under "
        "each convention"
        for why, number in reasons.items()
    ]


def _trials(series: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [trial for each in series for trial in each["trials"]]


def _append(content: bytearray, value: int) -> None:
    while value > 127:
        content.append(value & 127 | 128)
        value >>= 7
    content.append(value)

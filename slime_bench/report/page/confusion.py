"""Confusion matrices of the rows of a table: pixels of all seeds' test images, each row as shares of its class."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slime_bench.report.grid import DASH
from slime_bench.report.kept import read_kept
from slime_bench.report.page.view import Confusion
from slime_bench.results.confusion import CONFUSION_FILE, read_confusion
from slime_bench.results.result import TrialResult

SHADES = 10
MOST_CLASSES = 40
_LOG = logging.getLogger(__name__)


def confusion_of(label: str, trials: Sequence[TrialResult], folders: Mapping[str, Path]) -> Confusion | None:
    """The matrix of one row, summed over those of its seeds that kept one; None where none did."""
    total: NDArray[Any] | None = None
    seeds = []
    for one in sorted(trials, key=lambda one: one.seed):
        path = folders[one.signature] / CONFUSION_FILE
        kept = read_kept(path, read_confusion) if len(one.classes) <= MOST_CLASSES else None
        if kept is None:
            continue
        classes, pixels = kept
        if list(classes) != list(one.classes):
            _LOG.warning("%s is not that of the result beside it", path)
            continue
        seeds.append(one.seed)
        total = pixels if total is None else total + pixels
    if total is None:
        return None
    note = "" if len(seeds) == len(trials) else f"of seed {', '.join(map(str, seeds))} alone: the others kept none"
    return Confusion(
        label, list(trials[0].classes), shares(total), [f"{int(each):,}" for each in total.sum(axis=1)], note
    )


def shares(pixels: NDArray[Any]) -> list[list[tuple[str, int]]]:
    """Rows of counts [K,K] in percent of their sum, each with its shade; a class without pixels has none."""
    rows = []
    for row in pixels:
        whole = int(row.sum())
        if not whole:
            rows.append([(DASH, 0)] * len(row))
            continue
        percent = 100.0 * np.asarray(row, dtype=np.float64) / whole
        rows.append([(f"{value:.1f}", round(value / 100 * SHADES)) for value in percent.tolist()])
    return rows

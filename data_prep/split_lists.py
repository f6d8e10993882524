"""Which samples of a prepared data set become its validation set, and the lists of splits/README.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_prep.build import Sample
from slime_bench.data.support import permuted, read_list

VAL_SIZE = 10
MIN_PIXELS = 12
"""Pixels that a class needs to count as shown, as `data.min_pixels`."""

_COMMITTED = Path(__file__).resolve().parent / "splits"


def choose_val(samples: Sequence[Sample], size: int = VAL_SIZE) -> list[str]:
    """Ids of `size` validation samples: those that show the most foreground classes first.

    Among equals the generator (0, "val") decides. At least one sample is left for the support pool.
    """
    shown = {each.id: sum(count >= MIN_PIXELS for count in each.facts["pixels"][1:]) for each in samples}
    ids = sorted(shown)  # so that the order of the samples does not matter
    drawn = sorted((ids[index] for index in permuted(len(ids), 0, "val")), key=lambda key: -shown[key])
    return drawn[: min(size, max(0, len(samples) - 1))]


def committed(name: str, list_name: str) -> list[int]:
    """The indices of data_prep/splits/<name>/<list_name>.txt; empty where there is no such list."""
    path = _COMMITTED / name / f"{list_name}.txt"
    return [int(each) for each in read_list(path)] if path.is_file() else []

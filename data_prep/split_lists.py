"""Which samples of a prepared data set become support and validation sets, as lists of ids; see splits/README.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_prep.build import Sample

VAL_SIZE = 10
SHOTS = (1, 10)
SEEDS = (0, 1, 2)
MIN_PIXELS = 12
"""Pixels that a class needs to count as shown, as `data.min_pixels`; see `slime_bench.data.support.LISTED_BY`."""

_COMMITTED = Path(__file__).resolve().parent / "splits"


def choose_val(samples: Sequence[Sample], size: int = VAL_SIZE) -> list[str]:
    """Ids of `size` validation samples: those that show the most foreground classes first.

    Among equals the generator (0, "val") decides. At least one sample is left for the support pool.
    """
    return _drawn(samples, 0, "val")[: min(size, max(0, len(samples) - 1))]


def drawn_lists(samples: Sequence[Sample]) -> dict[str, list[str]]:
    """`drawn-<shots>-seed<s>` -> ids of the support set, drawn from those of `support` as `data.support=drawn` does it.

    A pool of fewer samples than shots has no such list.
    """
    pool = [each for each in samples if each.split == "support"]
    lists: dict[str, list[str]] = {}
    for seed in SEEDS:
        ordered = _drawn(pool, seed, "support")
        lists |= {f"drawn-{shots}-seed{seed}": ordered[:shots] for shots in SHOTS if shots <= len(ordered)}
    return lists


def committed(name: str, list_name: str) -> list[int]:
    """The indices of data_prep/splits/<name>/<list_name>.txt; empty where there is no such list."""
    path = _COMMITTED / name / f"{list_name}.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [int(text) for line in lines if (text := line.split("#", 1)[0].strip())]


def _drawn(samples: Sequence[Sample], seed: int, purpose: str) -> list[str]:
    from slime_bench.data.support import draw  # torch, which the builders' worker processes need not load

    shown = [sum(count >= MIN_PIXELS for count in each.facts["pixels"][1:]) for each in samples]
    return draw([each.id for each in samples], shown, seed, purpose)

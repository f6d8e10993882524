"""Which samples of a prepared data set become support and validation sets, as lists of ids; see splits/README.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from slime_bench.errors import DataError

VAL_SIZE = 10
SHOTS = (1, 10)
SEEDS = (0, 1, 2)
MIN_PIXELS = 12
"""Pixels that a class needs to count as shown, as `data.min_pixels`; see `slime_bench.data.support.LISTED_BY`."""

_COMMITTED = Path(__file__).resolve().parent / "splits"


class Counted(Protocol):
    """A sample as the builders know it; `facts["pixels"]` holds its pixels per class, in label order."""

    @property
    def id(self) -> str: ...

    @property
    def facts(self) -> Mapping[str, object]: ...


def choose_val(samples: Sequence[Counted], classes: Sequence[str], size: int = VAL_SIZE) -> list[str]:
    """Ids of `size` validation samples: those that show the most foreground classes first.

    Among equals the generator (0, "val") decides. At least one sample is left for the support pool.
    """
    ordered = _drawn(samples, classes, 0, "val")
    return ordered[: min(size, max(0, len(samples) - 1))]


def drawn_lists(samples: Sequence[Counted], classes: Sequence[str]) -> dict[str, list[str]]:
    """`drawn-<shots>-seed<s>` -> ids of the support set, drawn from `samples` as `data.support=drawn` does it.

    A pool of fewer samples than shots has no such list.
    """
    lists: dict[str, list[str]] = {}
    for seed in SEEDS:
        ordered = _drawn(samples, classes, seed, "support")
        lists |= {f"drawn-{shots}-seed{seed}": ordered[:shots] for shots in SHOTS if shots <= len(ordered)}
    return lists


def committed(name: str, list_name: str) -> list[int] | None:
    """The indices of data_prep/splits/<name>/<list_name>.txt, or None where there is no such list.

    Raises:
        DataError: a line that is no index.
    """
    path = _COMMITTED / name / f"{list_name}.txt"
    if not path.is_file():
        return None
    lines = [line.split("#", 1)[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    wrong = [line for line in lines if line and not line.isdigit()]
    if wrong:
        raise DataError(
            "a split list holds something else than indices",
            path=path,
            found=wrong[0],
            expected="one whole number per line; `#` begins a comment",
            remedy="restore the file from the repository",
        )
    return [int(line) for line in lines if line]


def _drawn(samples: Sequence[Counted], classes: Sequence[str], seed: int, purpose: str) -> list[str]:
    from slime_bench.data.support import draw  # torch, which the builders' worker processes need not load

    shown = [sum(count >= MIN_PIXELS for count in _foreground(sample, len(classes))) for sample in samples]
    return draw([sample.id for sample in samples], shown, seed, purpose)


def _foreground(sample: Counted, num_classes: int) -> list[int]:
    pixels = sample.facts["pixels"]
    if not isinstance(pixels, list | tuple) or len(pixels) != num_classes:
        raise TypeError(f"{sample.id}: `pixels` is a list of {num_classes} counts, found {pixels!r}")
    return [int(count) for count in pixels[1:]]

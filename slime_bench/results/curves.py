"""`curves.csv` in a trial's folder: what the method logged in each step of its fit, validation included.

Columns `step,epoch,<name>,...`, names in alphabetical order, one row for each step in which something was logged, an
empty cell where that name was not. Numbers are written so that they read back to the same bit; nothing depends on the
clock. No other file needs this one: it is no part of a trial's signature, and trials of before it was kept lack it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from slime_bench.errors import ResultError
from slime_bench.storage import write_atomic

CURVES_FILE: Final = "curves.csv"
AXES: Final = ("step", "epoch")
"""The first columns, which are no curves."""


class Point(NamedTuple):
    """One number that was logged.

    Attributes:
        step: of the optimisation, from 0. epoch: from 0.
        name: none of `AXES`, without control characters. value: any float, also NaN.
        weight: of the value among others of the same name and step.
    """

    step: int
    epoch: int
    name: str
    value: float
    weight: float = 1.0


def write_curves(path: str | Path, points: Iterable[Point]) -> None:
    """Write the points as `table`.

    Raises:
        StorageError: see `write_atomic`.
    """
    write_atomic(path, table(points))


def table(points: Iterable[Point]) -> bytes:
    """The content of `curves.csv`.

    A name that was logged several times in one step, as for each batch of a validation, has its weighted mean there.
    """
    lines = rows(points)
    names = sorted({name for row in lines.values() for name in row} - {"epoch"})
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*AXES, *names])
    for step, row in lines.items():
        writer.writerow([step, row["epoch"], *(repr(row[name]) if name in row else "" for name in names)])
    return buffer.getvalue().encode()


def rows(points: Iterable[Point]) -> dict[int, dict[str, float]]:
    """By step, in increasing order, the values by their names, and the `epoch`; several of a name as in `table`."""
    epochs: dict[int, int] = {}
    cells: dict[int, dict[str, list[tuple[float, float]]]] = {}
    for point in points:
        epochs[point.step] = point.epoch
        cells.setdefault(point.step, {}).setdefault(point.name, []).append((point.value, point.weight))
    return {
        step: {"epoch": epochs[step], **{name: _mean(values) for name, values in row.items()}}
        for step, row in sorted(cells.items())
    }


def read_curves(path: str | Path) -> dict[str, tuple[list[int], list[float]]]:
    """For each name the steps in which it was logged, in increasing order, and its values there.

    Raises:
        ResultError: unreadable, or not as `table` writes it.
    """
    try:
        text = Path(path).read_bytes().decode()
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        if not text.endswith("\n"):
            raise ValueError("it ends in the middle of a line")
        if tuple(header[:2]) != AXES or len(set(header)) < len(header):
            raise ValueError(f"the columns {', '.join(header)[:200]}")
        return _curves(header[2:], rows)
    except (OSError, ValueError, csv.Error) as error:
        raise ResultError(
            "The curves of the trial cannot be read.",
            path=path,
            found=str(error) or type(error).__name__,
            expected=f"columns {','.join(AXES)},<name>,... and one row of numbers for each step",
            remedy="Run the trial again with force=true, or remove the file: nothing else needs it.",
        ) from error


def _curves(names: list[str], rows: list[list[str]]) -> dict[str, tuple[list[int], list[float]]]:
    found: dict[str, tuple[list[int], list[float]]] = {name: ([], []) for name in names}
    last = -1
    for row in rows:
        if len(row) != len(AXES) + len(names):
            raise ValueError(f"a row of {len(row)} cells under {len(AXES) + len(names)} columns")
        step, _ = int(row[0]), int(row[1])
        if step <= last:
            raise ValueError(f"step {step} after step {last}")
        last = step
        for name, cell in zip(names, row[2:], strict=True):
            if cell:
                found[name][0].append(step)
                found[name][1].append(float(cell))
    return found


def _mean(values: list[tuple[float, float]]) -> float:
    if len(values) == 1:
        return values[0][0]
    return sum(value * weight for value, weight in values) / sum(weight for _, weight in values)

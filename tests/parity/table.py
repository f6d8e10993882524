"""What a parity run prints at its end: array, error, tolerance. Rows travel on the tests' reports, also under xdist."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import pytest
import torch

from tests.parity.golden import READ, chosen_folder, recorded

PROPERTY, PROPERTY_READ = "parity", "parity_read"
_PRINTED = pytest.StashKey[bool]()
Values = torch.Tensor | np.ndarray | float


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        group: line of the table; rows of one group are shown together, by their worst. array: what was compared.
        error: as `measure` says; NaN where the comparison made no sense. tolerance: the largest that passes.
    """

    group: str
    array: str
    measure: str
    error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.error <= self.tolerance  # false for NaN

    def __str__(self) -> str:
        return f"{self.array}: {self.measure} error {self.error:.3g}, tolerance {self.tolerance:g}"


class Checks:
    """Collects comparisons; leaving the `with` block fails the test if one of them does not hold.

    Args:
        record: pytest's `record_property`. source: the golden file, for the table. where: the part of it.
    """

    def __init__(self, record: Callable[[str, object], None], source: str, where: str = "") -> None:
        self._record, self._source, self._where = record, source, where
        self._failed: list[str] = []
        self._count = 0

    def __enter__(self) -> Checks:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._record(PROPERTY_READ, json.dumps(sorted(READ)))
        READ.clear()
        if kind is None:
            assert self._count, f"{self._source} {self._where}: nothing was compared"
            assert not self._failed, "\n".join([f"{self._source} {self._where}:", *self._failed])

    def absolute(self, array: str, found: Values, expected: Values, tolerance: float, group: str | None = None) -> None:
        """Largest absolute difference; NaN must stand in the same places in both."""
        ours, theirs = _pair(found, expected)
        error = float("nan")
        if ours.shape == theirs.shape and bool((ours.isnan() == theirs.isnan()).all()):
            difference = (ours - theirs).nan_to_num().abs()
            error = float(difference.max()) if difference.numel() else 0.0
        self._add(group or array, array, "max abs", error, tolerance)

    def relative(self, array: str, found: Values, expected: Values, tolerance: float, group: str | None = None) -> None:
        """Relative L2 error: of a single number, its relative error."""
        ours, theirs = _pair(found, expected)
        error = float("nan")
        if ours.shape == theirs.shape:
            error = float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))
        self._add(group or array, array, "rel L2", error, tolerance)

    def median(self, array: str, found: Values, expected: Values, tolerance: float, group: str | None = None) -> None:
        """Median absolute difference."""
        ours, theirs = _pair(found, expected)
        error = float((ours - theirs).abs().median()) if ours.shape == theirs.shape else float("nan")
        self._add(group or array, array, "median abs", error, tolerance)

    def labels(
        self, array: str, found: Values, expected: Values, maps: Values, near_tie: float, group: str | None = None
    ) -> None:
        """Pixels whose label differs, but for those where the two best of `maps` [K,h,w] are within `near_tie`."""
        ours, theirs = _pair(found, expected)
        error = float("nan")
        if ours.shape == theirs.shape:
            best = torch.as_tensor(maps).topk(2, dim=0).values
            error = float(((ours != theirs) & (best[0] - best[1] >= near_tie)).sum())
        self._add(group or array, array, "pixels", error, 0.0)

    def exactly(self, array: str, found: object, expected: object, group: str | None = None) -> None:
        """Equal or not; whole numbers, boxes, labels without a tolerance."""
        found, expected = np.asarray(found), np.asarray(expected)
        equal = found.shape == expected.shape and bool((found == expected).all())
        wrong = float((found != expected).sum()) if found.shape == expected.shape else float("nan")
        self._add(group or array, array, "differing", 0.0 if equal else wrong, 0.0)

    def more(self, array: str, measure: str, error: float, at_least: float) -> None:
        """The other way round: two things that must not be alike."""
        self._add(array, array, f"{measure}, at least {at_least:g}", -error, -at_least)

    def _add(self, group: str, array: str, measure: str, error: float, tolerance: float) -> None:
        self._count += 1
        prefix = f"{self._source} {self._where}".strip()
        row = Row(f"{prefix} {group}", array, measure, error, tolerance)
        self._record(PROPERTY, json.dumps(vars(row)))
        if not row.holds:
            self._failed.append(str(row))


def _pair(found: Values, expected: Values) -> tuple[torch.Tensor, torch.Tensor]:
    one, other = (torch.as_tensor(value).detach().double() for value in (found, expected))
    return one, other


def properties(terminal: Any, name: str) -> list[Any]:
    """What the tests of a run have recorded under `name`, each test's in its own order."""
    reports = [each for some in terminal.stats.values() for each in some if getattr(each, "when", None) == "call"]
    reports.sort(key=lambda report: report.nodeid)
    return [json.loads(text) for report in reports for key, text in report.user_properties if key == name]


def lines(rows: list[Row]) -> list[str]:
    """The table's lines: a group's worst row stands for it."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.group, row.measure), []).append(row)
    width = max(len(group) for group, _ in groups)
    result = [f"{'array':<{width}}  {'n':>4}  {'error':>9}  {'tolerance':>9}  measure"]
    for (group, measure), members in groups.items():
        worst = max(members, key=lambda row: (not row.holds, row.error / row.tolerance if row.tolerance else row.error))
        mark = "" if all(row.holds for row in members) else f"  FAILED: {worst.array}"
        error, tolerance = abs(worst.error), abs(worst.tolerance)
        result.append(f"{group:<{width}}  {len(members):>4}  {error:>9.2e}  {tolerance:>9.2g}  {measure}{mark}")
    held = sum(row.holds for row in rows)
    return [*result, f"{held} of {len(rows)} comparisons within their tolerance"]


def unread(read: set[tuple[str, str]]) -> str:
    """A line on the recorded arrays that nothing was compared with, by the last part of their names."""
    every = recorded(chosen_folder())
    names = sorted({re.sub(r".*/|^[^_]+_(?=[^_]*$)", "", name) for _, name in every - read})
    listed = ", ".join(names) if len(names) <= 9 else f"{len(names)} kinds"
    return f"{len(every & read)} of {len(every)} recorded arrays read; not read: {listed or 'none'}"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Hook: prints the table after a run that made comparisons, once."""
    rows = [Row(**each) for each in properties(terminalreporter, PROPERTY)]
    if not rows or config.stash.get(_PRINTED, False):
        return
    config.stash[_PRINTED] = True
    terminalreporter.section("parity with the authors' code")
    read = {tuple(each) for part in properties(terminalreporter, PROPERTY_READ) for each in part}
    for line in [*lines(rows), *([unread(read)] if read else [])]:
        terminalreporter.write_line(line)

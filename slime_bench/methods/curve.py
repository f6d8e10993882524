"""The numbers that a method logs while it is fitted, held in memory until they are written or saved.

Lightning gives its loggers the number itself, for which every step of a GPU would have to wait; here the tensors wait,
and are turned into numbers some hundred at a time.
"""

from __future__ import annotations

import numbers
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

import torch

from slime_bench.results.artifacts import AXES, Point

WAITING: Final = 1024
"""Tensors that wait before they are turned into numbers; each may take half a KiB of a GPU's memory."""


class Curve:
    """All points of a fit, in the order in which they were logged."""

    def __init__(self) -> None:
        self._points: list[Point] = []
        self._waiting: dict[int, torch.Tensor] = {}  # by their place in `_points`, where the value is NaN

    def add(self, step: int, epoch: int, name: str, value: Any, weight: float = 1.0) -> None:
        """Add a number, or a tensor of one element as it is now; anything else, and the axes' own names, is left out.

        Args: as the attributes of `Point`.
        """
        if name in AXES:
            return
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            self._waiting[len(self._points)] = value.detach().reshape(()).clone()
            value = float("nan")
        if not isinstance(value, numbers.Real):
            return
        self._points.append(Point(step, epoch, name, float(value), float(weight)))
        if len(self._waiting) >= WAITING:
            self._settle()

    def points(self, since: int = 0) -> list[Point]:
        """Everything so far but the first `since` points; on a GPU this waits for the last step."""
        self._settle()
        return list(self._points[since:])

    def state(self) -> dict[str, Any]:
        """The same for a checkpoint: `names`, and `points` float64 [N,5], a point's name as its place among them."""
        places = {name: place for place, name in enumerate(dict.fromkeys(each.name for each in self._points))}
        rows = [each._replace(name=places[each.name]) for each in self.points()]  # type: ignore[arg-type]
        return {"names": list(places), "points": torch.tensor(rows, dtype=torch.float64).view(-1, 5)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over a state of `state`, in place of everything so far."""
        self._waiting, names = {}, state["names"]
        rows = state["points"].tolist()
        self._points = [Point(int(step), int(epoch), names[int(place)], *rest) for step, epoch, place, *rest in rows]

    def _settle(self) -> None:
        """Turn the tensors into numbers, those of one kind in one transfer."""
        kinds: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
        for place, value in self._waiting.items():
            kinds[value.device, value.dtype].append(place)
        for places in kinds.values():
            found = torch.stack([self._waiting[place] for place in places]).tolist()
            for place, value in zip(places, found, strict=True):
                self._points[place] = self._points[place]._replace(value=float(value))
        self._waiting = {}

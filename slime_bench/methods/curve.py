"""The numbers that a method logs while it is fitted, kept in memory until they are written or saved.

Lightning gives its loggers the number itself, for which every step of a GPU would have to wait; here the tensors are
kept, and turned into numbers some hundred at a time.
"""

from __future__ import annotations

import numbers
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

import torch

from slime_bench.results.curves import AXES, Point

WAITING: Final = 1024
"""Tensors that are kept before they are turned into numbers; each may take half a KiB of a GPU's memory."""


class Curve:
    """All points of a fit, in the order in which they were logged."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._epochs: list[int] = []
        self._names: list[str] = []
        self._values: list[float] = []
        self._weights: list[float] = []
        self._waiting: dict[int, torch.Tensor] = {}  # by their place in `_values`, which holds NaN there

    def add(self, step: int, epoch: int, name: str, value: Any, weight: float = 1.0) -> None:
        """Keep a number, or a tensor of one element as it is now; anything else, and the axes' own names, is left out.

        Args: as the attributes of `Point`.
        """
        if name in AXES:
            return
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            self._waiting[len(self._values)] = value.detach().reshape(()).clone()
            value = float("nan")
        if not isinstance(value, numbers.Real):
            return
        self._steps.append(step)
        self._epochs.append(epoch)
        self._names.append(name)
        self._values.append(float(value))
        self._weights.append(float(weight))
        if len(self._waiting) >= WAITING:
            self._settle()

    def points(self, since: int = 0) -> list[Point]:
        """Everything so far but the first `since` points; on a GPU this waits for the last step."""
        self._settle()
        columns = (self._steps, self._epochs, self._names, self._values, self._weights)
        return [Point(*row) for row in zip(*(column[since:] for column in columns), strict=True)]

    def state(self) -> dict[str, Any]:
        """The same for a checkpoint: tensors and plain values."""
        self._settle()
        numbered = {name: number for number, name in enumerate(dict.fromkeys(self._names))}
        return {
            "names": list(numbered),
            "name": torch.tensor([numbered[name] for name in self._names], dtype=torch.int64),
            "step": torch.tensor(self._steps, dtype=torch.int64),
            "epoch": torch.tensor(self._epochs, dtype=torch.int64),
            "value": torch.tensor(self._values, dtype=torch.float64),
            "weight": torch.tensor(self._weights, dtype=torch.float64),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over a state of `state`, in place of everything so far."""
        self._waiting = {}
        self._steps, self._epochs = state["step"].tolist(), state["epoch"].tolist()
        self._names = [state["names"][number] for number in state["name"].tolist()]
        self._values, self._weights = state["value"].tolist(), state["weight"].tolist()

    def _settle(self) -> None:
        """Turn the tensors into numbers, those of one kind in one transfer."""
        kinds: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
        for place, value in self._waiting.items():
            kinds[value.device, value.dtype].append(place)
        for places in kinds.values():
            found = torch.stack([self._waiting[place] for place in places]).tolist()
            for place, value in zip(places, found, strict=True):
                self._values[place] = float(value)
        self._waiting = {}

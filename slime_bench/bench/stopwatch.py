"""Where the time of a step goes: stages that exclude each other, by timers around calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


def synchronise(device: str) -> None:
    """Wait until the device has done what it was told; the CPU always has."""
    if device == "cuda":
        torch.cuda.synchronize()


class Stopwatch:
    """Seconds of named stages.

    A stage within another takes its time away from the outer one, so that all stages add up to the whole. Switched off
    it costs nothing: on CUDA the waiting at each stage's ends would slow down what is measured.

    Args:
        device: `cpu` or `cuda`. clock: seconds, from any start. on: whether stages are timed.
    """

    def __init__(self, device: str = "cpu", clock: Callable[[], float] = time.perf_counter, on: bool = True) -> None:
        self.device, self.clock, self.on = device, clock, on
        self.seconds: dict[str, float] = {}
        self._open: list[tuple[str, bool]] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str, whole: bool = False) -> Iterator[None]:
        """Time the block as `name`.

        Args:
            whole: stages within count as this one.
        """
        if not self.on or (self._open and self._open[-1][1]):
            yield
            return
        self._switch()
        self._open.append((name, whole))
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def _switch(self) -> None:
        """Book the time since the last switch to the innermost open stage."""
        synchronise(self.device)
        now = self.clock()
        if self._open:
            name = self._open[-1][0]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    @contextmanager
    def around(self, *calls: tuple[Any, str, str]) -> Iterator[None]:
        """Within the block, time every call of a method.

        Args:
            calls: (object, name of the method, stage). The method is covered on the object itself, and uncovered on
                exit; a module's `forward` is found there by its `__call__`.
        """
        with ExitStack() as undo:
            for owner, name, stage in calls:
                covered = vars(owner).get(name)
                setattr(owner, name, self._timed(getattr(owner, name), stage))
                undo.callback(_uncover, owner, name, covered)
            yield

    def _timed(self, call: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.stage(stage):
                return call(*arguments, **named)

        return timed

    def take(self) -> dict[str, float]:
        """Seconds of all stages so far; they start again from 0."""
        found, self.seconds = self.seconds, {}
        return found


def _uncover(owner: Any, name: str, covered: Any) -> None:
    if covered is None:
        delattr(owner, name)
    else:
        setattr(owner, name, covered)

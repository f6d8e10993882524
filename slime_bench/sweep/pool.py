"""The loop of a launcher that starts trials in processes of their own, and looks at each of them until it has ended."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from slime_bench.sweep.job import Job, Task
from slime_bench.sweep.outcome import Outcome, forget_records


class Pool(ABC):
    """What a launcher has to be able to do with a `Job`. A handle is whatever it knows a started trial by.

    Attributes:
        at_once: trials that may run at the same time; None leaves that to the cluster.
        pause: seconds between two looks at the running trials.
        grace: seconds that trials are given to end by themselves, before they are interrupted.
        patience: seconds that interrupted trials are given to end.
    """

    at_once: int | None = None
    pause: float = 0.2
    grace: float = 0.0
    patience: float = 0.0

    def __init__(self, job: Job) -> None:
        self.job = job

    @abstractmethod
    def start(self, tasks: Sequence[Task]) -> list[Any]:
        """Start the trials and return a handle for each."""

    @abstractmethod
    def ended(self, handle: Any) -> bool:
        """Whether the trial's process has ended, however it did."""

    @abstractmethod
    def outcome(self, handle: Any, task: Task) -> Outcome:
        """What became of a trial that has ended; `died` where its process ended without a word."""

    @abstractmethod
    def cancel(self, handle: Any) -> None:
        """Interrupt a trial that has not ended."""

    def close(self) -> None:  # noqa: B027 - most launchers hold nothing
        """Let go of everything, when no trial is running any more."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """The outcomes, as the trials end. Where the caller stops early, or is interrupted, so are the trials."""
        waiting, running = deque(tasks), list[tuple[Any, Task]]()
        try:
            while waiting or running:
                free = len(waiting) if self.at_once is None else self.at_once - len(running)
                batch = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                if batch:
                    forget_records(self.job.folder, [task.index for task in batch])
                    running += zip(self.start(batch), batch, strict=True)
                ended = [pair for pair in running if self.ended(pair[0])]
                running = [pair for pair in running if pair not in ended]
                for handle, task in ended:
                    yield self.outcome(handle, task)
                if not ended:
                    time.sleep(self.pause)
        finally:
            self._end([handle for handle, _ in running])
            self.close()

    def _end(self, handles: list[Any]) -> None:
        # Ctrl-C at a terminal reaches the trials as well: then they are ending by themselves, and a second interruption
        # would only hinder them.
        for handle in self._not_ended(handles, self.grace):
            self.cancel(handle)
        self._not_ended(handles, self.patience)

    def _not_ended(self, handles: list[Any], seconds: float) -> list[Any]:
        """Those of the trials that have not ended after so many seconds."""
        until = time.monotonic() + seconds
        left = [handle for handle in handles if not self.ended(handle)]
        while left and time.monotonic() < until:
            time.sleep(self.pause)
            left = [handle for handle in left if not self.ended(handle)]
        return left

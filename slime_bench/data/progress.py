"""How far a long pass over files is: one line that a terminal and a log file can both hold. No torch here."""

from __future__ import annotations

import os
import sys
import time

_BAR = 24
_REDRAWN = 0.25
_LOGGED = 10.0


class Progress:
    """Shows on stderr how many of `total` are done: redrawn on a terminal, a new line every ten seconds in a file.

    Args:
        title: at the start of the line.
        total: how many there are.
        done: how many of them were ready before; they do not count for the speed.
        unit: what they are.
        final: show the last state as well when it all took less than ten seconds.
    """

    def __init__(self, title: str, total: int, done: int = 0, *, unit: str = "images", final: bool = True) -> None:
        self._title, self._total, self._done, self._earlier = title, total, done, done
        self._unit, self._final = unit, final
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._began = self._shown = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """`count` more are done; with 0 only the line is renewed."""
        self._done += count
        now = time.monotonic()
        if now - self._shown >= (_REDRAWN if self._terminal else _LOGGED):
            self._shown, self._final = now, True
            self._write(end="" if self._terminal else "\n")

    def close(self) -> None:
        """The last state stays to be seen."""
        if self._final:
            self._write(end="\n")

    def _write(self, end: str) -> None:
        rate = (self._done - self._earlier) / max(1e-9, time.monotonic() - self._began)
        left = f", {_duration((self._total - self._done) / rate)} left" if rate > 0 and self._done < self._total else ""
        bar = "#" * (_BAR * self._done // max(1, self._total))
        start = "\r\x1b[K" if self._terminal else ""
        line = f"{self._title} [{bar:<{_BAR}}] {self._done}/{self._total}  {rate:.1f} {self._unit}/s{left}"
        sys.stderr.write(f"{start}{line}{end}")
        sys.stderr.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

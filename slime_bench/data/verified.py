"""Remembers which data sets were verified: by name, size and time of every file, as decoding them takes minutes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from slime_bench.data.manifest import MANIFEST
from slime_bench.errors import StorageError
from slime_bench.storage import write_atomic

CACHE: Final = ".verified.json"
VERSION: Final = 2
_KEPT = 8  # verdicts of one data set, e.g. with other class lists

_log = logging.getLogger(__name__)

State = dict[str, str]
"""Per split a hash of what was verified and of the state that its files were in."""


class Verdicts:
    """The verdicts on the data set in `root`: in `<root>/.verified.json`, or, where that cannot be written, in the
    user's cache folder ($XDG_CACHE_HOME or ~/.cache, slime-bench/verified/)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:32]
        self._files = (root / CACHE, _user_cache() / "slime-bench" / "verified" / f"{name}.json")

    def state(self, folder: Iterable[Path], *meaning: Any) -> str:
        """The state of all files in the folders of a split; 60,000 take a fraction of a second.

        Args:
            meaning: what else decides what the files mean, such as the classes (JSON).
        """
        found = hashlib.sha256(json.dumps([VERSION, *meaning]).encode())
        found.update(_stamp(self.root / MANIFEST))
        for each in sorted(folder):
            for line in _stamps(each):
                found.update(line)
        return found.hexdigest()

    def read(self, state: State) -> dict[str, Any] | None:
        """What was remembered of these splits in this very state, alone or among others; or None."""
        for path in self._files:
            for known in _read(path):
                if state.items() <= known["state"].items():
                    return dict(known["report"])
        return None

    def write(self, state: State, report: Mapping[str, Any]) -> None:
        """Remember `report`; where no folder can be written the data set is verified again next time."""
        for path in self._files:
            others = [each for each in _read(path) if not each["state"].items() <= state.items()]
            verdicts = [*others[1 - _KEPT :], {"state": state, "report": dict(report)}]
            try:
                write_atomic(path, json.dumps({"version": VERSION, "verdicts": verdicts}).encode())
                return
            except StorageError as error:
                _log.debug("cannot remember the verdict in %s: %s", path, error.found)


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = content["verdicts"] if content["version"] == VERSION else []
        return [each for each in known if isinstance(each["state"], dict) and isinstance(each["report"], dict)]
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return []


def _stamps(folder: Path) -> list[bytes]:
    found = [os.fsencode(folder)]
    try:
        with os.scandir(folder) as entries:
            for each in entries:
                if not each.name.startswith("."):
                    found.append(b"%s\t%s\n" % (os.fsencode(each.name), _stamp(each)))
    except OSError as error:  # cannot be verified either, which then says why
        found.append(str(error).encode("utf-8", "replace"))
    return sorted(found)


def _stamp(file: Path | os.DirEntry[str]) -> bytes:
    try:
        stat = file.stat()
    except OSError:
        return b"-"
    return b"%d\t%d" % (stat.st_size, stat.st_mtime_ns)


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))

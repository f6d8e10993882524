"""Where, when and with which code trials ran: a summary of their `environment.json` files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENVIRONMENT_FILE = "environment.json"
_SHORT = 9


@dataclass(frozen=True)
class Provenance:
    """Sorted distinct facts of the trials behind a table.

    Attributes:
        devices, platforms: as the trials recorded them.
        commits: abbreviated, with `+changes` where the checkout held uncommitted ones.
        first, last: days (ISO) on which the first and the last trial finished, empty where none says so.
        unknown: trials without a readable `environment.json`.
    """

    devices: list[str]
    platforms: list[str]
    commits: list[str]
    first: str
    last: str
    unknown: int

    def line(self) -> str:
        """One line for a caption."""
        if not self.devices:
            return "machine, commit and date are not recorded"
        days = self.first if self.first == self.last else f"{self.first} to {self.last}"
        parts = [
            f"ran on {', '.join(self.devices)} ({', '.join(self.platforms)})",
            f"commit {', '.join(self.commits) or 'not recorded'}",
            days or "date not recorded",
        ]
        return "; ".join([*parts, *([f"{self.unknown} trial(s) do not say"] if self.unknown else [])])


def provenance(folders: Iterable[Path]) -> Provenance:
    """The provenance of the trials in these folders; a missing or spoilt file is counted, not an error."""
    facts: list[dict[str, Any]] = []
    unknown = 0
    for folder in folders:
        try:
            content = json.loads((folder / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = None
        if isinstance(content, dict) and isinstance(content.get("device"), str):
            facts.append(content)
        else:
            unknown += 1
    days = sorted(str(each["finished"])[:10] for each in facts if each.get("finished"))
    return Provenance(
        devices=_distinct(each["device"] for each in facts),
        platforms=_distinct(each.get("platform") for each in facts),
        commits=_distinct(_commit(each.get("git")) for each in facts),
        first=days[0] if days else "",
        last=days[-1] if days else "",
        unknown=unknown,
    )


def _commit(state: Any) -> str | None:
    if not isinstance(state, dict) or not isinstance(state.get("commit"), str):
        return None
    return state["commit"][:_SHORT] + ("+changes" if state.get("dirty") else "")


def _distinct(values: Iterable[Any]) -> list[str]:
    kept: Sequence[str] = [value for value in values if isinstance(value, str) and value]
    return sorted(set(kept))

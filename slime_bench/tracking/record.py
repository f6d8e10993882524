"""What is kept of a trial's W&B run in the trial's own folder: which one it is, and whether W&B has all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from slime_bench.storage import write_atomic

FOLDER: Final = "wandb"
"""Of W&B, in the trial's folder."""
RECORD: Final = "trial.json"


def is_complete(folder: Path) -> bool:
    """Whether W&B has been told everything of the trial in `folder`."""
    return bool(read(folder).get("complete"))


def read(folder: Path) -> dict[str, Any]:
    """`id` and `complete`; nothing where W&B never had a run of the trial in `folder`, or the file is damaged."""
    try:
        found = json.loads((folder / FOLDER / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write(folder: Path, run_id: str, *, complete: bool) -> None:
    """Replace what `read` finds.

    Raises:
        StorageError: see `write_atomic`.
    """
    write_atomic(folder / FOLDER / RECORD, (json.dumps({"id": run_id, "complete": complete}) + "\n").encode())


def attempt(folder: Path, force: bool) -> int:
    """Number of the run: one more when a trial of which W&B has everything is computed anew."""
    found = read(folder)
    _, _, number = str(found.get("id", "")).partition("-")
    last = int(number) if number.isdigit() else 1
    return last + 1 if force and found.get("complete") else last

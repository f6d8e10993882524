"""The trial that a person names: by its folder, its `result.json`, or the beginning of its signature."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from slime_bench.errors import ResultError
from slime_bench.results.environment import read_environment
from slime_bench.results.identity import flatten
from slime_bench.results.result import RESULT_FILE, TrialResult, read_result

_NAME: Final = re.compile(r"(seed\d+-)?([0-9a-f]{1,16})")
_SHOWN: Final = 8
_EXPECTED: Final = "a trial's folder, its result.json, or the first digits of its signature"


@dataclass(frozen=True)
class Run:
    """A finished trial.

    Attributes:
        folder: where its files lie.
        environment: see `slime_bench.results.environment`; None where it was not kept or cannot be read.
        settings: dotted key -> value of its whole configuration, also of what cannot change a number; None where
            config.yaml was not kept or cannot be read.
    """

    folder: Path
    result: TrialResult
    environment: dict[str, Any] | None
    settings: dict[str, Any] | None


def find_run(name: str, outputs: Path) -> Run:
    """The finished trial called `name`.

    Args:
        name: path of a trial's folder or of its result file, or the beginning of a signature, also with its `seed0-`.
        outputs: folder with runs/, in which signatures are looked up.

    Raises:
        ResultError: no such trial, several, one without a result, or a result that is not valid.
    """
    path = Path(name).expanduser()
    if not path.exists():
        path = _by_signature(name, outputs)
    file = path if path.is_file() else path / RESULT_FILE
    if not file.is_file():
        raise _no_result(path, name)
    result = read_result(file)
    return Run(file.parent, result, read_environment(file.parent), _settings(file.parent))


def _by_signature(name: str, outputs: Path) -> Path:
    asked = _NAME.fullmatch(name)
    if asked is None:
        raise ResultError(
            "There is no such run.", path=name, found="nothing of this name", expected=_EXPECTED,
            remedy=f"See the folders below {outputs / 'runs'}, or name another place with --outputs.",
        )  # fmt: skip
    pattern = f"runs/*/*/*/{asked[1] or 'seed*-'}{asked[2]}*"
    found = sorted(folder for folder in outputs.glob(pattern) if folder.is_dir())
    finished = [folder for folder in found if (folder / RESULT_FILE).is_file()]
    candidates = finished or found  # of a trial that failed the error says more than that it is not there
    if not candidates:
        count = sum(1 for _ in outputs.glob(f"runs/*/*/*/seed*/{RESULT_FILE}"))
        raise ResultError(
            "No trial has a signature that begins so.", path=outputs / "runs",
            found=f"{count} finished trial(s), none {name}...", expected=_EXPECTED,
            remedy="Check the digits, or name another place with --outputs.",
        )  # fmt: skip
    if len(candidates) > 1:
        raise ResultError(
            "Several trials have signatures that begin so.", path=outputs / "runs",
            found=f"{len(candidates)} of {name}...: {_listed(candidates, outputs / 'runs')}", expected="one",
            remedy="Give more digits.",
        )  # fmt: skip
    return candidates[0]


def _no_result(folder: Path, name: str) -> ResultError:
    inside = sorted(file.parent for file in folder.glob(f"**/{RESULT_FILE}"))
    if inside:
        return ResultError(
            "This folder holds several trials, or lies above one.", path=folder,
            found=f"{len(inside)} finished: {_listed(inside, folder)}", expected=_EXPECTED,
            remedy="Name one of them.",
        )  # fmt: skip
    try:
        error = json.loads((folder / "error.json").read_text(encoding="utf-8"))
        found = f"a trial that failed: {error['type']}: {error['summary']}"
    except (OSError, ValueError, KeyError, TypeError):
        there = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
        found = ", ".join(there[:_SHOWN]) or "an empty folder"
    return ResultError(
        "There is no result in this folder.", path=folder, found=found, expected=f"{RESULT_FILE}: a finished trial",
        remedy="Run the trial (a repeated command goes on where it stopped), or name another one.",
    )  # fmt: skip


def _listed(folders: list[Path], below: Path) -> str:
    names = [folder.relative_to(below).as_posix() for folder in folders[:_SHOWN]]
    return ", ".join(names) + (f" and {len(folders) - _SHOWN} more" if len(folders) > _SHOWN else "")


def _settings(folder: Path) -> dict[str, Any] | None:
    try:
        content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return dict(flatten(content)) if isinstance(content, dict) else None

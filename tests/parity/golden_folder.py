"""What the folders of golden numbers share: where one lies, and its arrays and descriptors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from torch import Tensor

SHARED: Final = Path(__file__).resolve().parents[3] / "shared" / "golden"


def chosen_folder(name: str) -> Path:
    """The folder that the variable SLIME_BENCH_GOLDEN_<NAME> names, or the one beside the checkout."""
    return Path(os.environ.get(_variable(name)) or SHARED / name)


def golden_folder(request: pytest.FixtureRequest, name: str) -> Path:
    """`chosen_folder`, for a fixture. One that the environment names has to be there; without the default one: skip,
    in CI fail."""
    if os.environ.get(_variable(name)) is None:
        request.getfixturevalue("shared")
    folder = chosen_folder(name)
    if not folder.is_dir():
        pytest.fail(f"no golden folder {folder} ({_variable(name)}={os.environ.get(_variable(name))})")
    return folder


def _variable(name: str) -> str:
    return f"SLIME_BENCH_GOLDEN_{name.upper()}"


class GoldenFolder:
    """A folder of pairs `<name>.npz` and `<name>.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._arrays: dict[str, dict[str, Any]] = {}

    def arrays(self, name: str) -> dict[str, Any]:
        """The arrays of `<name>.npz` by name."""
        if name not in self._arrays:
            self._arrays[name] = dict(np.load(self.folder / f"{name}.npz"))
        return self._arrays[name]

    def facts(self, name: str) -> dict[str, Any]:
        """What `<name>.json` says."""
        return dict(json.loads((self.folder / f"{name}.json").read_text()))

    def tensor(self, file: str, name: str) -> Tensor:
        """The array as a tensor."""
        return torch.from_numpy(self.arrays(file)[name].copy())

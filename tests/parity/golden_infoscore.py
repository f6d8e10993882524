"""A folder of golden numbers of the second paper: what is in it, read from its arrays.json, arrays, texts and model.

The layout is that of shared/golden/infoscore (its README says how each number was made). Nothing here knows a seed, a
shape, a size, a prompt or a value, but for the pixel statistics, which the README states.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.parity import golden_folder

# README, section 6: ImageNet's statistics of the network input, whatever BLIP's own processor says.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Size = tuple[int, int]


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of one .npz with what arrays.json says of each; a file that is not there has none.

    Attributes:
        read: names of the arrays that have been taken from it.
    """

    def __init__(self, path: Path, descriptions: Mapping[str, Any]) -> None:
        self.path, self._descriptions = path, descriptions
        self.read: set[str] = set()
        self._file: Mapping[str, np.ndarray] = np.load(path) if path.is_file() else {}

    def __getitem__(self, name: str) -> np.ndarray:
        self.read.add(name)
        return self._file[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)

    def __contains__(self, name: object) -> bool:
        return name in self._file

    def tensor(self, name: str) -> torch.Tensor:
        """The array as a tensor of its own type."""
        return torch.from_numpy(self[name].copy())

    def text(self, name: str) -> str:
        """What arrays.json says of the array; empty where it says nothing."""
        return str(self._descriptions.get(name, {}).get("doc", ""))


class Golden:
    """A golden folder.

    A mode is a prompt list: `single` (related words for class 0 alone) or `multi` (for every class).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _index(self) -> dict[str, Any]:
        path = self.folder / "arrays.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    @property
    def meta(self) -> dict[str, Any]:
        """arrays.json's `meta`: prompts, spans, layers, configurations, paths, orders."""
        return dict(self._index.get("meta", {}))

    def arrays(self, name: str) -> Arrays:
        """The arrays of `<name>.npz`."""
        described = self._index.get("files", {}).get(f"{name}.npz", {})
        return Arrays(self.folder / f"{name}.npz", described.get("arrays", {}))

    @property
    def model(self) -> Path:
        """Folder of the model, as transformers saves one."""
        return self.folder / "model"

    @property
    def modes(self) -> list[str]:
        """Names of the prompt lists."""
        found = [re.fullmatch(r"model_(\w+)", path.stem) for path in sorted(self.folder.glob("model_*.npz"))]
        return [match[1] for match in found if match and match[1] in self.meta]

    def prompts(self, mode: str) -> list[str]:
        """The P prompts, class by class."""
        return list(self.meta[mode]["prompts"])

    def spans(self, mode: str) -> list[tuple[int, int]]:
        """[start, end) of each class in `prompts`, class 0 first."""
        spans = self.meta[mode]["class_to_span"]
        return [(int(spans[str(k)][0]), int(spans[str(k)][1])) for k in range(len(spans))]

    def classes(self, mode: str) -> list[str]:
        """The C class names."""
        return list(self.meta[mode]["class_names"])

    @cached_property
    def images(self) -> torch.Tensor:
        """The network input, float32 [N,3,H,W], ImageNet-normalised, padding included."""
        return self.arrays("inputs").tensor("images")

    @property
    def pictures(self) -> torch.Tensor:
        """The same as RGB in [0,1], for a backbone that normalises by itself; float32 [N,3,H,W]."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        return (self.images * std + mean).clamp(0, 1)

    @cached_property
    def labels(self) -> torch.Tensor:
        """Label maps after the transform, int64 [N,H,W], 255 = ignore."""
        return self.arrays("inputs").tensor("labels").long()

    @property
    def size(self) -> Size:
        """(H, W) of the images, pixels."""
        return int(self.images.shape[-2]), int(self.images.shape[-1])

    @property
    def grid(self) -> Size:
        """(h, w) of the maps, patches."""
        patch = int(self.meta["patch"])
        return self.size[0] // patch, self.size[1] // patch

    @property
    def num_layers(self) -> int:
        """L, text layers."""
        return int(self.meta["num_layers"])

    @property
    def top(self) -> list[int]:
        """The layers of the recorded ensembles."""
        return [int(layer) for layer in self.meta["top2_layers"]]

    def table(self, name: str) -> dict[str, float]:
        """A csv file of the authors' script: class name -> IoU."""
        with (self.folder / f"{name}.csv").open(newline="") as file:
            return {row["Class Name"]: float(row["IoU"]) for row in csv.DictReader(file)}


def chosen_folder() -> Path:
    """See `golden_folder.chosen_folder`."""
    return golden_folder.chosen_folder("infoscore")


def open_golden(request: pytest.FixtureRequest) -> Golden:
    """See `golden_folder.golden_folder`."""
    return Golden(golden_folder.golden_folder(request, "infoscore"))

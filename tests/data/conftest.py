"""A toy data set in a folder, and data modules of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slime_bench.data.config import DataConfig
from slime_bench.data.datamodule import SegmentationDataModule
from slime_bench.data.folder import FolderData
from tests.fixtures.twins.toy_folder import CLASSES, COMPLETE, POOL, SIZE, write_split

Make = Callable[..., SegmentationDataModule]


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy")
    write_split(path / "support", "s", POOL, COMPLETE)
    write_split(path / "val", "v", 4, {"v01"})
    write_split(path / "test", "t", 5, {"t01"})
    return path


@pytest.fixture
def root(toy_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(toy_folder, tmp_path / "data")


@pytest.fixture
def make(root: Path) -> Make:
    """The batches of the data set in `root`, ready."""

    def build(shots: int = 3, seed: int = 0, **chosen: Any) -> SegmentationDataModule:
        arguments: dict[str, Any] = {"name": "toy", "root": str(root), "classes": CLASSES, "image_size": SIZE}
        data = FolderData(DataConfig(**{**arguments, "batch_size": 2, **chosen}), shots=shots, seed=seed)
        data.prepare_data()
        module = data.datamodule()
        module.setup()
        return module

    return build

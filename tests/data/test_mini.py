"""The mini data sets: made on demand, made again when the world changes, never over something else."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from slime_bench.config.compose import plan
from slime_bench.config.schema import read_part
from slime_bench.data import datamodule, folder
from slime_bench.data.datasets.mini import MiniData
from slime_bench.data.mini_world import render as mini_world
from slime_bench.data.reading import FolderDataset
from slime_bench.data.verify import verify_splits
from slime_bench.errors import ConfigError, DataError, StorageError

CONF = Path(__file__).resolve().parents[2] / "conf" / "data"
SUBJECTS = ("car", "horse", "face")


def config(subject: str, data_root: Path, **settings: Any) -> Any:
    """The shipped YAML, checked against the dataclass."""
    node = OmegaConf.merge({"data_root": str(data_root)}, {"data": OmegaConf.load(CONF / f"mini_{subject}.yaml")}).data
    part, found = read_part({**OmegaConf.to_container(node, resolve=True), **settings}, "data")
    assert part is MiniData
    return found


def module(subject: str, data_root: Path, shots: int = 1, seed: int = 0, **settings: Any) -> MiniData:
    return MiniData(config(subject, data_root, **settings), shots=shots, seed=seed)


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real car data set, rendered once."""
    data_root = tmp_path_factory.mktemp("rendered")
    module("car", data_root).prepare_data()
    return data_root


@pytest.fixture
def data_root(rendered: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    shutil.copytree(rendered / "mini", tmp_path / "mini")
    return tmp_path


def test_rendered_data_set_is_whole(rendered: Path) -> None:
    data = module("car", rendered, shots=10)
    batches = data.datamodule()
    batches.setup()
    counts = {"support": 30, "val": 10, "test": 100}
    for split, count in counts.items():
        whole = verify_splits({split: data.split(split)}, data.root)
        assert whole.usable
        report = whole.splits[split]
        assert report.images == count and report.sizes == {"128x128": count}
        assert min(report.images_with_class.values()) > 0
    assert data.missing_classes == []
    first = FolderDataset(rendered / "mini" / "car" / "support", data.classes)
    label = first.label(first.ids.index(data.support_ids[0]))
    assert np.unique(label).tolist() == list(range(6))
    batch = next(iter(batches.train_dataloader()))
    assert batch["image"].shape == (1, 3, 128, 128) and batch["label"].max() <= 5
    # Files hold exactly what the renderer makes.
    picture = mini_world.render("car", "test", 7)
    sample = FolderDataset(rendered / "mini" / "car" / "test", data.classes)[7]
    assert np.array_equal(sample.image, picture.image)
    assert np.array_equal(sample.label, picture.label)


SUPPORT = {
    ("car", 0): [16, 8, 10, 5, 29, 23, 20, 1, 25, 15],
    ("car", 1): [4, 27, 17, 16, 0, 6, 10, 1, 15, 7],
    ("car", 2): [14, 2, 8, 12, 20, 16, 9, 15, 10, 18],
    ("horse", 0): [16, 8, 10, 5, 29, 23, 20, 1, 25, 15],
    ("horse", 1): [4, 27, 17, 16, 0, 6, 10, 1, 15, 7],
    ("horse", 2): [2, 14, 8, 12, 20, 16, 9, 15, 10, 18],
    ("face", 0): [8, 16, 10, 5, 29, 23, 20, 1, 25, 15],
    ("face", 1): [4, 27, 17, 16, 0, 6, 10, 1, 15, 7],
    ("face", 2): [8, 2, 14, 12, 20, 16, 9, 15, 10, 18],
}
"""Pictures of the pool that were drawn, for each subject and seed, when the published mini tables were computed."""


@pytest.mark.parametrize("subject", SUBJECTS)
def test_support_sets_are_those_of_the_published_tables(subject: str, rendered: Path) -> None:
    for seed in (0, 1, 2):
        expected = [f"{subject}-support-{index:04d}" for index in SUPPORT[subject, seed]]
        for shots in (1, 10):
            data = module(subject, rendered, shots=shots, seed=seed)
            data.prepare_data()
            assert data.support_ids == expected[:shots]


def test_a_larger_pool_is_taken_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pictures are the usual pool; where there are many, they are read when they are needed."""
    monkeypatch.setattr(mini_world, "SPLIT_SIZES", {"support": 4, "val": 2, "test": 2})
    (cfg,) = plan(["data=mini_car_3000", "data.pool=6", f"data_root={tmp_path}", "shots=5"]).trials
    found = []
    for limit in (5, 4):
        monkeypatch.setattr(folder, "IN_MEMORY", limit)
        monkeypatch.setattr(datamodule, "IN_MEMORY", limit)
        data = cfg.build("data", shots=5, seed=3)
        data.prepare_data()
        assert data.support_ids == [f"car-support-{index:04d}" for index in range(5)]
        assert isinstance(data.support, FolderDataset) == (limit == 4) and data.missing_classes == []
        found.append(next(iter(data.datamodule().train_dataloader())))
    assert torch.equal(found[0]["image"], found[1]["image"]) and found[0]["id"] == found[1]["id"]


def test_another_version_is_rendered_again(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def write(root: Path, subject: str, first_test: int, pool: int | None) -> None:
        calls.append((root, subject))
        manifest = json.loads((root / "manifest.json").read_text())
        (root / "manifest.json").write_text(json.dumps({**manifest, "version": mini_world.WORLD_VERSION}))

    monkeypatch.setattr(mini_world, "write_dataset", write)
    monkeypatch.setattr(mini_world, "WORLD_VERSION", "next")
    data = module("car", data_root)
    data.prepare_data()
    data.prepare_data()
    assert calls == [(data_root / "mini" / "car", "car")]
    assert "mini car: rendering" in capsys.readouterr().err


def test_trials_that_start_together_render_once(
    rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(root: Path, subject: str, first_test: int, pool: int | None) -> None:
        with (tmp_path / "calls").open("a") as calls:
            calls.write(subject)
        time.sleep(0.3)
        building = root.with_name("building")  # as the real one: the folder is there when it is whole
        shutil.copytree(rendered / "mini" / subject, building)
        building.rename(root)

    monkeypatch.setattr(mini_world, "write_dataset", write)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=module("car", tmp_path).prepare_data) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "calls").read_text() == "car"


def test_a_changed_file_is_named_also_of_a_split_that_this_trial_does_not_read(data_root: Path) -> None:
    module("car", data_root).prepare_data()  # the verdict is remembered by the files' sizes and times
    victim = data_root / "mini" / "car" / "val" / "labels" / "car-val-0003.png"
    Image.new("L", (128, 128), 1).save(victim)
    with pytest.raises(DataError) as caught:
        module("car", data_root).prepare_data()
    assert caught.value.found == "changed: val/labels/car-val-0003.png"
    assert caught.value.path == data_root / "mini" / "car" and "delete" in str(caught.value.remedy)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "mini" / "car" / "thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    with pytest.raises(DataError, match="not a mini data set"):
        module("car", tmp_path).prepare_data()
    assert precious.read_text() == "years of work"


def test_another_subjects_folder_is_left_alone(data_root: Path) -> None:
    with pytest.raises(DataError, match="another subject"):
        module("horse", data_root, root=str(data_root / "mini" / "car")).prepare_data()


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["background", "body", "light", "plate", "wheels", "window"], r"`wheels`[\s\S]*did you mean `wheel`"),
        (["background", "body", "light", "plate", "window", "wheel"], "differs"),
    ],
)  # fmt: skip
def test_other_class_lists_are_refused(data_root: Path, classes: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        module("car", data_root, classes=classes).prepare_data()


def test_data_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "mini").write_text("")
    with pytest.raises(StorageError):
        module("car", tmp_path).prepare_data()

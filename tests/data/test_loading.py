"""Support choice, order and batches; workers, passes and the loop around them change nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from PIL import Image

from slime_bench.config.read import read
from slime_bench.data.config import DataConfig
from slime_bench.data.datamodule import SegmentationDataModule, SupportBatches
from slime_bench.data.folder import FolderData
from slime_bench.data.reading import FolderDataset, Sample
from slime_bench.data.transforms import resize_image
from slime_bench.errors import ConfigError, DataError, LabelError
from tests.data.conftest import Make
from tests.fixtures.twins.toy_folder import CLASSES, POOL, SIZE


def epochs(module: SegmentationDataModule, count: int) -> list[dict[str, Any]]:
    """Training batches as Lightning asks for them."""
    loader = module.train_dataloader()
    batches = []
    for epoch in range(count):
        loader.batch_sampler.sampler.set_epoch(epoch)
        batches += list(loader)
    return batches


def as_tensor(sample: Sample) -> torch.Tensor:
    return torch.from_numpy(sample.image).permute(2, 0, 1).float()


def assert_same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one["id"] == other["id"]
        for key in ("image", "label", "epoch"):
            assert torch.equal(one[key], other[key]), key


# --- sampler


def test_passes_are_permutations_and_the_sequence_does_not_depend_on_their_number_per_epoch() -> None:
    def batches(passes: int, seed: int = 5) -> list:
        order, found = SupportBatches(5, 2, passes, seed), []
        for epoch in range(12 // passes):
            order.set_epoch(epoch)
            found += list(order)
        assert len(found) == 12 // passes * len(order)
        return found

    found = batches(1)
    assert found == batches(3) == batches(12) != batches(1, seed=1)
    assert [len(batch) for batch in found[:6]] == [2, 2, 1, 2, 2, 1]  # none reaches over the end of a pass
    for number in range(12):
        keys = [key for batch in found[3 * number : 3 * number + 3] for key in batch]
        assert {epoch for _, epoch in keys} == {number} and sorted(index for index, _ in keys) == list(range(5))
    assert len({tuple(index for batch in found[at : at + 3] for index, _ in batch) for at in range(0, 36, 3)}) > 6


# --- batches


def test_batches_have_the_promised_form(make: Make) -> None:
    module = make(shots=3, train_batch_size=2)
    train, val, test = (
        list(loader) for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader())
    )
    assert [len(batch["id"]) for batch in train] == [2, 1]
    assert [batch["id"] for batch in test] == [["t00", "t01"], ["t02", "t03"], ["t04"]]
    for batch in (*train, *val, *test):
        count = len(batch["id"])
        assert isinstance(batch["id"], list) and all(isinstance(key, str) for key in batch["id"])
        assert batch["image"].shape == (count, 3, SIZE, SIZE) and batch["image"].dtype == torch.float32
        assert batch["image"].min() >= 0 and 0.5 < batch["image"].max() <= 1
        assert batch["label"].shape == (count, SIZE, SIZE) and batch["label"].dtype == torch.int64
        assert batch["epoch"].shape == (count,) and batch["epoch"].dtype == torch.int64
    assert module.data.missing_classes == [] and module.data.classes == tuple(CLASSES)


def test_validation_images(make: Make, root: Path) -> None:
    def ids(**settings: Any) -> list[str]:
        return [key for batch in make(**settings).val_dataloader() for key in batch["id"]]

    one = make(shots=1)
    assert one.data.validation == "support" and ids(shots=1) == one.support_ids
    batch = next(iter(one.val_dataloader()))
    pool = FolderDataset(root / "support", CLASSES)
    assert torch.equal(batch["image"][0] * 255, as_tensor(pool[pool.ids.index(batch["id"][0])]))
    assert make(shots=2).data.validation == "val" and ids(shots=2) == ["v00", "v01", "v02", "v03"]
    assert ids(shots=1, validation="val") == ["v00", "v01", "v02", "v03"]
    assert ids(shots=2, validation="support") == make(shots=2).support_ids
    assert ids(validation="none") == []
    assert make(shots=1, validation="paper").data.validation == "none" and ids(shots=1, validation="paper") == []
    assert ids(shots=2, validation="paper") == ["v00", "v01", "v02", "v03"]


def test_training_items_are_keyed_by_seed_id_and_epoch(make: Make) -> None:
    module = make(shots=3)
    first = epochs(module, 3)
    assert_same(first, epochs(make(shots=3), 3))
    by_key = {(batch["id"][0], int(batch["epoch"])): batch["image"] for batch in first}
    assert len(by_key) == 9
    images = list(by_key.values())
    assert all(not torch.equal(images[i], images[j]) for i in range(9) for j in range(i))
    # A larger support set or another number of passes gives the shared items the same bytes.
    for other in (make(shots=5), make(shots=3, passes_per_epoch=3)):
        shared = {(b["id"][0], int(b["epoch"])): b["image"] for b in epochs(other, 3)}
        assert all(torch.equal(shared[key], image) for key, image in by_key.items())
    other_seed = epochs(make(shots=POOL, seed=1), 1)
    assert any(
        batch["id"][0] == key[0] and not torch.equal(batch["image"], image)
        for batch in other_seed
        for key, image in by_key.items()
        if key[1] == 0
    )


def test_global_random_state_is_neither_used_nor_moved(make: Make) -> None:
    torch.manual_seed(1)
    first = epochs(make(), 2)
    after = torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(after, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert_same(first, epochs(make(), 2))


def test_workers_change_nothing(make: Make) -> None:
    alone, crowd = make(shots=4), make(shots=4, num_workers=2)
    assert_same(epochs(alone, 2), epochs(crowd, 2))
    assert_same(list(alone.test_dataloader()), list(crowd.test_dataloader()))


@pytest.mark.parametrize("group", [None, 2])
@pytest.mark.parametrize("workers", [0, 1])
def test_only_the_first_epoch_leaves_out_batches(make: Make, group: int | None, workers: int) -> None:
    whole, rest = (make(shots=3, passes_per_epoch=2, num_workers=count) for count in (0, workers))
    whole.support_group = rest.support_group = group
    rest.first_batch = 3
    expected, loader = list(whole.train_dataloader()), rest.train_dataloader()
    assert len(loader) == len(expected) == (6 if group is None else 4)  # as Lightning counts batches of the whole epoch
    assert_same(list(loader), expected[3:])
    assert_same(list(loader), expected)


class Recorder(lightning.LightningModule):
    """Keeps what the loop hands over."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[dict[str, Any]] = []

    def training_step(self, batch: dict[str, Any], index: int) -> torch.Tensor:
        self.batches.append(batch)
        return self.weight * 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.filterwarnings("ignore")
def test_lightning_counts_the_epochs(make: Make, tmp_path: Path) -> None:
    quiet: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "default_root_dir": tmp_path,
    }  # fmt: skip
    module, recorder = make(shots=3, passes_per_epoch=2, validation="none"), Recorder()
    trainer = lightning.Trainer(max_epochs=3, **quiet)
    trainer.fit(recorder, datamodule=module)
    assert_same(recorder.batches, epochs(module, 3))
    assert [int(batch["epoch"]) for batch in recorder.batches] == [e for e in range(6) for _ in range(3)]
    # Resumed after the third epoch, the loop goes on where it stopped.
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = Recorder()
    again = make(shots=3, passes_per_epoch=2, validation="none")
    lightning.Trainer(max_epochs=5, **quiet).fit(resumed, datamodule=again, ckpt_path=tmp_path / "last.ckpt")
    assert_same(resumed.batches, epochs(module, 5)[18:])


# --- sizes


def test_antialias_averages_and_opencv_samples() -> None:
    stripes = np.tile(np.array([0, 0, 0, 255], np.uint8)[:, None], (32, 8, 3))
    averaged, sampled = resize_image(stripes, (8, 8)), resize_image(stripes, (8, 8), "opencv")
    assert np.abs(averaged[:, 1:-1].astype(float) - 255 / 4).max() < 30
    assert not sampled.any()  # the reference never sees the stripes: it reads columns 1 and 2 of 4
    # PIL's and torch's antialiased filters are the same triangle.
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(planes, 16, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    assert np.abs(resize_image(image, (16, 16)) - expected.numpy()).max() < 1.5
    assert np.array_equal(resize_image(image[:, :40], (40, 40)), image[:, :40])


# --- configuration and fingerprint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 0), ("num_workers", -1), ("validation", "test"), ("classes", ["body"]),
        ("splits", {"train": "a"}), ("splits", {"test": "{shots}/a"}), ("support", "../lab"),
    ],
)  # fmt: skip
def test_bad_settings(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        read(DataConfig, {"name": "toy", "root": "data", "classes": CLASSES, name: value}, "data")
    assert caught.value.path == f"data.{name}"


def test_fingerprint_follows_the_data(root: Path) -> None:
    def fingerprint() -> str:
        config = DataConfig(name="toy", root=str(root), classes=CLASSES)
        return FolderData(config, shots=1, seed=0).fingerprint()

    before = fingerprint()
    assert len(before) == 64 and fingerprint() == before
    Image.new("L", (SIZE, SIZE), 1).save(root / "test" / "labels" / "t00.png")
    assert fingerprint() != before
    manifest = root / "manifest.json"
    manifest.write_text("{}")  # vouches for nothing
    empty = fingerprint()
    Image.new("L", (SIZE, SIZE), 2).save(root / "test" / "labels" / "t00.png")
    assert fingerprint() != empty
    files = {path.relative_to(root).as_posix(): "0" * 64 for path in root.rglob("*.*") if path.parent != root}
    head = {"version": 1, "subject": "car", "classes": list(CLASSES)}
    manifest.write_text(json.dumps({**head, "files": files}))
    assert fingerprint() == hashlib.sha256(manifest.read_bytes()).hexdigest()  # it vouches for every file
    shutil.rmtree(root / "test")  # ... but not for what has come in their place
    for name in ("0", "1"):
        (root / "test").mkdir(exist_ok=True)
        Image.new("RGB", (SIZE, SIZE)).save(root / "test" / f"{name}.png")
        np.save(root / "test" / f"{name}.npy", np.ones((SIZE, SIZE), np.uint8))
    replaced = fingerprint()
    np.save(root / "test" / "1.npy", np.zeros((SIZE, SIZE), np.uint8))
    assert len({fingerprint(), replaced, hashlib.sha256(manifest.read_bytes()).hexdigest()}) == 3


def test_splits_that_the_trial_does_not_read_may_be_absent_or_bad(root: Path) -> None:
    (root / "val" / "labels" / "v00.png").write_bytes(b"")

    def prepare(shots: int, **settings: Any) -> None:
        config = DataConfig("toy", str(root), CLASSES, image_size=SIZE, **settings)
        data_set = FolderData(config, shots=shots, seed=0)
        data_set.prepare_data()
        data_set.datamodule().setup()
        assert len(data_set.fingerprint()) == 64

    prepare(1)
    with pytest.raises(DataError, match="cannot read the label map"):
        prepare(2)
    (root / "val" / "labels" / "v00.png").unlink()  # an orphan
    prepare(1)
    shutil.rmtree(root / "val")
    prepare(1)
    with pytest.raises(DataError, match="no val split") as caught:
        prepare(2)
    assert caught.value.path == root / "val" and "data.validation=support" in str(caught.value.remedy)
    assert caught.value.found == "support/, test/"
    prepare(2, validation="support")


# --- errors in workers


@pytest.fixture
def broken(root: Path, tmp_path: Path) -> Path:
    """The test split with an unreadable image and a label outside the classes."""
    for kind in ("images", "labels"):
        (tmp_path / "test" / kind).mkdir(parents=True)
        for file in (root / "test" / kind).iterdir():
            (tmp_path / "test" / kind / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("fault", ["image", "label"])
def test_typed_errors_cross_the_process_border(broken: Path, workers: int, fault: str) -> None:
    config = DataConfig("toy", str(broken), CLASSES, image_size=SIZE, batch_size=2, num_workers=workers)
    module = FolderData(config, shots=1, seed=0).datamodule()
    module.setup("test")
    if fault == "image":
        path, kind = broken / "test" / "images" / "t03.png", DataError
        path.write_bytes(b"not a picture")
    else:
        path, kind = broken / "test" / "labels" / "t03.png", LabelError
        Image.new("L", (SIZE, SIZE), 9).save(path)  # damaged while the trial runs
    loader = iter(module.test_dataloader())
    assert next(loader)["id"] == ["t00", "t01"]
    with pytest.raises(kind) as caught:
        next(loader)
    error = caught.value
    assert type(error) is kind and error.path == path and error.found and error.remedy
    assert str(path) in str(error) and str(error.remedy) in str(error)
    assert "Traceback" not in str(error)


def test_other_errors_still_raise(make: Make) -> None:
    loader = make().test_dataloader()
    loader.dataset.samples = None
    with pytest.raises(TypeError):
        next(iter(loader))

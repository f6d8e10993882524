"""Support choice, order and batches; workers, passes and the loop around them change nothing."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from PIL import Image

from slime_bench.config.read import read
from slime_bench.data.config import Augmentation, DataConfig
from slime_bench.data.datamodule import (
    SegmentationDataModule,
    SupportBatchSampler,
    SupportSampler,
)
from slime_bench.data.folder import FolderData
from slime_bench.data.reading import FolderDataset, Sample
from slime_bench.data.transforms import fit_sample, resize_image
from slime_bench.errors import ConfigError, DataError, LabelError
from tests.fixtures.twins.toy_folder import CLASSES, COMPLETE, POOL, SIZE, write_split

Make = Callable[..., SegmentationDataModule]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    write_split(path / "support", "s", POOL, COMPLETE)
    write_split(path / "val", "v", 3, set())
    write_split(path / "test", "t", 5, {"t01"})
    return path


@pytest.fixture
def make(root: Path) -> Make:
    def build(shots: int = 3, seed: int = 0, **settings: Any) -> SegmentationDataModule:
        arguments: dict[str, Any] = {
            "name": "toy",
            "root": str(root),
            "classes": CLASSES,
            "image_size": SIZE,
            "batch_size": 2,
        }
        data = FolderData(DataConfig(**{**arguments, **settings}), shots=shots, seed=seed)
        data.prepare_data()
        module = data.datamodule()
        module.setup()
        return module

    return build


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


def test_sampler_visits_every_sample_once_per_pass() -> None:
    sampler = SupportSampler(10, seed=0, passes=3)
    sampler.set_epoch(2)
    keys = list(sampler)
    assert len(keys) == len(sampler) == 30
    for position, logical_epoch in enumerate((6, 7, 8)):
        part = keys[10 * position : 10 * (position + 1)]
        assert {epoch for _, epoch in part} == {logical_epoch}
        assert sorted(index for index, _ in part) == list(range(10))
    assert len({tuple(sampler.order(epoch)) for epoch in range(8)}) == 8
    assert sampler.order(0) != SupportSampler(10, seed=1).order(0)


def test_sequence_does_not_depend_on_passes() -> None:
    def keys(passes: int) -> list:
        sampler, found = SupportSampler(4, seed=5, passes=passes), []
        for epoch in range(12 // passes):
            sampler.set_epoch(epoch)
            found += list(SupportBatchSampler(sampler, 3))
        return found

    assert keys(1) == keys(3) == keys(12)


def test_batches_end_with_their_pass() -> None:
    batches = list(sampler := SupportBatchSampler(SupportSampler(5, seed=0, passes=2), 2))
    assert [len(batch) for batch in batches] == [2, 2, 1, 2, 2, 1]
    assert len(sampler) == 6
    assert all(len({epoch for _, epoch in batch}) == 1 for batch in batches)


# --- before training


def test_support_without_foreground_stops_before_training(tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / "support" / kind).mkdir(parents=True)
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "support" / "images" / "a.png")
    Image.new("L", (SIZE, SIZE)).save(tmp_path / "support" / "labels" / "a.png")
    data = FolderData(DataConfig(name="toy", root=str(tmp_path), classes=CLASSES), shots=1, seed=0)
    with pytest.raises(DataError, match="no foreground"):
        data.datamodule().setup("fit")


def test_missing_root(tmp_path: Path) -> None:
    config = DataConfig(name="toy", root=str(tmp_path / "no"), classes=CLASSES)
    with pytest.raises(DataError, match="`toy` is not there") as caught:
        FolderData(config, shots=1, seed=0).prepare_data()
    assert "SLIME_BENCH_DATA" in str(caught.value.remedy)


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


def test_query_images_are_those_of_the_files(make: Make, root: Path) -> None:
    batch = next(iter(make().test_dataloader()))
    assert torch.equal(batch["image"][1] * 255, as_tensor(FolderDataset(root / "test", CLASSES)[1]))
    assert np.array_equal(batch["label"][1], FolderDataset(root / "test", CLASSES)[1].label)


def test_validation_images(make: Make, root: Path) -> None:
    def ids(**settings: Any) -> list[str]:
        return [key for batch in make(**settings).val_dataloader() for key in batch["id"]]

    one = make(shots=1)
    assert one.data.validation == "support" and ids(shots=1) == one.support_ids
    batch = next(iter(one.val_dataloader()))
    pool = FolderDataset(root / "support", CLASSES)
    assert torch.equal(batch["image"][0] * 255, as_tensor(pool[pool.ids.index(batch["id"][0])]))
    assert make(shots=2).data.validation == "val" and ids(shots=2) == ["v00", "v01", "v02"]
    assert ids(shots=1, validation="val") == ["v00", "v01", "v02"]
    assert ids(shots=2, validation="support") == make(shots=2).support_ids
    assert ids(validation="none") == []
    assert make(shots=1, validation="paper").data.validation == "none" and ids(shots=1, validation="paper") == []
    assert ids(shots=2, validation="paper") == ["v00", "v01", "v02"]


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


def test_resume_in_the_middle_continues_the_sequence(make: Make) -> None:
    whole = epochs(make(shots=3, passes_per_epoch=2), 3)
    loader = make(shots=3, passes_per_epoch=2).train_dataloader()
    loader.batch_sampler.sampler.set_epoch(2)
    assert_same(whole[12:], list(loader))


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
    loader.dataset.dataset.size = "large"
    with pytest.raises(TypeError):
        next(iter(loader))


def test_data_sets_survive_spawning(make: Make) -> None:
    # macOS and Windows start workers by pickling the data set.
    module = make()
    for loader, key in ((module.train_dataloader(), (0, 0)), (module.test_dataloader(), 0)):
        copy = pickle.loads(pickle.dumps(loader.dataset))
        assert torch.equal(copy[key]["image"], loader.dataset[key]["image"])


# --- sizes


def test_resizing_squashes_image_and_label(make: Make) -> None:
    batch = next(iter(make(image_size=12).test_dataloader()))
    assert batch["image"].shape[-2:] == (12, 12) and batch["label"].shape[-2:] == (12, 12)
    label = np.arange(24).reshape(4, 6) % 3
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    for mode in ("antialias", "opencv"):
        sample = fit_sample(Sample("a", image, label), 8, mode)
        assert sample.image.shape == (3, 8, 8) and sample.image.dtype == torch.uint8
        assert np.array_equal(sample.label, label.repeat(2, 0)[:, [0, 0, 1, 2, 3, 3, 4, 5]])


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


def test_padding_reaches_every_loader(make: Make, root: Path, tmp_path: Path) -> None:
    """Pictures of 24 x 16: two thirds of the frame are the picture, the rest is black and ignored, in all batches."""
    for split in ("support", "val", "test"):
        for kind in ("images", "labels"):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
            for file in (root / split / kind).iterdir():
                Image.open(file).crop((0, 0, SIZE, 16)).save(tmp_path / "data" / split / kind / file.name)
    still = Augmentation(flip_p=0, blur_p=0, rotation_p=0, crop_ratio=[1.0, 1.0])
    module = make(shots=2, root=str(tmp_path / "data"), fit="pad", augment=still, num_workers=1)
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        for batch in loader:
            assert batch["image"].shape[-2:] == batch["label"].shape[-2:] == (SIZE, SIZE)
            assert (batch["label"][:, 16:] == 255).all() and (batch["label"][:, :16] != 255).all()
            assert (batch["image"][:, :, 16:] == 0).all() and batch["image"][:, :, :16].mean() > 0.3


# --- configuration and fingerprint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 0), ("batch_size", 0), ("train_batch_size", 0), ("num_workers", -1), ("passes_per_epoch", 0),
        ("min_pixels", 0), ("validation", "test"), ("resize", "cubic"), ("fit", "stretch"), ("classes", ["body"]),
        ("require_all_classes", "all"), ("val_size", 0), ("splits", {"train": "a"}), ("splits", {"test": "{shots}/a"}),
    ],
)  # fmt: skip
def test_bad_settings(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        read(DataConfig, {"name": "toy", "root": "data", "classes": CLASSES, name: value}, "data")
    assert caught.value.path == f"data.{name}"


def test_fingerprint_follows_the_data(broken: Path) -> None:
    def fingerprint() -> str:
        config = DataConfig(name="toy", root=str(broken), classes=CLASSES)
        return FolderData(config, shots=1, seed=0).fingerprint()

    before = fingerprint()
    assert len(before) == 64 and fingerprint() == before
    Image.new("L", (SIZE, SIZE), 1).save(broken / "test" / "labels" / "t00.png")
    assert fingerprint() != before
    manifest = broken / "manifest.json"
    manifest.write_text("{}")  # vouches for nothing
    empty = fingerprint()
    Image.new("L", (SIZE, SIZE), 2).save(broken / "test" / "labels" / "t00.png")
    assert fingerprint() != empty
    files = {path.relative_to(broken).as_posix(): "0" * 64 for path in broken.rglob("*.*") if path.parent != broken}
    head = {"version": 1, "subject": "car", "classes": list(CLASSES)}
    manifest.write_text(json.dumps({**head, "files": files}))
    assert fingerprint() == hashlib.sha256(manifest.read_bytes()).hexdigest()  # it vouches for every file
    shutil.rmtree(broken / "test")  # ... but not for what has come in their place
    for name in ("0", "1"):
        (broken / "test").mkdir(exist_ok=True)
        Image.new("RGB", (SIZE, SIZE)).save(broken / "test" / f"{name}.png")
        np.save(broken / "test" / f"{name}.npy", np.ones((SIZE, SIZE), np.uint8))
    replaced = fingerprint()
    np.save(broken / "test" / "1.npy", np.zeros((SIZE, SIZE), np.uint8))
    assert len({fingerprint(), replaced, hashlib.sha256(manifest.read_bytes()).hexdigest()}) == 3


def test_a_bad_test_mask_comes_to_light_before_training(root: Path, tmp_path: Path) -> None:
    """Not after the whole fit, when the test loader reaches it."""
    data = shutil.copytree(root, tmp_path / "data")
    path = data / "test" / "labels" / "t03.png"
    Image.new("L", (SIZE, SIZE), 9).save(path)
    config = DataConfig("toy", str(data), CLASSES, image_size=SIZE)
    with pytest.raises(LabelError) as caught:
        FolderData(config, shots=1, seed=0).prepare_data()
    assert caught.value.path == path


def test_splits_that_the_trial_does_not_read_may_be_absent_or_bad(root: Path, tmp_path: Path) -> None:
    data = shutil.copytree(root, tmp_path / "data")
    (data / "val" / "labels" / "v00.png").write_bytes(b"")

    def prepare(shots: int, **settings: Any) -> None:
        config = DataConfig("toy", str(data), CLASSES, image_size=SIZE, **settings)
        data_set = FolderData(config, shots=shots, seed=0)
        data_set.prepare_data()
        data_set.datamodule().setup()
        assert len(data_set.fingerprint()) == 64

    prepare(1)
    with pytest.raises(DataError, match="cannot read the label map"):
        prepare(2)
    (data / "val" / "labels" / "v00.png").unlink()  # an orphan
    prepare(1)
    shutil.rmtree(data / "val")
    prepare(1)
    with pytest.raises(DataError, match="no val split") as caught:
        prepare(2)
    assert caught.value.path == data / "val" and "data.validation=support" in str(caught.value.remedy)
    assert caught.value.found == "support/, test/"
    prepare(2, validation="support")

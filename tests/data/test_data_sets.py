"""The data sets of real pictures: where they lie, what is said when they are missing, the authors' zip, any folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.pascal_part.regan import COLOURS
from slime_bench.config.compose import plan
from slime_bench.data.config import DataConfig
from slime_bench.data.mini_world import render as mini_world
from slime_bench.errors import ConfigError, DataError
from slime_bench.results.identity import signature

FOLDERS = {
    "pascal_part_car": "pascal_part/car",
    "pascal_part_horse": "pascal_part/horse",
    "celebamask_hq": "celebamask_hq",
    "pascal_part_car_regan": "pascal_part/car",
    "slime_release_car": "slime_release/car",
    "slime_release_horse": "slime_release/horse",
    "slime_release_face": "slime_release/celeba",
}
REGAN = {"wheel": (255, 255, 0), "window": (28, 230, 255), "body": (255, 52, 255), "light": (255, 74, 70)}
REGAN |= {"plate": (0, 137, 65)}


def data_of(*overrides: str, shots: int = 1, seed: int = 0) -> Any:
    cfg = plan([*overrides, f"shots={shots}", f"seed={seed}"]).trials[0]
    return cfg.build("data", shots=shots, seed=seed)


def save(folder: Path, subject: str, split: str, count: int, *, layout: str = "folders") -> None:
    """`count` mini-world pictures of a split in one of the layouts."""
    for index in range(count):
        picture, name = mini_world.render(subject, split, index), f"{split}{index}"
        if layout == "release":
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.image).save(folder / f"{name}.png")
            np.save(folder / f"{name}.npy", picture.label.astype(np.float64))
            continue
        for kind, array in (("images", picture.image), ("labels", picture.label)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / kind / f"{name}.png")


# --- the shipped files


@pytest.mark.parametrize("name", FOLDERS)
def test_the_shipped_settings_and_where_the_data_are_looked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of(f"data={name}", f"data_root={tmp_path}", "backbone=sd21_base")
    config, subject = data.config, data.config.subject
    assert config.name == name and data.root == tmp_path / FOLDERS[name]
    assert config.classes == list(mini_world.CLASSES[subject])
    assert config.image_size == 512 and config.resize == "opencv" and config.fit == "squash"
    assert config.augment.rotation_degrees == {"car": 30, "horse": 30, "face": 10}[subject]
    assert config.augment.crop_ratio == [{"car": 0.6, "horse": 0.8, "face": 0.6}[subject], 1.0]
    assert config.augment.blur_kernels == [1, 3, 3, 5, 5] and config.augment.crop_keep == "every_class"
    assert config.require_all_classes == "each" and config.validation == "auto"
    assert config.val_size == (None if name.startswith("slime") else 1)
    assert config.colours == ({key: list(rgb) for key, rgb in REGAN.items()} if name.endswith("regan") else {})
    with pytest.raises(DataError, match=f"`{name}` is not there") as caught:
        data.prepare_data()
    remedy = str(caught.value.remedy)
    assert caught.value.path == data.root and "data_root" in remedy and "SLIME_BENCH_DATA" in remedy
    command = {"car": "make prepare-car VOC=", "horse": "make prepare-horse VOC=", "face": "make prepare-face CELEBA="}
    unpack = f"python -m data_prep.archive <zip> --out {tmp_path / 'slime_release'}"
    assert (unpack if name.startswith("slime") else command[data.config.subject]) in remedy
    monkeypatch.chdir(tmp_path)  # where there is no Makefile
    remedy = data.how_to_get()
    assert "make " not in remedy and "python -m data_prep." in remedy and f"--out {tmp_path}" in remedy


# --- prepared data


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pascal_part/car with a manifest, as `data_prep` writes it, but for the hashes."""
    root = tmp_path_factory.mktemp("prepared") / "pascal_part" / "car"
    for split, count in {"support": 4, "val": 2, "test": 2}.items():
        save(root / split, "car", split, count)
    manifest = {"version": 1, "subject": "car", "classes": list(mini_world.CLASSES["car"]), "files": hashes(root)}
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root.parents[1]


def hashes(root: Path) -> dict[str, str]:
    from slime_bench.data.manifest import pixels_sha256

    files = [file for file in sorted(root.rglob("*.png"))]
    return {file.relative_to(root).as_posix(): pixels_sha256(np.array(Image.open(file))) for file in files}


def test_the_folder_of_another_subject_or_of_other_classes(prepared: Path, tmp_path: Path) -> None:
    root = prepared / "pascal_part" / "car"
    with pytest.raises(DataError, match="another subject") as caught:
        data_of("data=pascal_part_horse", f"data.root={root}").prepare_data()
    assert caught.value.found == "car" and "make prepare-horse" in str(caught.value.remedy)
    with pytest.raises(ConfigError, match=r"did you mean `wheel`"):
        data_of(
            "data=pascal_part_car", f"data.root={root}", "data.classes=[background,body,light,plate,wheels,window]"
        ).prepare_data()
    # Laid out by hand, without a manifest, it is taken as it is.
    shutil.copytree(root, tmp_path / "car", ignore=shutil.ignore_patterns("manifest.json", ".verified.json"))
    data_of("data=pascal_part_car", f"data.root={tmp_path / 'car'}").prepare_data()


def test_regans_test_set(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "data")
    folder = tmp_path / "data" / "pascal_part" / "Car_TestSet"
    with pytest.raises(DataError, match="no test split"):
        data_of("data=pascal_part_car_regan", f"data_root={tmp_path / 'data'}").prepare_data()
    assert COLOURS == REGAN  # those of the builder
    classes = mini_world.CLASSES["car"]
    table = np.array([REGAN.get(name, (0, 0, 0)) for name in classes], np.uint8)
    labels = []
    for index in range(2):
        picture = mini_world.render("car", "test", 50 + index)
        labels.append(torch.from_numpy(picture.label).long())
        arrays = {"image_bg": picture.image, "image_no_bg": picture.image * 0, "gt_mask": table[picture.label]}
        for kind, array in arrays.items():
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / kind / f"{index}.png")

    def regan(*overrides: str) -> Any:
        places = ("data=pascal_part_car_regan", f"data_root={tmp_path / 'data'}", "data.image_size=128")
        data = data_of(*places, *overrides)
        data.prepare_data()
        data.datamodule().setup()
        return data

    data = regan()
    for batch, label in zip(data.datamodule().test_dataloader(), labels, strict=True):
        assert torch.equal(batch["label"][0], label) and batch["image"].mean() > 0.1
    assert data.support_ids[0].startswith("support")
    # The same test set elsewhere, and without background; the hash of the data follows the contents alone.
    plain = data_of("data=pascal_part_car", f"data_root={tmp_path / 'data'}").fingerprint()
    moved = shutil.copytree(folder, tmp_path / "regan")
    assert regan(f"data.splits.test={moved}").fingerprint() == data.fingerprint() != plain
    black = regan("data.splits.test=../Car_TestSet/image_no_bg")
    assert (
        next(iter(black.datamodule().test_dataloader()))["image"].max() == 0
        and black.fingerprint() != data.fingerprint()
    )


# --- the authors' zip


@pytest.fixture
def release(tmp_path: Path) -> Path:
    root = tmp_path / "slime_release" / "horse"
    for name, split, count in (("train_1", "support", 1), ("train_10", "support", 10), ("val", "val", 2)):
        save(root / name, "horse", split, count, layout="release")
    save(root / "test", "horse", "test", 3, layout="release")
    return tmp_path


def test_the_authors_zip_as_it_is(release: Path) -> None:
    def horse(shots: int, seed: int = 0) -> Any:
        size = ("data.image_size=128", "data.batch_size=4")
        data = data_of("data=slime_release_horse", f"data_root={release}", *size, shots=shots, seed=seed)
        data.prepare_data()
        data.datamodule().setup()
        return data

    one, ten = horse(1), horse(10, seed=3)
    assert one.support_ids == ["support0"] and ten.support_ids == [f"support{index}" for index in range(10)]
    assert [batch["id"] for batch in one.datamodule().val_dataloader()] == [["support0"]]
    assert [batch["id"] for batch in ten.datamodule().val_dataloader()] == [["val0", "val1"]]
    (test,) = ten.datamodule().test_dataloader()
    assert torch.equal(test["label"][2], torch.from_numpy(mini_world.render("horse", "test", 2).label).long())
    before = one.fingerprint()
    assert before == ten.fingerprint()  # one table, one data set
    np.save(release / "slime_release" / "horse" / "train_10" / "support4.npy", np.zeros((128, 128)))
    assert one.fingerprint() == ten.fingerprint() != before


def test_a_number_of_shots_that_the_zip_does_not_have(release: Path) -> None:
    with pytest.raises(DataError, match="no support split") as caught:
        data_of("data=slime_release_horse", f"data_root={release}", shots=5).prepare_data()
    assert caught.value.path == release / "slime_release" / "horse" / "train_5"
    assert caught.value.found == "test/, train_1/, train_10/, val/"


# --- a user's own folder


def test_any_folder(tmp_path: Path) -> None:
    for name, split in (("learn", "support"), ("look", "test")):
        save(tmp_path / "my data" / name, "car", split, 2)
    names = tmp_path / "parts.yaml"
    names.write_text("hull: 1\nbackground: 0\nlamp: 2\nnumber: 3\ntyre: 4\nglass: 5\n")
    places = ("data.splits.support=learn", "data.splits.test=look", "data.validation=support", "data.image_size=128")
    named = (f"data.root='{tmp_path / 'my data'}'", f"data.classes_file={names}", "data.name=cars")
    data = data_of("data=folder", *named, *places, shots=2)
    data.prepare_data()
    batches = data.datamodule()
    batches.setup()
    assert data.classes == ("background", "hull", "lamp", "number", "tyre", "glass")
    # What the file says is in the configuration; its place, which is no part of the trial, is not.
    assert data.config.classes_file is None and str(names) not in str(data.config)
    assert sorted(data.support_ids) == ["support0", "support1"] and len(batches.test_dataloader()) == 2


def test_a_folder_needs_its_place_and_its_classes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`data\.root` is missing"):
        plan(["data=folder", "data.classes=[background,leaf]"])
    with pytest.raises(ConfigError, match="bad data setting `classes`") as caught:
        plan(["data=folder", f"data.root={tmp_path}"])
    assert "data.classes_file" in str(caught.value.expected)
    with pytest.raises(ConfigError, match="bad data setting `classes`"):
        plan(["data=pascal_part_car", "data.classes_file=parts.yaml"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("just words", "cannot be read"),
        ("[background, leaf", "cannot be read"),
        ("background: 0\nleaf: 2\n", "not 0, 1, 2"),
        ("background: 0\nleaf: red\n", "cannot be read"),
        ("[leaf, background]", "class list cannot be"),
        ("leaf: 0\nbackground: 1\n", "class list cannot be"),
        (None, "cannot be read"),
    ],
)
def test_bad_class_files(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "a.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        DataConfig("toy", "data", classes_file=str(path))
    assert caught.value.path in (path, str(path)) and caught.value.remedy


def test_a_pool_that_goes_by_the_shots_needs_some(release: Path) -> None:
    """For methods that learn nothing the pool is still looked at, without its annotation."""
    with pytest.raises(ConfigError, match="goes by the number of shots") as caught:
        data_of("data=slime_release_horse", f"data.root='{release}'", shots=0)
    assert "data.splits.support=train_10" in str(caught.value.remedy)


@pytest.mark.parametrize("name", ["mini_car", "pascal_part_car", "voc2012", "coco_object"])
def test_a_finished_trial_is_recognised_without_torch(name: str, tmp_path: Path) -> None:
    """Class, settings, checks and content hash of a data set; the choice of images needs torch's generators."""
    code = f"""
import sys
from slime_bench.config.schema import read_part
from slime_bench.data.verify import verify_splits
node = {plan([f"data={name}", f"data_root={tmp_path}"]).trials[0].plain["data"]!r}
part, config = read_part(node, "data")
data = part(config=config, shots=1, seed=0)
try:
    data.prepare_data()
    verify_splits({{name: data.split(name) for name in data.needed}}, data.root)
except Exception as error:
    assert "is not there" in str(error), error
print(data.fingerprint(), *sorted({{"torch", "lightning", "scipy", "pandas"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(done.stdout.strip()) == 64


# --- the first test images alone


def test_a_limit_takes_the_first_test_images_by_id(folder_set: Callable[..., Any]) -> None:
    whole, limited = folder_set(), folder_set("data.test_limit=2")
    assert limited.test.ids == whole.test.ids[:2] and len(whole.test.ids) == 3
    assert [name for batch in limited.datamodule().test_dataloader() for name in batch["id"]] == limited.test.ids
    assert limited.fingerprint() == whole.fingerprint() and limited.support_ids == whole.support_ids
    assert (whole.prepared(), limited.prepared()) == ({}, {"test images": "the first 2"})
    assert folder_set("data.test_limit=3").test.ids == whole.test.ids


def test_a_limit_that_says_what_is_not_so_is_refused(folder_set: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="fewer test images") as caught:
        folder_set("data.test_limit=4").datamodule().setup()
    assert caught.value.expected == "1 to 3" and "null" in str(caught.value.remedy)
    for bad in ("0", "-1", "few", "1.5"):
        with pytest.raises(ConfigError, match="test_limit"):
            folder_set(f"data.test_limit={bad}")


def test_a_limit_is_part_of_the_signature() -> None:
    one, other = (plan(["data=mini_car", f"data.test_limit={limit}"]).trials[0] for limit in ("10", "null"))
    prints = {"data": "a" * 64, "backbone": "b" * 64}
    assert signature(one, prints) != signature(other, prints)


@pytest.fixture
def folder_set(tmp_path: Path) -> Callable[..., Any]:
    """folder_set(overrides) -> a data set of 2 support, 1 validation and 3 test pictures."""
    for split, count in (("support", 2), ("val", 1), ("test", 3)):
        save(tmp_path / split, "car", split, count)
    classes = "data.classes=[background,body,light,plate,wheel,window]"
    return lambda *overrides: data_of("data=folder", f"data.root={tmp_path}", classes, *overrides)

"""`slime-bench verify`: what it prints and how it ends, on data sets as they are and spoilt."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slime_bench import cli
from slime_bench.data.manifest import MANIFEST
from slime_bench.data.mini_world.render import write_dataset
from slime_bench.data.verify import CACHE
from slime_bench.data.verify_command import main
from slime_bench.errors import ConfigError, DataError

CLASSES = "data.classes=[background,body,light,plate,wheel,window]"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rendered") / "car"
    write_dataset(root, "car")
    return root


@pytest.fixture
def car(rendered: Path, tmp_path: Path) -> Path:
    """The mini car, to be spoilt."""
    return Path(shutil.copytree(rendered, tmp_path / "data" / "mini" / "car"))


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    return ["data=mini_car", f"data_root={tmp_path / 'data'}"]


def test_a_good_data_set(car: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(overrides) == 0
    first = capsys.readouterr().out
    assert first.startswith(f"mini_car  {car}\n") and "good: 140 images in" in first and "remembered" not in first
    labels = np.stack([np.asarray(Image.open(file)) for file in sorted((car / "test" / "labels").iterdir())])
    row = next(line for line in first.splitlines() if "plate" in line)
    assert f"{(labels == 3).any((1, 2)).sum()} ({(labels == 3).mean():6.2%})" in row
    assert (car / CACHE).is_file()
    assert main(overrides) == 0
    again = capsys.readouterr().out
    assert "remembered: no file has changed since" in again
    assert again.splitlines()[:-1] == first.splitlines()[:-1]
    assert main([*overrides, "--fresh"]) == 0
    assert "remembered" not in capsys.readouterr().out


def test_everything_that_is_wrong_is_listed(
    car: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (car / "test" / "images" / "car-test-0007.png").write_bytes(b"")
    Image.new("L", (128, 128), 9).save(car / "val" / "labels" / "car-val-0001.png")
    Image.new("L", (128, 128), 1).save(car / "val" / "labels" / "car-val-0002.png")
    for kind in ("images", "labels"):
        shutil.copy(car / "support" / kind / "car-support-0003.png", car / "test" / kind / "leak.png")
        shutil.copy(car / "val" / kind / "car-val-0004.png", car / "val" / kind / "twin.png")
    assert main(overrides) == 2
    printed = capsys.readouterr().out
    assert "cannot be used: 2" in printed
    assert f"{car}/test/images/car-test-0007.png: cannot read the image (0 bytes" in printed
    assert f"{car}/val/labels/car-val-0001.png: label outside the classes (9 (16384 pixels))" in printed
    assert "differs from the manifest: 2" in printed and "  changed: val/labels/car-val-0002.png\n" in printed
    assert "not listed: test/images/leak.png, test/labels/leak.png, val/images/twin.png" in printed
    assert "in the test split and in another: 1\n  support/car-support-0003 = test/leak\n" in printed
    assert "appears twice (a warning): 1\n  val/car-val-0004 = val/twin\n" in printed
    assert printed.splitlines()[-1].startswith("NOT GOOD: 140 images in") and not (car / CACHE).exists()


def test_a_leak_alone_is_an_error(car: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (car / MANIFEST).unlink()
    for kind in ("images", "labels"):
        shutil.copy(car / "support" / kind / "car-support-0003.png", car / "test" / kind / "leak.png")
    for _ in range(2):  # also when the files are remembered as readable
        assert main(overrides) == 2
        assert "support/car-support-0003 = test/leak" in capsys.readouterr().out


def test_a_split_that_does_not_pair_up(car: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The other splits are looked at all the same."""
    (car / "test" / "labels" / "car-test-0007.png").unlink()
    (car / "support" / "images" / "car-support-0001.png").write_bytes(b"")
    assert main([*overrides, "shots=10"]) == 2
    printed = capsys.readouterr().out
    assert "cannot be used: 2" in printed and "1 image(s) without a label map" in printed
    assert "car-test-0007" in printed and "car-support-0001.png: cannot read the image" in printed
    assert "NOT GOOD: 39 images" in printed


def test_many_faults_are_counted(car: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for file in (car / "test" / "images").iterdir():
        file.write_bytes(b"")
    assert main(overrides) == 2
    printed = capsys.readouterr().out
    assert "cannot be used: 100" in printed and printed.count("cannot read the image") == 20
    assert "  and 80 more\n" in printed


def test_sizes_and_ignored_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A user's own folder: pictures of many sizes, names with spaces, no manifest."""
    rng = np.random.default_rng(0)
    for split in ("support", "test"):
        for index, (width, height) in enumerate([(30, 40), (50, 20)]):
            for kind in ("images", "labels"):
                (tmp_path / "my data" / split / kind).mkdir(parents=True, exist_ok=True)
            image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            label = np.full((height, width), 255, np.uint8)
            label[0] = 1
            Image.fromarray(image).save(tmp_path / "my data" / split / "images" / f"Blätter {index}.jpg")
            Image.fromarray(label).save(tmp_path / "my data" / split / "labels" / f"Blätter {index}.png")
    own = ["data=folder", f"data.root='{tmp_path / 'my data'}'", "data.classes=[background,leaf]", "data.name=plants"]
    assert main(own) == 0
    printed = capsys.readouterr().out
    assert "2 from 30x20 to 50x40" in printed and "2,120" in printed
    assert "note: no image of test shows background" in printed


def test_bad_command_lines(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError):
        main([*overrides, "data.sizze=3"])
    with pytest.raises(ConfigError):
        main([*overrides, "seed=0,1"])
    with pytest.raises(SystemExit) as caught:
        main([*overrides, "--frsh"])
    assert caught.value.code == 2 and "--frsh" in capsys.readouterr().err


def test_from_the_command_line(
    tmp_path: Path, car: Path, overrides: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """As the program ends: the exit code, and a message without a traceback."""
    assert cli.main(["verify", *overrides]) == 0
    (car / "test" / "images" / "car-test-0007.png").write_bytes(b"")
    assert cli.main(["verify", *overrides]) == 2
    assert cli.main(["verify", "data=celebamask_hq", f"data_root={tmp_path}"]) == 2
    printed = capfd.readouterr().err
    assert "error: the data set `celebamask_hq` is not there" in printed and "Traceback" not in printed


def test_a_split_that_was_replaced_by_another_layout(
    car: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The manifest speaks of test/images and test/labels; what lies in test/ now is not what it vouches for."""
    assert main(overrides) == 0
    shutil.rmtree(car / "test")
    (car / "test").mkdir()
    Image.new("RGB", (8, 8)).save(car / "test" / "0.png")
    np.save(car / "test" / "0.npy", np.eye(8, dtype=np.uint8))
    capsys.readouterr()
    assert main(overrides) == 2
    assert "missing: test/images/" in capsys.readouterr().out


def test_classes_or_a_subject_that_a_trial_would_refuse(car: Path) -> None:
    """A prepared data set with its classes in another order looks good file by file."""
    places = ["data=pascal_part_car", f"data.root={car}"]
    assert main([*places, CLASSES]) == 0
    with pytest.raises(ConfigError, match="class list differs"):
        main([*places, "data.classes=[background,body,light,plate,window,wheel]"])
    with pytest.raises(DataError, match="another subject"):
        main(["data=pascal_part_horse", f"data.root={car}", CLASSES])
    with pytest.raises(ConfigError, match="class list differs"):
        main(["data=mini_car", f"data.root={car}", "data.classes=[background,body,light,plate,window,wheel]"])

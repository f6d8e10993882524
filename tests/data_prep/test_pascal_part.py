"""The command: from the raw layout to a data set, and what a user reads when something is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.pascal_part.__main__ import main
from data_prep.pascal_part.rules import RULES
from data_prep.split_lists import VAL_SIZE, committed
from slime_bench.data.manifest import read_manifest
from slime_bench.data.mini_world.subjects import CLASSES
from slime_bench.data.reading import FolderDataset
from slime_bench.data.verify import verify_splits
from slime_bench.errors import DataError
from tests.fixtures.twins.pascal import (
    KEPT,
    Twin,
    expected,
    write_car_test_twin,
    write_mat,
    write_pascal_twin,
)

PLAIN, PLAIN_VAL = 12, 2


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    return write_pascal_twin(tmp_path_factory.mktemp("pascal"), "horse", train=PLAIN, val=PLAIN_VAL)


@pytest.fixture
def small(tmp_path: Path) -> Twin:
    """Three train pictures and one of val, to be spoilt."""
    return write_pascal_twin(tmp_path / "with a space, größe", "car", train=3, val=1, with_cases=False)


def command(twin: Twin, subject: str, out: Path, *more: str) -> list[str]:
    sources = ["--voc", str(twin.voc), "--parts", str(twin.parts)]
    return [*sources, "--subject", subject, "--out", str(out), "--workers", "1", *more]


@pytest.mark.parametrize("rule", list(RULES))
def test_builds_a_data_set(twin: Twin, rule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "horse"
    assert main(command(twin, "horse", out, "--rule", rule)) == 0
    manifest = read_manifest(out)
    splits = {name: FolderDataset(out / name, CLASSES["horse"]) for name in ("support", "val", "test")}
    assert verify_splits(splits, out).usable
    assert (manifest["name"], manifest["subject"]) == ("pascal_part_horse", "horse")
    assert manifest["classes"] == CLASSES["horse"]
    assert manifest["settings"]["rule"] == rule and manifest["settings"]["side"] == 32
    assert manifest["sources"] == {"voc": "VOC2010", "parts": "Annotations_Part"}

    train, test = expected(rule, PLAIN), expected(rule, PLAIN_VAL)
    sets = {split: FolderDataset(out / split, CLASSES["horse"]) for split in ("support", "val", "test")}
    kept = {split: len(found) for split, found in sets.items()}
    assert kept == {"support": train[KEPT] - VAL_SIZE, "val": VAL_SIZE, "test": test[KEPT]}
    dropped = {reason: count + test[reason] for reason, count in train.items() if reason != KEPT}
    assert manifest["dropped"] == dropped

    for split, found in sets.items():
        years = {"2009"} if split == "test" else {"2008"}
        assert {key[:4] for key in found.ids} == years
        for index, key in enumerate(found.ids):
            facts = manifest["samples"][f"{split}/{key}"]
            sample = found[index]
            assert [*sample.label.shape] == facts["size"] and facts["rule"] == rule
            assert np.bincount(sample.label.flatten(), minlength=5).tolist() == facts["pixels"]
            assert key == f"{facts['source']}_{facts['object']}" and facts["frame"] == [180, 240]
            left, top, right, bottom = facts["box"]
            with Image.open(twin.voc / "JPEGImages" / f"{facts['source']}.jpg") as file:
                source = np.array(file)
            content = sample.image
            if rule == "lagm":
                side = max(right - left, bottom - top)
                assert content.shape == (side, side, 3)
                above, before = (side - (bottom - top)) // 2, (side - (right - left)) // 2
                assert content.sum() == source[top:bottom, left:right].astype(int).sum()
                content = content[above : above + bottom - top, before : before + right - left]
            assert np.array_equal(content, source[top:bottom, left:right])
    difficult = [facts for facts in manifest["samples"].values() if facts["flag"] == 0]
    assert len(difficult) == (0 if rule == "lagm" else 2)
    assert all(facts["difficult"] for facts in difficult) if rule == "paper" else True

    text = capsys.readouterr().out
    for reason in dropped:
        assert reason in text


def test_recovered_lists_follow_the_train_list(twin: Twin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "horse"
    main(command(twin, "horse", out, "--rule", "slime_lab"))
    text = capsys.readouterr().out
    train = expected("slime_lab", PLAIN)[KEPT]
    assert train == 22  # so that index 18 of the list of ten is there and its 20, 25, 27 are not
    assert "slime_lab-val.txt is left out" in text and "slime_lab-10.txt is left out" in text
    assert "slime_lab-1.txt is left out" not in text
    assert not (out / "splits" / "slime_lab-10.txt").exists()
    # The crops of the train list in its order, objects in the order of the .mat, whichever split they are in now.
    listed = [
        line.split()[0] for line in (twin.voc / "ImageSets" / "Main" / "horse_train.txt").read_text().splitlines()
    ]
    samples = [facts for name, facts in read_manifest(out)["samples"].items() if not name.startswith("test/")]
    order = sorted(samples, key=lambda facts: (listed.index(facts["source"]), facts["object"]))
    (index,) = committed("pascal_part_horse", "slime_lab-1")
    (line,) = [each for each in (out / "splits" / "slime_lab-1.txt").read_text().splitlines() if each[0] != "#"]
    assert line == f"{order[index]['source']}_{order[index]['object']}"
    main(command(twin, "horse", tmp_path / "paper", "--rule", "paper"))
    assert not (tmp_path / "paper" / "splits").exists()


def test_car_test_set_takes_the_place_of_car_val(
    small: Twin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_car_test_twin(tmp_path, count=3)
    # Names of the stem in the data set's own pictures do no harm, and car_val is not asked for.
    (small.voc / "ImageSets" / "Main" / "car_val.txt").unlink()
    for number, more in enumerate(([], ["--no-background"])):
        out = tmp_path / f"car{number}"
        main(command(small, "car", out, "--car-test", str(folder), *more))
        manifest = read_manifest(out)
        assert manifest["sources"]["car_test"] == "Car_TestSet"
        found = FolderDataset(out / "test", CLASSES["car"])
        assert found.ids == ["regan_000", "regan_001", "regan_002"]
        assert manifest["samples"]["test/regan_001"]["source"] == f"{('image_bg', 'image_no_bg')[number]}/001.png"
        assert manifest["samples"]["test/regan_001"]["unknown_pixels"] == 0
        background = found[0].image[found[0].label == 0]
        assert bool((background == 255).all()) == bool(more)
    assert "not public" not in capsys.readouterr().out
    for wrong in (("horse", "--car-test", str(folder)), ("car", "--no-background")):
        with pytest.raises(SystemExit):
            main(command(small, wrong[0], tmp_path / "x", *wrong[1:]))


def test_other_painting_is_another_data_set(twin: Twin, tmp_path: Path) -> None:
    out = tmp_path / "horse"
    main(command(twin, "horse", out, "--rule", "slime_lab"))
    with pytest.raises(DataError):
        main(command(twin, "horse", out, "--rule", "slime_lab", "--paint", "own"))
    before = read_manifest(out)["files"]
    main(command(twin, "horse", out, "--rule", "slime_lab", "--paint", "own", "--force"))
    manifest = read_manifest(out)
    assert manifest["settings"]["paint"] == "own"
    changed = {name for name, digest in manifest["files"].items() if before.get(name, digest) != digest}
    crossing = [key for key in twin.ids["crossing its like"]]
    assert changed and {Path(name).stem[:11] for name in changed} == set(crossing)


def spoil(twin: Twin, what: str) -> Path:
    """Make the second train picture faulty; returns the file."""
    key = twin.ids["plain"][1]
    files = {
        "mat": twin.parts / f"{key}.mat",
        "xml": twin.voc / "Annotations" / f"{key}.xml",
        "jpg": twin.voc / "JPEGImages" / f"{key}.jpg",
    }
    kind, how = what.split(" ", 1)
    path = files[kind]
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "of another size":
        with Image.open(path) as file:
            file.resize((241, 180)).save(path)
    elif how == "with an unknown part":
        mask = np.ones((180, 240), dtype=bool)
        write_mat(path, key, [("car", mask, [("spoiler_1", mask)])])
    return path


FAULTS = {
    "mat cut": "cannot read the annotation (ValueError: a file that is cut or damaged",
    "mat with an unknown part": "unknown part `spoiler_1` (object 1 (car), part spoiler_1)",
    "xml missing": "cannot read the box annotation ([Errno 2] No such file",
    "xml cut": "cannot read the box annotation",
    "jpg missing": "cannot read the image (No such file",
    "jpg cut": "cannot read the image",
    "jpg of another size": "image and masks differ in size (241x180)",
}


@pytest.mark.parametrize("what", list(FAULTS))
def test_faulty_files_are_named_and_the_rest_is_kept(small: Twin, tmp_path: Path, what: str) -> None:
    path, out = spoil(small, what), tmp_path / "car"
    with pytest.raises(DataError, match="1 of 4 source pictures are faulty") as caught:
        main(command(small, "car", out))
    assert f"{path}: {FAULTS[what]}" in str(caught.value.found)
    assert not out.exists()
    assert main(command(small, "car", out, "--faulty", "skip")) == 0
    manifest = read_manifest(out)
    ((reason, count),) = manifest["dropped"].items()
    assert reason.startswith("unreadable") and count == 1 and len(manifest["samples"]) == 3
    assert manifest["faulty"][0]["source"] == f"support/{small.ids['plain'][1]}"
    assert str(small.root.parent) not in (out / "manifest.json").read_text()  # names nothing of the user's home


def test_slime_lab_needs_no_boxes(small: Twin, tmp_path: Path) -> None:
    for path in (small.voc / "Annotations").iterdir():
        path.unlink()
    main(command(small, "car", tmp_path / "car", "--rule", "slime_lab"))
    assert len(read_manifest(tmp_path / "car")["samples"]) == 4


def test_comparison_names_faulty_files(small: Twin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = spoil(small, "mat cut")
    arguments = [*command(small, "car", tmp_path / "car")[:6], "--compare-rules"]
    with pytest.raises(DataError, match="1 of 4 source pictures are faulty") as caught:
        main(arguments)
    assert f"{path}: cannot read the annotation" in str(caught.value.found) and "unreadable" in capsys.readouterr().out
    assert main([*arguments, "--faulty", "skip"]) == 0
    for mat in small.parts.iterdir():
        mat.rename(mat.with_stem(f"another {mat.stem}"))
    with pytest.raises(DataError, match="no picture of the lists has a part annotation"):
        main(arguments)
    assert not (tmp_path / "car").exists()


def test_what_is_restored_counts_when_the_command_is_repeated(small: Twin, tmp_path: Path) -> None:
    """Also a file whose absence is no fault: half unpacked annotations must not stay "no annotation"."""
    first, second, _, _ = small.ids["plain"]
    mat, image = small.parts / f"{first}.mat", small.voc / "JPEGImages" / f"{second}.jpg"
    kept = {path: path.read_bytes() for path in (mat, image)}
    mat.unlink()
    image.write_bytes(b"")
    with pytest.raises(DataError, match="1 of 4"):
        main(command(small, "car", tmp_path / "car"))
    for path, content in kept.items():
        path.write_bytes(content)
    main(command(small, "car", tmp_path / "car"))
    manifest = read_manifest(tmp_path / "car")
    assert not manifest["dropped"] and len(manifest["samples"]) == 4

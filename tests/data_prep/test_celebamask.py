"""CelebAMask-HQ: the painting orders, the folder's rules, bad files, and the real faces."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.celebamask_hq.__main__ import main
from data_prep.celebamask_hq.files import (
    MAPPING,
    MASKS,
    OFFICIAL_FACES,
    Face,
    differences_from_official,
    find_root,
    list_faces,
    read_mapping,
    split_of,
)
from data_prep.celebamask_hq.merge import ATTRIBUTES, CLASSES, IGNORED, PAINTING, merge
from data_prep.celebamask_hq.read import read_mask
from data_prep.commands import run
from slime_bench.errors import DataError
from tests.fixtures.twins.celebamask import FOLDER, celeba_index, face_masks, write_celebamask_twin

FACES, SIZE = 20, 64
ORDERS = ("slime", "regan", "celeba_authors")

# Said once more, in the words of protocol.md 2.2, and independently of the code under test.
CLASS_OF = {
    "eye": ("l_eye", "r_eye"), "brow": ("l_brow", "r_brow"), "ear": ("l_ear", "r_ear"),
    "mouth": ("mouth", "u_lip", "l_lip"), "skin": ("skin",), "nose": ("nose",), "hair": ("hair",), "neck": ("neck",),
    "cloth": ("cloth",),
}  # fmt: skip
SLIME_LATER_WINS = ["skin", "eye", "mouth", "nose", "brow", "ear", "neck", "cloth", "hair"]
REGAN_FIRST_WINS = ["hair", "brow", "eye", "mouth", "nose", "skin", "ear", "neck", "cloth"]
ATTRIBUTES_LATER_WINS = [
    "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "mouth", "u_lip", "l_lip", "hair",
    "hat", "ear_r", "neck_l", "neck", "cloth",
]  # fmt: skip


def oracle(present: set[str], order: str) -> str:
    """The class of one pixel that the attributes `present` cover."""
    if order == "celeba_authors":
        for attribute in reversed(ATTRIBUTES_LATER_WINS):
            for name, members in CLASS_OF.items():
                if attribute in present and attribute in members:
                    return name
        return "background"
    covered = [name for name, members in CLASS_OF.items() if present & set(members)]
    ranking = REGAN_FIRST_WINS if order == "regan" else SLIME_LATER_WINS[::-1]
    return next((name for name in ranking if name in covered), "background")


class TestMerge:
    def test_names_are_those_of_the_configuration_and_the_protocol(self, repository: Path) -> None:
        conf = yaml.safe_load((repository / "conf" / "data" / "celebamask_hq.yaml").read_text())
        assert tuple(conf["classes"]) == CLASSES and list(ATTRIBUTES) == ATTRIBUTES_LATER_WINS
        assert set(PAINTING) == set(ORDERS)

    @settings(max_examples=60, deadline=None)
    @given(st.dictionaries(st.sampled_from(ATTRIBUTES), st.lists(st.booleans(), min_size=12, max_size=12), min_size=1))
    def test_against_a_pixel_by_pixel_oracle(self, rows: dict[str, list[bool]]) -> None:
        masks = {name: np.array(row).reshape(3, 4) for name, row in rows.items()}
        for order in ORDERS:
            label = merge(masks, order)
            assert label.dtype == np.uint8 and label.shape == (3, 4)
            for position in np.ndindex(3, 4):
                present = {name for name, mask in masks.items() if mask[position]}
                assert CLASSES[label[position]] == oracle(present, order), (order, present)


def merge_label_map(attributes: np.ndarray, order: str = "slime") -> np.ndarray:
    """The classes of a face that comes as one label map of all attributes (0..18): nothing overlaps in it."""
    return merge({name: attributes == index for index, name in enumerate(ATTRIBUTES, start=1)}, order)


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`command(root, *arguments)` -> (exit code, stdout, stderr) of the command; the data set goes to tmp_path/out."""

    def call(root: Path, *arguments: str) -> tuple[int, str, str]:
        fixed = ["--root", str(root), "--out", str(tmp_path / "out"), "--size", str(SIZE), "--workers", "1"]
        monkeypatch.setattr(sys, "argv", ["celebamask_hq", *fixed, *arguments])
        code = run(main)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return call


Command = Callable[..., tuple[int, str, str]]


# Pixels per class of the two real faces: background skin eye mouth nose brow ear neck cloth hair.
REAL = {
    "celeb_0": [60448, 69526, 1785, 3172, 4191, 2075, 1173, 14957, 0, 104817],
    "celeb_1": [84476, 68761, 1622, 3262, 5256, 5454, 869, 10977, 12455, 69012],
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_real_faces(order: str, real: Path, tmp_path: Path, command: Command) -> None:
    """The two real faces in the layout of the archive, one mask for each attribute."""
    root = tmp_path / FOLDER
    (root / MASKS / "0").mkdir(parents=True)
    (root / "CelebA-HQ-img").mkdir()
    (root / MAPPING).write_text("idx orig_idx orig_file\n0 119613 119614.jpg\n1 200121 200122.jpg\n")
    for index, name in enumerate(REAL):
        shutil.copy(real / "celebamask_hq" / f"{name}.jpg", root / "CelebA-HQ-img" / f"{index}.jpg")
        values = np.array(Image.open(real / "celebamask_hq" / f"{name}.png"))
        for value, attribute in enumerate(ATTRIBUTES, start=1):
            if (values == value).any():
                mask = Image.fromarray(np.uint8(255) * (values == value)).convert("RGB" if value % 2 else "L")
                mask.save(root / MASKS / "0" / f"{index:05d}_{attribute}.png")
    assert command(root, "--size", "512", "--merge", order)[0] == 0
    for split, index, name in (("support", 0, "celeb_0"), ("test", 1, "celeb_1")):
        values = np.array(Image.open(real / "celebamask_hq" / f"{name}.png"))
        label = np.array(Image.open(tmp_path / "out" / split / "labels" / f"{index:05d}.png"))
        np.testing.assert_array_equal(label, merge_label_map(values, order))
        assert np.bincount(label.ravel(), minlength=len(CLASSES)).tolist() == REAL[name]
        image = np.array(Image.open(tmp_path / "out" / split / "images" / f"{index:05d}.png"))
        assert_antialiased(image, root / "CelebA-HQ-img" / f"{index}.jpg", 512)
    facts = manifest(tmp_path / "out")["samples"]["test/00001"]
    assert facts["pixels"] == REAL["celeb_1"]
    assert (facts["celeba"], facts["source_size"], facts["ignored"]) == (200121, [1024, 1024], [])


def assert_antialiased(image: np.ndarray, path: Path, size: int) -> None:
    """Compare with torch's own antialiased bilinear filter, which is another implementation of the same triangle."""
    source = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(source, (size, size), mode="bilinear", antialias=True)
    error = (torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() - expected).abs()
    assert error.max() <= 1.01  # PIL rounds to whole levels after each axis


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A twin of twenty faces; not to be changed."""
    root = tmp_path_factory.mktemp("twin") / FOLDER
    write_celebamask_twin(root, FACES, size=SIZE)
    return root


@pytest.fixture
def own(twin: Path, tmp_path: Path) -> Path:
    """A copy of the twin to spoil, in a folder with a difficult name."""
    return Path(shutil.copytree(twin, tmp_path / "données à moi" / FOLDER))


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


class TestPrepare:
    @pytest.mark.parametrize("order", ORDERS)
    def test_every_face(self, order: str, twin: Path, tmp_path: Path, command: Command) -> None:
        code, printed, _ = command(twin, "--merge", order)
        assert code == 0 and "celebamask_hq" in printed
        made = manifest(tmp_path / "out")
        assert made["settings"] == {"merge": order, "size": SIZE, "limit": None}
        assert (made["name"], made["subject"], tuple(made["classes"])) == ("celebamask_hq", "face", CLASSES)
        for index in range(FACES):
            split = {8: "val", 9: "test"}.get(index % 10, "support")
            masks = face_masks(index, SIZE)
            label = np.array(Image.open(tmp_path / "out" / split / "labels" / f"{index:05d}.png"))
            np.testing.assert_array_equal(label, merge(masks, order))
            facts = made["samples"][f"{split}/{index:05d}"]
            assert facts["source"] == f"CelebA-HQ-img/{index}.jpg"
            assert facts["celeba"] == celeba_index(index)
            assert facts["ignored"] == [name for name in IGNORED if name in masks]
            assert (facts["size"], facts["source_size"]) == ([SIZE, SIZE], [2 * SIZE, 2 * SIZE])
        assert len(made["samples"]) == FACES

    def test_an_archive_gives_what_its_folder_gives(self, twin: Path, tmp_path: Path, command: Command) -> None:
        assert command(twin)[0] == 0
        expected = manifest(tmp_path / "out")
        (tmp_path / "out").rename(tmp_path / "first")
        archive = Path(shutil.make_archive(str(tmp_path / "CelebAMask-HQ"), "zip", twin.parent))
        assert command(archive)[0] == 0
        made = manifest(tmp_path / "out")
        assert (made["files"], made["samples"]) == (expected["files"], expected["samples"])
        assert made["sources"] == {"root": archive.name}
        extracted = {each.name for each in (tmp_path / "raw" / "CelebAMask-HQ" / FOLDER).iterdir()}
        assert extracted == {"CelebA-HQ-img", MASKS, MAPPING}

    def test_limit_and_force(self, twin: Path, tmp_path: Path, command: Command) -> None:
        assert command(twin, "--limit", "9")[0] == 0
        assert sorted(manifest(tmp_path / "out")["samples"]) == [*(f"support/0000{i}" for i in range(8)), "val/00008"]
        code, _, said = command(twin, "--merge", "regan")
        assert code == 2 and "--force" in said and manifest(tmp_path / "out")["settings"]["limit"] == 9
        assert command(twin, "--merge", "regan", "--force")[0] == 0
        code, _, said = command(twin, "--limit", "0")
        assert code == 2 and said.startswith("error: --size and --limit are whole numbers from 1 on")


def spoil_mask(path: Path, change: Callable[[Image.Image], Image.Image]) -> None:
    change(Image.open(path)).save(path, format="PNG")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_line(path: Path, index: int) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if line.split()[0] != str(index)))


# What is done to face 3 of the twin (a support face), and the words that name it.
FAULTS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "missing image": (lambda image, mask: image.unlink(), "cannot read the image"),
    "truncated image": (lambda image, mask: truncate(image), "cannot read the image"),
    "oblong image": (lambda image, mask: Image.new("RGB", (128, 96)).save(image), "the image is not square"),
    "small image": (lambda image, mask: Image.new("RGB", (32, 32)).save(image), "the image is not square, or smaller"),
    "mask of another size": (
        lambda image, mask: spoil_mask(mask, lambda each: each.resize((32, 32))),
        "a mask of another size",
    ),
    "truncated mask": (lambda image, mask: truncate(mask), "cannot read the mask"),
    "face without a mapping line": (
        lambda image, mask: drop_line(image.parents[1] / MAPPING, 3),
        "a face has no line in the mapping file",
    ),
}


class TestFaultyFaces:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_stop_names_it_and_skip_counts_it(self, fault: str, own: Path, tmp_path: Path, command: Command) -> None:
        spoil, words = FAULTS[fault]
        spoil(own / "CelebA-HQ-img" / "3.jpg", own / MASKS / "0" / "00003_skin.png")
        code, _, said = command(own)
        assert code == 2 and f"error: 1 of {FACES} source pictures" in said and words in said
        assert not (tmp_path / "out").exists()
        code, printed, _ = command(own, "--faulty", "skip")
        assert code == 0 and words in printed
        made = manifest(tmp_path / "out")
        assert len(made["samples"]) == FACES - 1 and "support/00003" not in made["samples"]
        assert made["faulty"][0]["source"] == "00003" and words in made["faulty"][0]["what"]

    def test_what_is_restored_counts_when_the_command_is_repeated(
        self, own: Path, twin: Path, tmp_path: Path, command: Command
    ) -> None:
        """Also masks, whose absence is no fault."""
        (own / "CelebA-HQ-img" / "3.jpg").write_bytes(b"")
        (own / MASKS / "0" / "00004_hair.png").unlink()
        assert command(own)[0] == 2
        shutil.copytree(twin, own, dirs_exist_ok=True)
        code, printed, _ = command(own)
        assert code == 0 and f"{FACES - 2} were ready" in printed
        (tmp_path / "out").rename(tmp_path / "mended")
        assert command(twin)[0] == 0
        assert (tmp_path / "out" / "manifest.json").read_bytes() == (tmp_path / "mended" / "manifest.json").read_bytes()

    def test_absent_and_ignored_attributes(self, own: Path, tmp_path: Path, command: Command) -> None:
        for key, kept in (("00003", "skin"), ("00004", "neck_l")):
            for mask in (own / MASKS / "0").glob(f"{key}_*"):
                if mask.stem != f"{key}_{kept}":
                    mask.unlink()
        Image.fromarray(np.full((SIZE, SIZE), 255, np.uint8)).save(own / MASKS / "0" / "00003_ear_r.png")
        (own / MASKS / ".DS_Store").write_text("mac")
        (own / MASKS / "0" / "._00003_skin.png").write_text("mac")
        code, printed, _ = command(own)
        assert code == 0 and "no mask of any class" in printed
        made = manifest(tmp_path / "out")
        assert made["dropped"] == {"no mask of any class": 1} and "support/00004" not in made["samples"]
        label = np.array(Image.open(tmp_path / "out" / "support" / "labels" / "00003.png"))
        np.testing.assert_array_equal(label, face_masks(3, SIZE)["skin"])  # the ear ring is no ear
        assert made["samples"]["support/00003"]["ignored"] == ["ear_r"]

    @pytest.mark.parametrize(
        "name",
        ["CelebA-HQ-img/3 (1).jpg", "CelebA-HQ-img/00003.jpg", f"{MASKS}/0/00003_beard.png", f"{MASKS}/00003_skin.png"],
    )
    def test_names_that_say_of_no_face(self, name: str, own: Path, tmp_path: Path, command: Command) -> None:
        (own / name).write_bytes(b"")
        code, _, said = command(own, "--faulty", "skip")
        assert code == 2 and said.startswith("error: 1 picture(s) of another name, or in a wrong folder")
        assert Path(name).name in said and not (tmp_path / "out").exists()


class TestFiles:
    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1"])
    def test_masks_of_every_kind(self, mode: str, tmp_path: Path) -> None:
        expected = np.indices((SIZE, SIZE)).sum(axis=0) % 3 == 0
        Image.fromarray(np.uint8(255) * expected).convert(mode).save(tmp_path / "m.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "m.png", SIZE), expected)

    def test_the_first_channel_above_one_half(self, tmp_path: Path) -> None:
        values = np.zeros((2, 2, 3), np.uint8)
        values[..., 0] = [[0, 127], [128, 255]]
        values[..., 1:] = 255 - values[..., :1]
        Image.fromarray(values).save(tmp_path / "m.png")
        assert read_mask(tmp_path / "m.png", 2).tolist() == [[False, False], [True, True]]

    @pytest.mark.parametrize(
        ("celeba", "split"),
        [(0, "support"), (162770, "support"), (162771, "val"), (182637, "val"), (182638, "test"), (202598, "test")],
    )
    def test_official_limits(self, celeba: int, split: str) -> None:
        assert split_of(celeba) == split

    def test_folders_of_two_thousand_faces(self, own: Path) -> None:
        (own / MASKS / "1").mkdir()
        (own / MASKS / "1" / "02000_hair.png").write_bytes(b"")
        face = list_faces(own)[-1]
        assert (face.index, face.attributes, face.celeba, face.stamp) == (2000, ("hair",), None, None)
        assert face.mask("hair") == f"{MASKS}/1/02000_hair.png"

    def test_a_missing_download(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        code, _, text = command(Path("~/faces.zip"))
        assert code == 2 and f"{tmp_path}/faces.zip" in text
        assert "CelebAMask-HQ.zip from https://github.com/switchablenorms/CelebAMask-HQ" in text

    def test_the_root(self, twin: Path, tmp_path: Path) -> None:
        assert find_root(twin) == find_root(twin.parent) == twin
        (tmp_path / "pictures" / "CelebA-HQ-img").mkdir(parents=True)
        with pytest.raises(DataError, match="this is not CelebAMask-HQ") as caught:
            find_root(tmp_path)
        assert caught.value.found == "pictures" and MAPPING in str(caught.value.expected)

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("idx orig_idx orig_file\n", "no face"),
            ("idx orig_idx orig_file\n0 5 6.jpg\n1 99\n", "line 3: '1 99'"),
            ("0 -5 6.jpg\n", "line 1"),
            ("0 5 6.jpg\n0 7 8.jpg\n", "line 2: '0 7 8.jpg'"),
        ],
    )
    def test_broken_mapping_files(self, text: str, found: str, tmp_path: Path) -> None:
        path = tmp_path / MAPPING
        path.write_text(text)
        with pytest.raises(DataError, match="the mapping file is broken") as caught:
            read_mapping(path)
        assert found in str(caught.value.found)

    def test_mapping_with_more_columns_and_other_line_ends(self, tmp_path: Path) -> None:
        path = tmp_path / MAPPING
        path.write_bytes(b"idx orig_idx orig_file proc_md5\r\n0  119613  119614.jpg  0be7\r\n\r\n7 5 000006.jpg 1\r\n")
        assert read_mapping(path) == {0: 119613, 7: 5}

    def test_the_whole_data_set_is_compared_with_the_official_counts(self) -> None:
        limits = {"support": 0, "val": 162_771, "test": 182_638}
        celeba = [limits[split] for split, count in OFFICIAL_FACES.items() for _ in range(count)]
        faces = [Face(index, each, ()) for index, each in enumerate(celeba)]
        assert len(faces) == 30_000 and OFFICIAL_FACES == {"support": 24183, "val": 2993, "test": 2824}
        assert differences_from_official(faces) is None
        assert differences_from_official(faces[:100]) is None
        faces[-1] = Face(29_999, 5, ())
        said = differences_from_official(faces)
        assert said is not None and "24184 support (official: 24183)" in said and "2823 test (official: 2824)" in said


def test_the_comparison_counts_and_writes_nothing(own: Path, tmp_path: Path, command: Command) -> None:
    labels = {order: [merge(face_masks(index, SIZE), order) for index in range(FACES)] for order in ORDERS}
    counts = [np.bincount(np.ravel(each), minlength=len(CLASSES)).tolist() for each in labels.values()]
    code, printed, _ = command(own, "--compare-merges")
    lines = printed.splitlines()
    assert code == 0 and f"of {FACES} faces" in " ".join(lines)
    for index, name in enumerate(CLASSES):
        cells = [cell.strip() for cell in next(line for line in lines if f" {name} " in line).split("│")]
        first, *others = (each[index] for each in counts)
        assert cells[2:5] == [str(first), *(f"{each} ({each - first:+d})" for each in others)]
    assert len({tuple(each) for each in counts}) == 3
    assert {each.name for each in tmp_path.iterdir()} == {"données à moi"}
    truncate(own / MASKS / "0" / "00003_skin.png")
    code, printed, said = command(own, "--compare-merges")
    assert code == 2 and f"of {FACES - 1} faces" in printed and "00003_skin.png: cannot read the mask" in said
    assert command(own, "--compare-merges", "--faulty", "skip")[0] == 0

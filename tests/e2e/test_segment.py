"""`slime-bench segment`: embeddings from annotated images or from a trial, on any images."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors.torch import save_file

from slime_bench.colours import palette
from slime_bench.data import pictures
from slime_bench.data.reading import read_image
from slime_bench.errors import StorageError
from slime_bench.methods.slime.method import Slime
from slime_bench.results.artifacts import read_qualitative
from slime_bench.results.state import read_state
from slime_bench.segment import learn as learning
from slime_bench.segment import run as segmenting
from slime_bench.segment.folder import locked
from slime_bench.segment.segmenter import Segmenter, label_map, noise_key
from tests.e2e.conftest import SIDE, Bench, Outcome, command, contents

NAMES = ["background", "body", "light", "plate", "wheel", "window"]
SMALL = [
    f"data.image_size={SIDE}", f"backbone.image_size={SIDE}", "method.train_map_size=16", "method.epochs=3",
    "data.batch_size=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def kept_photos(car_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images, of other sizes and forms than the annotated one, and with awkward names. Read only: see `photos`
    for a copy."""
    folder = tmp_path_factory.mktemp("photos")
    with Image.open(car_pictures / "test/images/car-test-0.png") as picture:
        picture.resize((90, 40)).save(folder / "weit – ü.jpg")
        picture.convert("L").resize((33, 70)).save(folder / "grey one.png")
        picture.convert("CMYK").save(folder / "print.jpg")
    return folder


@pytest.fixture
def photos(kept_photos: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept_photos, tmp_path / "photos"))


def learning_command(sd: Path, pictures: Path, photos: Path, out: Path) -> list[str]:
    """Of one annotated image, with small weights and few steps."""
    pair = [f"{pictures}/support/{kind}/car-support-0.png" for kind in ("images", "labels")]
    places = ["--images", str(photos), "--out", str(out), "--weights", str(sd), "--device", "cpu"]
    return ["--image", pair[0], "--mask", pair[1], *places, *SMALL]


@pytest.fixture
def learn(tiny_sd: Path, car_pictures: Path, photos: Path, tmp_path: Path) -> Callable[..., Outcome]:
    """`slime-bench segment` on one annotated image, unless others are named."""

    def call(*arguments: str, out: str = "out", annotated: list[str] | None = None) -> Outcome:
        words = learning_command(tiny_sd, car_pictures, photos, tmp_path / out)
        return command("segment", *(words if annotated is None else [*annotated, *words[4:]]), *arguments)

    return call


@pytest.fixture(scope="module")
def first(
    tiny_sd: Path, car_pictures: Path, kept_photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Outcome]:
    """What `learn()` writes, and how it ended. Read only: see `learnt` for a copy."""
    out = tmp_path_factory.mktemp("learnt") / "out"
    outcome = command("segment", *learning_command(tiny_sd, car_pictures, kept_photos, out))
    assert outcome.code == 0, outcome.err
    return out, outcome


@pytest.fixture
def learnt(first: tuple[Path, Outcome], tmp_path: Path) -> Path:
    """The folder `out` as `learn()` leaves it."""
    return Path(shutil.copytree(first[0], tmp_path / "out"))


def reuse(embeddings: Path, images: Path, out: Path, *arguments: str) -> Outcome:
    places = ["--embeddings", str(embeddings), "--images", str(images), "--out", str(out)]
    return command("segment", *places, "--device", "cpu", *arguments)


def with_state(bench: Bench, images: Path, out: Path, *arguments: str) -> Outcome:
    path = bench.folder() / "state.safetensors"
    return command(
        "segment", "--state", str(path), "--images", str(images), "--out", str(out), "--device", "cpu", *arguments
    )


def no_learning(patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the embeddings are there already")

    patch.setattr(Slime, "training_step", refuse)


class TestFromAnnotatedImages:
    def test_all_results_are_there(self, learn: Callable[..., Outcome], photos: Path, tmp_path: Path) -> None:
        outcome = learn("--classes", ",".join(NAMES))
        assert outcome.code == 0, outcome.err
        out, names = tmp_path / "out", ["grey one", "print", "weit – ü"]
        made = {f"labels/{name}.png" for name in names} | {f"overlays/{name}.jpg" for name in names}
        tables = {"areas.csv", "grid.png", "classes.yaml", "embeddings.safetensors", "run.json", ".segment.lock"}
        assert set(contents(out)) == made | tables
        assert yaml.safe_load((out / "classes.yaml").read_text()) == NAMES
        rows = list(csv.DictReader((out / "areas.csv").read_text(encoding="utf-8").splitlines()))
        assert len(rows) == 3 * len(NAMES)
        for file in photos.iterdir():
            with Image.open(file) as image, Image.open(out / "labels" / f"{file.stem}.png") as label:
                pixels = np.bincount(np.array(label).ravel(), minlength=len(NAMES))
                assert (label.mode, label.size) == ("P", image.size) and len(pixels) == len(NAMES)
                assert label.getpalette()[: 3 * len(NAMES)] == palette(len(NAMES)).flatten().tolist()
            own = [row for row in rows if row["image"] == file.name]
            assert [row["class"] for row in own] == NAMES and [int(row["pixels"]) for row in own] == pixels.tolist()
            assert [float(row["fraction"]) for row in own] == pytest.approx(pixels / pixels.sum(), abs=1e-6)
        for stage in ("annotated", "classes", "images", "backbone", "fit", "segment"):
            assert f"\n{stage}" in f"\n{outcome.err}".replace("\r", "\n")
        assert "3/3" in outcome.err and "3 image(s) segmented" in outcome.out and "mean area" in outcome.out

    def test_embeddings_are_reused_to_the_byte(
        self, learn: Callable[..., Outcome], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        saved = tmp_path / "car.safetensors"
        assert learn("--embeddings", str(saved), out="one").code == 0
        assert saved.read_bytes() == (tmp_path / "one/embeddings.safetensors").read_bytes()
        no_learning(monkeypatch)
        outcome = reuse(saved, photos, tmp_path / "two")
        assert outcome.code == 0, outcome.err
        one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
        assert {name for name in one if one[name] != two[name]} == {"grid.png"}  # which has no annotated image
        # Other noise gives other maps, so that equality says something.
        other = reuse(saved, photos, tmp_path / "three", "method.t_test=900")
        assert other.code == 0 and contents(tmp_path / "three/labels") != contents(tmp_path / "one/labels")

    def test_a_refinement(self, learn: Callable[..., Outcome], learnt: Path, photos: Path, tmp_path: Path) -> None:
        """Chosen while learning or for embeddings that are there; another one is another result."""
        assert learn("refine=guided", out="one").code == 0
        one, two = (folder / "embeddings.safetensors" for folder in (tmp_path / "one", learnt))
        facts = read_state(one)[1]
        assert facts["refine"]["name"] == "guided" and read_state(two)[1]["refine"]["name"] == "none"
        assert contents(tmp_path / "one/labels") != contents(learnt / "labels")
        assert reuse(one, photos, tmp_path / "again").code == 0
        assert contents(tmp_path / "again/labels") == contents(tmp_path / "one/labels")
        assert reuse(two, photos, tmp_path / "later", "refine=guided").code == 0
        assert contents(tmp_path / "later/labels") == contents(tmp_path / "one/labels")
        assert reuse(one, photos, tmp_path / "wide", "refine.radius=12").code == 0
        assert contents(tmp_path / "wide/labels") != contents(tmp_path / "one/labels")
        assert reuse(two, photos, tmp_path / "crf", "refine=crf", "refine.iterations=1").code == 0
        refused = reuse(two, photos, learnt, "refine=guided")
        assert refused.code == 2 and "other embeddings or settings" in refused.err
        refused = reuse(two, photos, tmp_path / "none", "refine=guide")
        assert refused.code == 2 and "refine=guided" in refused.err

    def test_a_state_from_before_there_was_a_choice(self, learnt: Path, photos: Path, tmp_path: Path) -> None:
        tensors, facts = read_state(learnt / "embeddings.safetensors")
        metadata = {key: json.dumps(value) for key, value in facts.items() if key not in ("refine", "preset")}
        save_file(tensors, tmp_path / "old.safetensors", metadata=metadata)
        assert read_state(tmp_path / "old.safetensors")[1]["refine"] == facts["refine"]
        assert reuse(tmp_path / "old.safetensors", photos, tmp_path / "two").code == 0
        assert contents(tmp_path / "two/labels") == contents(learnt / "labels")
        assert reuse(tmp_path / "old.safetensors", photos, tmp_path / "three", "refine=guided").code == 0
        assert contents(tmp_path / "three/labels") != contents(learnt / "labels")

    def test_the_same_command_gives_the_same_embeddings(
        self, learn: Callable[..., Outcome], learnt: Path, tmp_path: Path
    ) -> None:
        assert learn(out="two").code == learn("--seed", "1", out="three").code == 0
        one, two, three = ((tmp_path / out / "embeddings.safetensors").read_bytes() for out in ("out", "two", "three"))
        assert one == two != three

    def test_several_annotated_images_or_a_folder(
        self, learn: Callable[..., Outcome], car_pictures: Path, tmp_path: Path
    ) -> None:
        named = []
        for index in range(2):
            for option, kind in (("--image", "images"), ("--mask", "labels")):
                named += [option, str(car_pictures / "support" / kind / f"car-support-{index}.png")]
                (tmp_path / "set" / kind).mkdir(parents=True, exist_ok=True)
                shutil.copy(named[-1], tmp_path / "set" / kind)
        outcome = learn("--classes", ",".join(NAMES), annotated=named, out="one")
        assert outcome.code == 0, outcome.err
        assert "6/6" in outcome.err  # 3 passes over 2 images
        folder = ["--support", str(tmp_path / "set")]
        assert learn("--classes", ",".join(NAMES), annotated=folder, out="two").code == 0
        one, two = ((tmp_path / out / "embeddings.safetensors").read_bytes() for out in ("one", "two"))
        assert one == two

    def test_classes_of_a_colour_mask(self, learn: Callable[..., Outcome], car_pictures: Path, tmp_path: Path) -> None:
        image = str(car_pictures / "support/images/car-support-0.png")
        with Image.open(car_pictures / "support/labels/car-support-0.png") as label:
            colours = np.array([(0, 0, 0), *[(40 * index, 255 - 30 * index, 99) for index in range(1, 6)]], np.uint8)
            Image.fromarray(colours[np.array(label)]).save(tmp_path / "mask.png")
        lines = [f'{name}: "#{"".join(f"{one:02x}" for one in colours[index])}"' for index, name in enumerate(NAMES)]
        (tmp_path / "classes.yaml").write_text("\n".join(lines))
        pair = ["--image", image, "--mask", str(tmp_path / "mask.png")]
        outcome = learn("--classes", str(tmp_path / "classes.yaml"), annotated=pair, out="colours")
        assert outcome.code == 0, outcome.err
        assert learn("--classes", ",".join(NAMES), out="indices").code == 0
        one, two = (read_state(tmp_path / out / "embeddings.safetensors") for out in ("colours", "indices"))
        assert (one[0]["embeddings"] == two[0]["embeddings"]).all() and one[1]["classes"] == NAMES
        with Image.open(tmp_path / "colours/labels/print.png") as label:
            assert label.getpalette()[:18] == colours.flatten().tolist()

    def test_colours_without_a_list_are_asked_about(
        self, learn: Callable[..., Outcome], car_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        no_learning(monkeypatch)
        with Image.open(car_pictures / "support/labels/car-support-0.png") as label:
            body = np.array(label) == 1
        Image.fromarray(np.where(body[..., None], np.uint8([255, 0, 0]), np.uint8(0))).save(tmp_path / "mask.png")
        pair = ["--image", str(car_pictures / "support/images/car-support-0.png"), "--mask", str(tmp_path / "mask.png")]
        outcome = learn(annotated=pair)
        assert outcome.code == 2 and "could be called" in outcome.err and "--yes" in outcome.err
        proposed = tmp_path / "mask.png.classes.yaml"
        assert str(proposed) in outcome.err
        assert yaml.safe_load(proposed.read_text()) == {"background": "#000000", "red": "#ff0000"}
        assert not (tmp_path / "out/embeddings.safetensors").exists()

    def test_the_paper_preset_is_composed(self, learn: Callable[..., Outcome], tmp_path: Path) -> None:
        names = ",".join(f"up_blocks.{block}.attentions.{index}" for block in (1, 2) for index in (0, 1))
        layers = [f"backbone.cross_layers=[{names}]", "backbone.self_layers=[up_blocks.3.attentions.0]"]
        outcome = learn("--preset", "paper", "method.max_steps=2", "backbone.single_file_config=null", *layers)
        assert outcome.code == 0, outcome.err
        facts = read_state(tmp_path / "out/embeddings.safetensors")[1]
        assert facts["protocol"]["name"] == "slime_code" and facts["backbone"]["name"] == "sd21_base"
        assert facts["data"]["resize"] == "antialias" and facts["data"]["validation"] == "support"


class TestGoingOn:
    def test_nothing_is_done_twice(
        self, learn: Callable[..., Outcome], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        saved = str(tmp_path / "car.safetensors")
        real, last = Segmenter.scored, noise_key(read_image(photos / "weit – ü.jpg"))

        def interrupted(self: Segmenter, fitted: Any, keys: Sequence[str]) -> Any:
            if last in keys:
                raise KeyboardInterrupt
            return real(self, fitted, keys)

        with monkeypatch.context() as patch:
            patch.setattr(Segmenter, "scored", interrupted)
            outcome = learn("--embeddings", saved, "data.batch_size=1")
        assert outcome.code == 130 and "interrupted" in outcome.err
        first = contents(tmp_path / "out")
        assert "labels/grey one.png" in first and "labels/weit – ü.png" not in first
        no_learning(monkeypatch)
        outcome = learn("--embeddings", saved, "data.batch_size=1")
        assert outcome.code == 0, outcome.err
        kept = len(json.loads(first["run.json"])["images"])
        assert kept >= 1 and f"({kept} of them earlier)" in outcome.out and f"{3 - kept}/{3 - kept}" in outcome.err
        whole = contents(tmp_path / "out")
        assert whole["embeddings.safetensors"] == first["embeddings.safetensors"]
        monkeypatch.setattr(learning, "load_method", None)
        outcome = learn("--embeddings", saved, "data.batch_size=1")
        assert outcome.code == 0 and "(3 of them earlier)" in outcome.out, outcome.err
        assert contents(tmp_path / "out") == whole

    def test_an_interruption_while_learning(
        self, learn: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Slime, "training_step", interrupt)
            outcome = learn()
        assert outcome.code == 130 and "learning that had not ended starts anew" in outcome.err
        assert set(contents(tmp_path / "out")) == {"run.json", ".segment.lock"}
        assert learn().code == 0

    def test_a_folder_on_which_another_command_works(
        self, learn: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Seen: embeddings of one run beside labels of the other."""
        no_learning(monkeypatch)
        with locked(tmp_path / "out"):
            before = contents(tmp_path)
            outcome = learn()
            assert contents(tmp_path) == before
        assert outcome.code == 2 and "another process works on this" in outcome.err, outcome.err
        assert "choose another --out" in outcome.err and f"process {os.getpid()}" in outcome.err

    def test_embeddings_that_another_command_has_saved_meanwhile(
        self, learn: Callable[..., Outcome], learnt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        saved, real, other = tmp_path / "car.safetensors", Segmenter.learned, learnt / "embeddings.safetensors"

        def slower(*arguments: Any, **named: Any) -> Segmenter:
            shutil.copy(other, saved)
            return real(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(Segmenter, "learned", slower)
            outcome = learn("--seed", "1", "--embeddings", str(saved), out="mine")
        assert outcome.code == 2 and "other embeddings already" in outcome.err, outcome.err
        assert saved.read_bytes() == other.read_bytes()
        no_learning(monkeypatch)
        again = learn("--seed", "1", "--embeddings", str(tmp_path / "mine.safetensors"), out="mine")
        assert again.code == 0, "what was learned is not lost"

    def test_score_maps_are_added_to_what_is_there(self, learnt: Path, photos: Path) -> None:
        embeddings, out = learnt / "embeddings.safetensors", learnt
        before = contents(out)
        outcome = reuse(embeddings, photos, out, "--save-scores")
        assert outcome.code == 0 and "earlier" not in outcome.out, outcome.err
        after = contents(out)
        assert {name: after[name] for name in before} | {"grid.png": b""} == before | {"grid.png": b""}
        assert {name for name in after if name not in before} == {
            f"scores/{name}.npz" for name in ("grey one", "print", "weit – ü")
        }
        with np.load(out / "scores/weit – ü.npz") as saved, Image.open(out / "labels/weit – ü.png") as label:
            maps = torch.from_numpy(saved["scores"]).float()[None]
            large = F.interpolate(maps, tuple(saved["size"].tolist()), mode="bilinear")[0].numpy()
            assert maps.shape[1] == len(saved["classes"]) and large.shape[1:] == (40, 90)
            assert (large.argmax(0) == np.array(label)).mean() > 0.98
        (out / "scores/print.npz").unlink()
        outcome = reuse(embeddings, photos, out, "--save-scores")
        assert "(2 of them earlier)" in outcome.out and set(contents(out)) == set(after)
        # Computed alone in place of in a batch, numbers may differ in their last digits.
        changed = {each for each, content in contents(out).items() if content != after[each]}
        assert changed <= {"scores/print.npz", "run.json"}
        found, before = (json.loads(text)["images"] for text in (contents(out)["run.json"], after["run.json"]))
        for name, facts in found.items():
            assert facts.pop("confidence") == pytest.approx(before[name].pop("confidence"), abs=1e-4)
        assert found == before
        Image.new("RGB", (20, 30)).save(photos / "print.jpg")
        assert reuse(embeddings, photos, out).code == 0
        with np.load(out / "scores/print.npz") as saved:
            assert saved["size"].tolist() == [30, 20], "no scores of the photo that it was"

    def test_results_of_photos_that_are_gone_are_named(
        self, learn: Callable[..., Outcome], first: tuple[Path, Outcome], learnt: Path, photos: Path
    ) -> None:
        assert "of none of these images" not in first[1].err
        (photos / "print.jpg").unlink()
        (photos / "moved.jpg").symlink_to("nowhere.jpg")
        outcome = learn()
        assert outcome.code == 2 and "1 earlier result(s)" in outcome.err and "images: print\n" in outcome.err
        assert "moved.jpg: cannot read the image (a link to nowhere.jpg, which is not there)" in outcome.err

    def test_a_very_large_photo(
        self, learn: Callable[..., Outcome], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Read at reduced size, its label map in its own, the time said first; as the Python call has it."""
        for path in photos.iterdir():
            path.unlink()
        fade = np.add.outer(np.arange(3300), np.arange(6500)) * 255 // 9800
        Image.fromarray(fade.astype(np.uint8)).save(photos / "large.jpg")
        monkeypatch.setattr(pictures, "LARGE", 20_000_000)
        monkeypatch.setattr(segmenting, "_LONG", 1.0)
        outcome = learn()
        assert outcome.code == 0 and "segment   1 image(s), of which to read" in outcome.err, outcome.err
        segmenter = Segmenter.load(tmp_path / "out/embeddings.safetensors", device="cpu")
        pixels, size = segmenter.read(photos / "large.jpg")
        assert (pixels.shape, size) == ((1650, 3250, 3), (3300, 6500))
        with Image.open(tmp_path / "out/labels/large.png") as label:
            assert label.size == (6500, 3300)
            assert (segmenter.segment(photos / "large.jpg") == np.array(label)).all()

    def test_a_changed_image_is_segmented_again(
        self, learnt: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        no_learning(monkeypatch)
        Image.new("RGB", (20, 30)).save(photos / "print.jpg")
        (learnt / "overlays/grey one.jpg").unlink()
        outcome = reuse(learnt / "embeddings.safetensors", photos, learnt)
        assert outcome.code == 0 and "(1 of them earlier)" in outcome.out, outcome.err
        with Image.open(learnt / "labels/print.png") as label:
            assert label.size == (20, 30)

    def test_nothing_that_is_computed_is_lost(
        self, learn: Callable[..., Outcome], photos: Path, tmp_path: Path
    ) -> None:
        saved = tmp_path / "car.safetensors"
        assert learn("--embeddings", str(saved)).code == 0
        before = contents(tmp_path)
        for arguments in (["--seed", "1"], ["--seed", "1", "--embeddings", str(saved)], ["--seed", "2"]):
            outcome = learn(*arguments, out="out" if len(arguments) == 2 else "other")
            assert outcome.code == 2 and "--force" in outcome.err
        assert reuse(saved, photos, tmp_path / "out", "method.maps=cross").code == 2
        assert {name: before[name] for name in before} == {
            name: content for name, content in contents(tmp_path).items() if name in before
        }
        (photos / "print.jpg").unlink()
        outcome = learn("--seed", "1", "--embeddings", str(saved), "--force")
        assert outcome.code == 0, outcome.err
        after = contents(tmp_path)
        assert after["car.safetensors"] != before["car.safetensors"]
        assert after["car.safetensors"] == after["out/embeddings.safetensors"]
        assert "out/labels/print.png" not in after, "a result of the replaced embeddings"


class TestBadInput:
    def test_images_that_cannot_be_read_do_not_stop_the_others(
        self, learn: Callable[..., Outcome], photos: Path, tmp_path: Path
    ) -> None:
        whole = (photos / "print.jpg").read_bytes()
        (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
        (photos / "empty.png").write_bytes(b"")
        Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(photos / "deep.png")
        outcome = learn()
        assert outcome.code == 2 and "3 image(s) could not be read" in outcome.err
        for name in ("cut.jpg", "empty.png", "deep.png"):
            assert name in outcome.err.split("could not be read")[1]
        assert "3 image(s) segmented" in outcome.out and "Traceback" not in outcome.err
        assert len(list((tmp_path / "out/labels").iterdir())) == 3
        Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(photos / "deep.png")
        (photos / "cut.jpg").unlink()
        (photos / "empty.png").unlink()
        outcome = learn()
        assert outcome.code == 0 and "(3 of them earlier)" in outcome.out

    def test_a_full_disk(self, learn: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = segmenting.write

        def full(path: Path, content: bytes) -> None:
            if path.name == "weit – ü.png":
                raise StorageError("The file could not be written.", path=path, found="No space left on device")
            real(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(segmenting, "write", full)
            outcome = learn()
        assert outcome.code == 2 and "No space left" in outcome.err
        no_learning(monkeypatch)
        outcome = learn()
        assert outcome.code == 0 and "of them earlier" in outcome.out, outcome.err

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--image", "x.png"], "every annotated image needs its mask"),
            (["--mask", "x.png"], "the file's name does not say which part it is"),
            (["--support", "x"], "given twice"),
            (["data.classes=[a,b]"], "the annotated images decide this"),
            (["seed=1,2"], "several values"),
            (["--classes", "body"], "values that no class has"),
            (["--classes", "nowhere.yaml"], "nowhere.yaml"),
            (["method.start.kind=file", "method.start.path=nowhere"], "nowhere"),
            (["method.patch_size=900", "method.patches_per_side=2"], "patch"),
        ],
    )
    def test_mistakes_come_before_any_learning(
        self, learn: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str],
        words: str,
    ) -> None:  # fmt: skip
        no_learning(monkeypatch)
        outcome = learn(*arguments)
        assert outcome.code == 2 and words in outcome.err, outcome.err
        assert "Traceback" not in outcome.err and not (tmp_path / "out/embeddings.safetensors").exists()

    @pytest.mark.parametrize(
        "kind", ["no GPU", "no folder", "an empty folder", "no image", "a broken mask", "a full disk", "a small GPU"]
    )
    def test_remedies_are_of_this_command(
        self, learn: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        no_learning(monkeypatch)
        (tmp_path / "empty").mkdir()
        (tmp_path / "broken.png").write_bytes(b"\x89PNG")
        word, annotated = {
            "no GPU": ("--device cpu", None),
            "no folder": ("correct the folder's name", ["--support", str(tmp_path / "nowhere")]),
            "an empty folder": ("or name another folder", ["--support", str(tmp_path / "empty")]),
            "no image": ("correct the name", ["--image", "nowhere.png", "--mask", "nowhere.png"]),
            "a broken mask": ("export it again", ["--image", str(tmp_path / "broken.png"), "--mask", "b.png"]),
            "a full disk": ("--out", None),
            "a small GPU": ("trainer.precision=bf16", None),
        }[kind]
        monkeypatch.setattr("slime_bench.trial.device.has_cuda", lambda: False)
        error = {
            "a full disk": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "out")),
            "a small GPU": torch.OutOfMemoryError("CUDA out of memory"),
        }.get(kind)
        if error is not None:

            def fails(*_: object) -> None:
                raise error

            monkeypatch.setattr(learning, "fit", fails)
        device = ["--device", "cuda"] if kind == "no GPU" else []
        outcome = learn(*device) if annotated is None else learn(annotated=annotated)
        assert outcome.code == 2 and word in outcome.err.partition("what to do")[2], outcome.err
        foreign = ["trainer=", "data.root", "data_root", "prepare the data", "output_root", "data.batch_size", "make "]
        assert [each for each in foreign if each in outcome.err] == [] and "Traceback" not in outcome.err, outcome.err

    def test_results_among_the_images(self, learn: Callable[..., Outcome], photos: Path, tmp_path: Path) -> None:
        assert learn(out="photos").code == 2 and len(list(photos.iterdir())) == 3
        assert learn(out="photos/masks").code == 0
        outcome = learn(out="photos/masks")
        assert outcome.code == 0 and "(3 of them earlier)" in outcome.out

    def test_no_warnings_of_libraries(
        self, learn: Callable[..., Outcome], photos: Path, monkeypatch: pytest.MonkeyPatch, recwarn: Any
    ) -> None:
        for path in photos.iterdir():
            path.unlink()
        Image.new("RGB", (40, 40)).save(photos / "odd.png", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01")
        Image.new("RGB", (150, 100)).save(photos / "large.webp")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # from which on Pillow warns; it refuses twice as many
        outcome = learn()
        assert outcome.code == 0 and "2 image(s) segmented" in outcome.out and "Warning" not in outcome.err
        assert not [str(each.message) for each in recwarn if "PIL" in each.filename]


class TestFromATrial:
    def test_a_test_image_gets_the_trials_own_prediction(self, swept: tuple[Bench, Outcome]) -> None:
        """With the trial's noise, which is keyed by the image's id; `segment` keys it by the content."""
        bench = swept[0]
        segmenter = Segmenter.load(bench.folder() / "state.safetensors", device="cpu")
        items, _ = read_qualitative(bench.folder() / "qualitative.npz")
        for item in items:
            image = read_image(bench.data / f"test/images/{item.image_id}.png")
            (scored,) = segmenter.scored([segmenter.fitted(image)], [item.image_id])
            assert (label_map(scored.maps, image.shape[:2], "squash") == item.prediction).all()

    def test_one_picture_under_two_names(self, swept: tuple[Bench, Outcome], tmp_path: Path) -> None:
        bench = swept[0]
        photo = sorted((bench.data / "test/images").iterdir())[0]
        (tmp_path / "photos").mkdir()
        for name in ("one.png", "other.png"):
            shutil.copy(photo, tmp_path / "photos" / name)
        outcome = with_state(bench, tmp_path / "photos", tmp_path / "out")
        assert outcome.code == 0, outcome.err
        assert len({(tmp_path / f"out/labels/{name}.png").read_bytes() for name in ("one", "other")}) == 1

    def test_images_of_every_form(self, swept: tuple[Bench, Outcome], tmp_path: Path) -> None:
        bench, own, turned = swept[0], tmp_path / "own", Image.Exif()
        own.mkdir()
        turned[0x0112] = 6  # the camera was held upright
        with Image.open(bench.data / "test/images/car-test-0.png") as picture:
            wide = picture.resize((90, 40))
            wide.save(own / "turned.jpg", exif=turned)
            wide.convert("P").save(own / "palette.png")
            wide.convert("RGBA").save(own / "alpha.PNG")
            wide.convert("CMYK").save(own / "one stem.jpg")
            wide.convert("LA").save(own / "one stem.png")
            wide.save(own / "really a.png", "JPEG")
            wide.save(own / "a.webp")
        (own / "p.heic").touch()
        outcome = with_state(bench, own, tmp_path / "out")
        assert outcome.code == 0 and "left out: HEIC, which is to be exported as JPEG: p.heic" in outcome.err, (
            outcome.err
        )
        sizes = {}
        for path in (tmp_path / "out/labels").iterdir():
            with Image.open(path) as label:
                sizes[path.name.removesuffix(".png")] = label.size
        names = ["a", "alpha", "one stem.jpg", "one stem.png", "palette", "really a", "turned"]
        assert sizes == {name: (40, 90) if name == "turned" else (90, 40) for name in names}

    def test_the_backbone_may_have_moved(self, swept: tuple[Bench, Outcome], tmp_path: Path) -> None:
        bench = swept[0]
        shutil.copytree(bench.sd, tmp_path / "moved")
        images = bench.data / "val" / "images"
        assert with_state(bench, images, tmp_path / "out", "--weights", str(tmp_path / "moved")).code == 0
        outcome = with_state(bench, images, tmp_path / "out", "--weights", str(tmp_path / "nowhere"))
        assert outcome.code == 2 and "nowhere" in outcome.err and "what to do" in outcome.err

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--classes", "a,b"], "the embeddings decide this"),
            (["data.classes=[a]"], "cannot be changed"),
            (["method.mapz=cross"], "mapz"),
            (["data.fit=banana"], "fit"),
        ],
    )
    def test_what_the_embeddings_decide(
        self, swept: tuple[Bench, Outcome], tmp_path: Path, arguments: list[str], words: str
    ) -> None:
        bench = swept[0]
        outcome = with_state(bench, bench.data / "val" / "images", tmp_path / "out", *arguments)
        assert outcome.code == 2 and words in outcome.err and "Traceback" not in outcome.err, outcome.err

    @pytest.mark.parametrize(
        "kind",
        ["no state", "not a state", "another file", "a folder", "no images", "an unreadable image", "a file in the way",
         "a folder in use", "no permission"],
    )  # fmt: skip
    def test_bad_input(self, finished: Bench, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        path, images, out = finished.folder() / "state.safetensors", finished.data / "val" / "images", tmp_path / "out"
        words = {
            "no state": "state.safetensors",
            "not a state": "state.safetensors",
            "another file": "diffusion_pytorch_model.safetensors",
            "a folder": "embeddings import",
            "no images": "empty",
            "an unreadable image": "broken.png",
            "a file in the way": "out",
            "a folder in use": "areas.csv",
            "no permission": "Permission denied",
        }
        if kind == "no state":
            path.unlink()
        elif kind == "not a state":
            path.write_bytes(b"not tensors")
        elif kind == "another file":
            path = finished.sd / "unet" / "diffusion_pytorch_model.safetensors"
        elif kind == "a folder":
            path = finished.sd
        elif kind == "no images":
            images = tmp_path / "empty"
            images.mkdir()
        elif kind == "an unreadable image":
            (images / "broken.png").write_bytes(b"\x89PNG")
        elif kind == "a file in the way":
            out.write_text("taken")
        elif kind == "a folder in use":
            out.mkdir()
            (out / "areas.csv").write_text("my own")
        else:  # chmod would not stop root

            def denied(target: str, content: bytes) -> None:
                raise StorageError("The file could not be written.", path=target, found="Permission denied")

            monkeypatch.setattr("slime_bench.segment.folder.write_atomic", denied)
        outcome = reuse(path, images, out)
        assert outcome.code == 2 and words[kind] in outcome.err, outcome.err
        assert "what to do" in outcome.err and "Traceback" not in outcome.err


@pytest.mark.parametrize("method", ["feature_probe", "feature_knn"])
def test_a_method_without_steps_learns_and_is_reused(
    method: str, tiny_sd: Path, car_pictures: Path, photos: Path, tmp_path: Path
) -> None:
    """From one annotated image, and again from what was learnt: the same label maps, and no embeddings to export."""
    pair = [f"{car_pictures}/support/{kind}/car-support-0.png" for kind in ("images", "labels")]
    small = [f"data.image_size={SIDE}", f"backbone.image_size={SIDE}", f"method={method}", "data.batch_size=2"]
    places = ["--images", str(photos), "--device", "cpu"]
    done = command(
        "segment", "--image", pair[0], "--mask", pair[1], *places, "--out", str(tmp_path / "first"),
        "--weights", str(tiny_sd), *small,
    )  # fmt: skip
    assert done.code == 0, done.err
    (state,) = (tmp_path / "first").rglob("*.safetensors")
    tensors, facts = read_state(state)
    assert facts["method"]["name"] == method and "present" in tensors
    again = reuse(state, photos, tmp_path / "second")
    assert again.code == 0, again.err
    first, second = (
        {k: v for k, v in contents(tmp_path / name).items() if k.startswith("labels/")} for name in ("first", "second")
    )
    assert first and first == second
    refused = command("embeddings", "export", "--state", str(state), "--out", str(tmp_path / "theirs"))
    assert refused.code == 2 and "embeddings" in refused.err and "Traceback" not in refused.err

"""`slime-bench segment`: the embeddings of a trial on a folder of images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from e2e.conftest import Bench, Outcome, command
from slime_bench.qualitative import read_qualitative


def segment(bench: Bench, images: Path, out: Path, *arguments: str) -> Outcome:
    state = bench.folder() / "state.safetensors"
    return command(
        "segment", "--state", str(state), "--images", str(images), "--out", str(out), "--device", "cpu", *arguments
    )


def test_a_test_image_gets_the_trials_own_prediction(swept: tuple[Bench, Outcome], tmp_path: Path) -> None:
    bench = swept[0]
    outcome = segment(bench, bench.data / "test" / "images", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    items, _ = read_qualitative(bench.folder() / "qualitative.npz")
    for item in items:
        found = np.array(Image.open(tmp_path / "out" / f"{item.image_id}.png"))
        assert (found == item.prediction).all()


def test_any_image_gets_a_label_map_of_its_own_size(swept: tuple[Bench, Outcome], tmp_path: Path) -> None:
    bench, own = swept[0], tmp_path / "own"
    own.mkdir()
    with Image.open(bench.data / "test/images/car-test-0.png") as picture:
        picture.resize((90, 40)).save(own / "wide.jpg")
        picture.convert("L").resize((33, 70)).save(own / "grey.png")
    assert segment(bench, own, tmp_path / "out").code == 0
    for name, size in (("wide", (90, 40)), ("grey", (33, 70))):
        with (
            Image.open(tmp_path / "out" / f"{name}.png") as label,
            Image.open(tmp_path / "out" / "colour" / f"{name}.png") as shown,
        ):
            assert (label.size, label.mode, shown.size, shown.mode) == (size, "L", size, "RGB")
            assert int(np.array(label).max()) < len(bench.result().classes)


def test_the_backbone_may_have_moved(swept: tuple[Bench, Outcome], tmp_path: Path) -> None:
    bench = swept[0]
    shutil.copytree(bench.sd, tmp_path / "moved")
    images = bench.data / "val" / "images"
    assert segment(bench, images, tmp_path / "out", "--weights", str(tmp_path / "moved")).code == 0
    outcome = segment(bench, images, tmp_path / "out", "--weights", str(tmp_path / "nowhere"))
    assert outcome.code == 2 and "nowhere" in outcome.err and "what to do" in outcome.err


@pytest.mark.parametrize(
    "kind", ["no state", "not a state", "another file", "no images", "an unreadable image", "a file in the way"]
)
def test_bad_input(finished: Bench, tmp_path: Path, kind: str) -> None:
    state, images, out = finished.folder() / "state.safetensors", finished.data / "val" / "images", tmp_path / "out"
    words = {
        "no state": "state.safetensors",
        "not a state": "state.safetensors",
        "another file": "diffusion_pytorch_model.safetensors",
        "no images": "empty",
        "an unreadable image": "broken.png",
        "a file in the way": "out",
    }
    if kind == "no state":
        state.unlink()
    elif kind == "not a state":
        state.write_bytes(b"not tensors")
    elif kind == "another file":
        state = finished.sd / "unet" / "diffusion_pytorch_model.safetensors"
    elif kind == "no images":
        images = tmp_path / "empty"
        images.mkdir()
    elif kind == "an unreadable image":
        (images / "broken.png").write_bytes(b"\x89PNG")
    else:
        out.write_text("taken")
    outcome = command("segment", "--state", str(state), "--images", str(images), "--out", str(out), "--device", "cpu")
    assert outcome.code == 2 and words[kind] in outcome.err, outcome.err
    assert "what to do" in outcome.err and "Traceback" not in outcome.err

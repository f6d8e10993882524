"""The figures' scenes: masks are what is drawn, each shows what it is about, and no backbone was trained on one."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.ndimage import binary_dilation

from data_prep.pretrain.stream import stream_picture
from slime_bench.data.mini_world import render as mini_world
from slime_bench.data.mini_world import scenes
from slime_bench.data.mini_world.animals import BUILDS
from slime_bench.data.mini_world.canvas import BLOCK, OTHER, SUPERSAMPLE, Canvas
from slime_bench.data.mini_world.render import OTHER_SUBJECT, STREAM, Picture, classes_of, render
from slime_bench.data.mini_world.scenes import COVERED, FIGURE_SCENES, TINY
from slime_bench.errors import ConfigError, DataError
from slime_bench.paths import config_dir

SPLITS = ("support", "val", "test")
COUNT = 6
LABELS = [name for name in FIGURE_SCENES if name.startswith("granularity")]


@cache
def pictures(scene: str, split: str) -> list[Picture]:
    return [render(scene, split, index) for index in range(COUNT)]


def every(scene: str) -> list[Picture]:
    return [picture for split in SPLITS for picture in pictures(scene, split)]


@pytest.mark.parametrize("scene", FIGURE_SCENES)
def test_masks_are_what_is_drawn(scene: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn once more with a flat grey for each label on black: the picture then is the label map."""
    painted, flat = Canvas.paint, []

    def grey(canvas: Canvas, polygon: Any, colour: Any, label: int | None, pose: Any) -> None:
        if label is not None:  # shades lie on a part
            painted(canvas, polygon, (label, label, label), label, pose)

    def kept(canvas: Canvas, rng: Any) -> Any:
        flat.append(np.asarray(canvas._image)[SUPERSAMPLE // 2 :: SUPERSAMPLE, SUPERSAMPLE // 2 :: SUPERSAMPLE, 0])
        return finish(canvas, rng)

    finish, found = Canvas.finish, [pictures(scene, split)[0] for split in SPLITS]
    monkeypatch.setattr(Canvas, "paint", grey)
    monkeypatch.setattr(Canvas, "finish", kept)
    monkeypatch.setattr(Canvas, "blend", lambda *_: None)
    start = Canvas.__init__
    monkeypatch.setattr(Canvas, "__init__", lambda canvas, background: start(canvas, background * 0))
    for split in SPLITS:
        render(scene, split, 0)
    merge = {BLOCK: 0, OTHER: 0, **dict(enumerate(FIGURE_SCENES[scene].merge))}
    for drawn, picture in zip(flat, found, strict=True):
        assert np.array_equal(np.vectorize(merge.get)(drawn), picture.label)
        assert np.array_equal(drawn == OTHER, picture.scene == OTHER_SUBJECT)
        assert np.array_equal(drawn == BLOCK, picture.scene == 3)


@pytest.mark.parametrize("scene", FIGURE_SCENES)
def test_a_picture_is_a_function_of_scene_split_and_index(scene: str) -> None:
    again = render(scene, "test", 1)
    for name in ("image", "label", "scene"):
        assert np.array_equal(getattr(again, name), getattr(pictures(scene, "test")[1], name))
    hashes = {hashlib.sha256(each.image.tobytes()).hexdigest() for each in every(scene)}
    assert len(hashes) == len(SPLITS) * COUNT


@pytest.mark.parametrize("scene", FIGURE_SCENES)
def test_every_support_picture_shows_every_class(scene: str) -> None:
    classes, least = classes_of(scene), FIGURE_SCENES[scene].least
    for picture in pictures(scene, "support"):
        assert np.bincount(picture.label.ravel(), minlength=len(classes))[1:].min() >= least
    for picture in every(scene):
        assert picture.label.max() < len(classes) and picture.label.any()


def test_no_picture_of_the_pretraining_stream_is_one_of_a_scene() -> None:
    """The stream is made of subjects alone, with other keys, and no scene has such a split."""
    for scene in FIGURE_SCENES:
        with pytest.raises(ConfigError, match="no such picture"):
            render(scene, STREAM, 0)
    seen = {stream_picture(index).image.tobytes() for index in range(90)}
    assert not seen & {each.image.tobytes() for scene in FIGURE_SCENES for each in every(scene)}


def test_pretraining_knows_no_scene(repository: Path) -> None:
    for file in (repository / "data_prep" / "pretrain").glob("*.py"):
        text = file.read_text()
        assert not [name for name in ("FIGURE_SCENES", "mini_world.scenes", "mini_world.animals") if name in text], file


# --- what each is about


@pytest.mark.parametrize("subject", ["car", "horse"])
def test_granularities_are_three_label_sets_of_the_same_pictures(subject: str) -> None:
    coarse, middle, fine = (f"granularity_{subject}_{level}" for level in ("coarse", "middle", "fine"))
    for a, b, c in zip(every(coarse), every(middle), every(fine), strict=True):
        assert np.array_equal(a.image, b.image) and np.array_equal(b.image, c.image)
        assert np.array_equal(a.label > 0, b.label > 0) and np.array_equal(b.label > 0, c.label > 0)
        # Every fine part lies within one of the table's.
        for part in np.unique(c.label):
            assert len(np.unique(b.label[c.label == part])) == 1
    assert len(classes_of(coarse)) < len(classes_of(middle)) < len(classes_of(fine))


def test_camouflage_brings_the_horse_nearer_to_its_background() -> None:
    weak, middle, strong = (every(f"camouflage_{percent}") for percent in (50, 75, 90))
    for pictures_of in zip(weak, middle, strong, strict=True):
        inside = pictures_of[0].label > 0
        assert all(np.array_equal(each.label > 0, inside) for each in pictures_of)
        beside = ~binary_dilation(inside, np.ones((3, 3)))  # a pixel at an edge has some of both
        assert all(np.array_equal(each.image[beside], pictures_of[0].image[beside]) for each in pictures_of[1:])
    spread = [np.mean([_contrast(each) for each in group]) for group in (weak, middle, strong)]
    assert spread[0] > spread[1] > spread[2]


def _contrast(picture: Picture) -> float:
    """How far the mean colours of the parts lie from the horse's own mean."""
    inside = picture.label > 0
    mean = picture.image[inside].mean(0)
    parts = [picture.image[picture.label == part].mean(0) for part in np.unique(picture.label[inside])]
    return float(np.mean([np.abs(each - mean).mean() for each in parts]))


@pytest.mark.parametrize(("scene", "covered"), [("occluded_support", {"support", "val"}), ("occluded_query", {"test"})])
def test_a_person_covers_a_fifth_to_a_half(scene: str, covered: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    draw_person = scenes.draw_person

    def measured(canvas: Canvas, *rest: Any) -> None:
        before = (canvas.seen() > 0) & (canvas.seen() < BLOCK)
        draw_person(canvas, *rest)
        shares.append(float((before & (canvas.seen() == BLOCK)).sum() / before.sum()))

    monkeypatch.setattr(scenes, "draw_person", measured)
    for split in SPLITS:
        shares.clear()
        render(scene, split, 2)
        assert bool(shares) == (split in covered)
        assert not shares or COVERED[0] <= shares[-1] <= COVERED[1]


def test_other_animals_are_tested_and_horses_are_learned_from() -> None:
    for split in ("support", "val"):
        assert all("horse" in picture.caption.split() for picture in pictures("other_animals", split))
    words = {word for index in range(40) for word in render("other_animals", "test", index).caption.split()}
    assert set(BUILDS) <= words and "horse" not in words


def test_two_subjects_show_both_and_annotate_one() -> None:
    for picture in every("two_subjects"):
        car = picture.scene == OTHER_SUBJECT
        assert (picture.label == 1).sum() >= 300 and car.sum() >= 300 and not (car & (picture.label > 0)).any()


def test_tiny_is_tiny() -> None:
    sizes = [int((picture.label == 1).sum()) for picture in every("tiny")]
    assert min(sizes) >= TINY[0] and max(sizes) <= TINY[1] and max(sizes) >= 3 * min(sizes)


def test_a_scene_without_its_subject_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini_world, "_ATTEMPTS", 3)
    monkeypatch.setattr(scenes, "TINY", (10_000, 20_000))
    with pytest.raises(DataError, match="does not show its subject") as caught:
        render("tiny", "test", 0)
    assert caught.value.path == "tiny/test[0]" and "3 drawings" in str(caught.value.found)


@pytest.mark.parametrize("scene", FIGURE_SCENES)
def test_the_data_sets_classes_are_the_scenes(scene: str) -> None:
    content = yaml.safe_load((config_dir() / "data" / f"mini_{scene}.yaml").read_text())
    (base,) = content["defaults"]
    inherited = yaml.safe_load((config_dir() / "data" / f"{base}.yaml").read_text())["classes"]
    assert content.get("classes", inherited) == classes_of(scene) and content["subject"] == scene
    assert content["root"] == f"${{data_root}}/mini/{scene}"

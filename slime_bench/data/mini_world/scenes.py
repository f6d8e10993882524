"""Scenes for the experiments after SLiMe's figures: what the table's pictures do not show, with masks as exact.

A scene draws on a canvas and says what it has drawn, or None where that does not show what the scene is about: it is
then drawn again from the next key. No backbone was trained on one of them, and there is no pre-training split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from slime_bench.data.mini_world.animals import BUILDS, draw_animal, draw_person
from slime_bench.data.mini_world.canvas import (
    BLOCK,
    COLOURS,
    OTHER,
    Canvas,
    choose,
    ellipse,
    jitter,
    random_pose,
)
from slime_bench.data.mini_world.canvas import SCENES as SURFACES
from slime_bench.data.mini_world.subjects import (
    CLASSES,
    SUBJECTS,
    CarLabels,
    HorseLabels,
    draw_car,
    draw_face,
    draw_horse,
    paint_clutter,
)

Draw = Callable[[Canvas, np.random.Generator, str, np.ndarray], list[str] | None]
"""Canvas, generator, split and background uint8 [SIZE,SIZE,3] -> words, or None for another attempt."""

COVERED = (0.2, 0.5)
"""Least and largest part of a subject that a person in front of it covers."""
TINY = (4, 40)
"""Least and most pixels of a necklace."""
_NECKLACE = len(CLASSES["face"])  # its label; those before are the face's
_LEAST_SEEN = 0.9
"""Part of the subject behind another that is seen."""


@dataclass(frozen=True)
class Scene:
    """A data set of pictures of one kind.

    Attributes:
        classes: K names in label order. draw: see `Draw`.
        merge: for each label that is painted the class that it becomes.
        pictures: scenes of one name have the same pictures, whatever their labels.
        shown: labels that are painted in every support picture, each on at least `least` pixels.
        surfaces: that the background may show.
    """

    classes: list[str]
    draw: Draw
    merge: tuple[int, ...]
    pictures: str
    shown: Sequence[int]
    least: int = 12
    surfaces: tuple[str, ...] = tuple(SURFACES)


def _fine(
    canvas: Canvas, rng: np.random.Generator, split: str, background: np.ndarray, *, subject: str, pieces: type
) -> list[str]:
    """A car or a horse of which each of the `pieces`, `CarLabels` or `HorseLabels`, has a label of its own."""
    paint_clutter(canvas, rng, int(rng.integers(0, 3)), (8, 24), edge_only=False)
    return SUBJECTS[subject](canvas, rng, labels=pieces(*range(1, len(pieces()) + 1)))


def _camouflage(
    canvas: Canvas, rng: np.random.Generator, split: str, background: np.ndarray, *, strength: float
) -> list[str]:
    words = draw_horse(canvas, rng)
    # The texture of another place of the same surface: taken from its own place, the horse would be transparent.
    canvas.blend(background[:, ::-1].copy(), strength)
    return [f"hidden: {words[0]}", *words[1:]]


def _occluded(
    canvas: Canvas, rng: np.random.Generator, split: str, background: np.ndarray, *, subject: str, splits: set[str]
) -> list[str] | None:
    words = SUBJECTS[subject](canvas, rng)
    if split not in splits:
        return words
    before = _parts(canvas)
    place = (rng.uniform(38, 90), rng.uniform(64, 70))
    draw_person(canvas, rng, random_pose(rng, (48, 58), 5, 0.05, 0, centre=place))
    share = 1 - _parts(canvas).sum() / before.sum()
    return [*words, "behind a person"] if COVERED[0] <= share <= COVERED[1] else None


def _other_animals(canvas: Canvas, rng: np.random.Generator, split: str, background: np.ndarray) -> list[str]:
    return draw_animal(canvas, rng, choose(rng, tuple(BUILDS))) if split == "test" else draw_horse(canvas, rng)


def _two_subjects(canvas: Canvas, rng: np.random.Generator, split: str, background: np.ndarray) -> list[str] | None:
    turned = bool(rng.integers(2))
    left, right = (random_pose(rng, (32, 38), 10, 0.1, 6, centre=(x, rng.uniform(50, 78))) for x in (33, 95))
    horse, car = (right, left) if turned else (left, right)
    words: list[str] = []
    behind = 0
    for name in ("horse", "car") if rng.integers(2) else ("car", "horse"):
        behind = behind or int((canvas.seen() > 0).sum())  # pixels of the first, once it is there
        if name == "horse":
            words += draw_horse(canvas, rng, pose=horse)
        else:
            words += draw_car(canvas, rng, pose=car, labels=CarLabels(*[OTHER] * 8))
    horses, cars = (int(each.sum()) for each in (_parts(canvas), canvas.seen() == OTHER))
    first = horses if words[0].split()[2] == "horse" else cars
    return words if first >= _LEAST_SEEN * behind else None


def _tiny(canvas: Canvas, rng: np.random.Generator, split: str, background: np.ndarray) -> list[str] | None:
    """A face with a string of one to nine beads on its neck, the only part that is annotated."""
    pose = random_pose(rng, (48, 60), 10, 0.06, 6)
    words = draw_face(canvas, rng, pose=pose)
    beads, label = int(rng.integers(1, 10)), _NECKLACE
    size, name = rng.uniform(0.018, 0.046), choose(rng, ("yellow", "white", "cyan", "red", "green", "blue", "purple"))
    colour, low = jitter(rng, COLOURS[name], 12), rng.uniform(0.6, 0.68)
    for index in range(beads):
        x = (2 * index - beads + 1) * size * 1.15  # beads that just do not touch
        canvas.paint(ellipse(x, low - 2.2 * x * x, size, size), colour, label, pose)
    count = int((canvas.seen() == label).sum())
    return [*words, f"{name} necklace"] if TINY[0] <= count <= TINY[1] else None


def _parts(canvas: Canvas) -> np.ndarray:
    """Where an annotated part is seen, bool [SIZE,SIZE]."""
    label = canvas.seen()
    return (label > 0) & (label < BLOCK)


def _granularities() -> dict[str, Scene]:
    fine_car = ["body", "light", "plate", "front wheel", "rear wheel", "hub", "windscreen", "door window"]
    fine_horse = ["head", "ear", "muzzle", "neck", "torso", "front leg", "hind leg", "hoof", "tail"]
    found: dict[str, Scene] = {}
    for subject, names, pieces in (("car", fine_car, CarLabels), ("horse", fine_horse, HorseLabels)):
        pictures, fine, draw = f"granularity_{subject}", len(names), partial(_fine, subject=subject, pieces=pieces)
        shown, parts = range(1, fine + 1), (0, *pieces())
        found[f"{pictures}_coarse"] = Scene(["background", subject], draw, (0, *[1] * fine), pictures, shown)
        found[f"{pictures}_middle"] = Scene(CLASSES[subject], draw, parts, pictures, shown)
        found[f"{pictures}_fine"] = Scene(["background", *names], draw, (0, *shown), pictures, shown)
    return found


def _of_table(subject: str, draw: Draw, pictures: str, surfaces: tuple[str, ...] = tuple(SURFACES)) -> Scene:
    """A scene with the parts of a subject of the tables."""
    parts = range(1, len(CLASSES[subject]))
    return Scene(CLASSES[subject], draw, (0, *parts), pictures, parts, surfaces=surfaces)


_TEXTURED = ("grass", "sand", "road", "brick", "forest")

FIGURE_SCENES: dict[str, Scene] = {
    **_granularities(),
    **{
        f"camouflage_{percent}": _of_table(
            "horse", partial(_camouflage, strength=percent / 100), "camouflage", _TEXTURED
        )
        for percent in (50, 75, 90)
    },
    "occluded_support": _of_table(
        "car", partial(_occluded, subject="car", splits={"support", "val"}), "occluded_support"
    ),
    "occluded_query": _of_table("horse", partial(_occluded, subject="horse", splits={"test"}), "occluded_query"),
    "other_animals": _of_table("horse", _other_animals, "other_animals"),
    "two_subjects": Scene(["background", "horse"], _two_subjects, (0, 1, 1, 1, 1), "two_subjects", range(1, 5)),
    "tiny": Scene(["background", "necklace"], _tiny, (*[0] * _NECKLACE, 1), "tiny", [_NECKLACE], TINY[0]),
}


def paint_scene(
    scene: Scene, canvas: Canvas, rng: np.random.Generator, split: str, background: np.ndarray
) -> list[str] | None:
    """Draw one attempt at a picture; words, or None where it does not show what it should."""
    words = scene.draw(canvas, rng, split, background)
    counts = np.bincount(canvas.seen().ravel(), minlength=256)
    return None if split == "support" and counts[list(scene.shown)].min() < scene.least else words


def merged(scene: Scene, label: np.ndarray) -> np.ndarray:
    """Painted labels uint8 [SIZE,SIZE] as classes of the scene; `BLOCK` and `OTHER` are background."""
    table = np.zeros(256, dtype=np.uint8)
    table[: len(scene.merge)] = scene.merge
    return table[label]

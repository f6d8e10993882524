"""What the mini SegGPT learns from: two pictures, and the masks of both painted in the same random colours."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from slime_bench.data.mini_world.canvas import (
    COLOURS,
    SIZE,
    Canvas,
    Point,
    chance,
    choose,
    ellipse,
    jitter,
    limb,
    paint_background,
    random_pose,
)
from slime_bench.data.mini_world.render import STREAM, Picture, render
from slime_bench.data.mini_world.subjects import CLASSES, paint_clutter

SUBJECTS = ("horse", "face")
"""The car is never shown: the table of cars then says what the model does with what it has not seen."""
WINDOW = 512
"""Pictures of a subject among which pairs are drawn; it moves on by one picture with each pair."""
SHAPES, SAME = 0.3, 0.15  # shares of pairs of general shapes, and of two views of one picture
BINARY = 0.4  # share of draws of white on black
GRID = np.stack(np.meshgrid(*[[32, 128, 223]] * 3), -1).reshape(-1, 3)
"""27 colours far apart."""
LEAST = 0.001  # share of the prompt's pixels, from which on a label can be painted


class Pair(NamedTuple):
    """Prompt and query: images uint8 [2,S,S,3] RGB, their masks uint8 [2,S,S,3]."""

    images: np.ndarray
    masks: np.ndarray


def draw_pair(index: int, side: int, rng: np.random.Generator, fixed: bool = False) -> Pair:
    """Pair number `index` of the endless stream, in pictures of `side` pixels.

    Args:
        fixed: whether every part has its own colour in all pairs, so that the prompt says nothing; without shapes.
    """
    subject, first = SUBJECTS[index % len(SUBJECTS)], index // len(SUBJECTS)
    if not fixed and chance(rng, SHAPES):
        pictures = shapes(rng)
    else:
        one, other = (stream_picture(subject, first + int(place)) for place in rng.choice(WINDOW, 2, replace=False))
        pictures = [(each.image, each.label) for each in (one, one if chance(rng, SAME) else other)]
    views = [view(image, label, side, rng) for image, label in pictures]
    colours = fixed_colours(subject) if fixed else draw_colours(views[0][1], rng)
    return Pair(np.stack([image for image, _ in views]), np.stack([colours[label] for _, label in views]))


@lru_cache(maxsize=4 * WINDOW)
def stream_picture(subject: str, index: int) -> Picture:
    """Picture `index` of a subject's pre-training stream."""
    return render(subject, STREAM, index)


def view(image: np.ndarray, label: np.ndarray, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A square of an image uint8 [128,128,3] and its label map uint8 [128,128], the whole of it in half of the cases,
    perhaps mirrored, at `side` pixels."""
    extent = SIZE if chance(rng, 0.5) else int(rng.integers(SIZE * 5 // 8, SIZE))
    x, y = (int(each) for each in rng.integers(0, SIZE - extent + 1, size=2))
    box = (x, y, x + extent, y + extent)
    small = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR, box=box))
    labels = np.asarray(Image.fromarray(label).resize((side, side), Image.Resampling.NEAREST, box=box))
    return (small[:, ::-1], labels[:, ::-1]) if chance(rng, 0.5) else (small, labels)


def draw_colours(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A colour for each label, uint8 [256,3]: a random subset of those that the prompt shows, in random groups.

    Some draws are binary, one group in white on black, mostly of a single part, as a method prompts. In the others
    groups have random colours: the more of them, the more a picture teaches. The rest of the picture is black or has a
    colour too; it can also be part of a group.

    Args:
        label: uint8 [S,S], of the prompt.
    """
    shown = np.flatnonzero(np.bincount(label.ravel()) >= LEAST * label.size)
    shown = rng.permutation(shown if chance(rng, 0.15) or len(shown) == 1 else shown[shown > 0])
    colours = np.zeros((256, 3), dtype=np.uint8)
    if chance(rng, BINARY):
        colours[shown[: 1 if chance(rng, 0.7) else int(rng.integers(1, len(shown) + 1))]] = 255
        return colours
    grid = rng.permutation(GRID)  # with a little noise; the last one is the rest's
    groups = int(rng.integers(1, len(shown) + 1))
    drawn = grid[:groups] + rng.integers(-32, 33, size=(groups, 3))
    if chance(rng, 0.4):
        colours[:] = grid[-1]
    for place, each in enumerate(shown[: int(rng.integers(groups, len(shown) + 1))]):
        colours[each] = drawn[place if place < groups else int(rng.integers(groups))]
    return colours


def fixed_colours(subject: str) -> np.ndarray:
    """A colour for each label, uint8 [256,3]; the background is black."""
    colours = np.zeros((256, 3), dtype=np.uint8)
    parts = len(CLASSES[subject]) - 1
    first = sum(len(CLASSES[each]) - 1 for each in SUBJECTS[: SUBJECTS.index(subject)])
    colours[1 : parts + 1] = GRID[first : first + parts]
    return colours


def shapes(rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two pictures of the same two to six things, in other places and poses, in some pairs in other colours too: images
    uint8 [128,128,3] and label maps uint8 [128,128]."""
    names = list(COLOURS)
    things = [(_polygons(rng), COLOURS[choose(rng, names)]) for _ in range(int(rng.integers(2, 7)))]
    recoloured = chance(rng, 0.25)
    found = []
    for second in (False, True):
        canvas = Canvas(paint_background(rng)[0])
        paint_clutter(canvas, rng, int(rng.integers(0, 3)), (8, 30), edge_only=False)
        for label in rng.permutation(len(things)):
            polygons, colour = things[label]
            fill = jitter(rng, COLOURS[choose(rng, names)] if recoloured and second else colour)
            pose = random_pose(rng, (10, 36), degrees=180, shear=0.2, shift=50)
            for polygon in polygons:
                canvas.paint(polygon, fill, int(label) + 1, pose)
        found.append(canvas.finish(rng))
    return found


def _polygons(rng: np.random.Generator) -> list[list[Point]]:
    """An ellipse, a polygon or stripes, in [-1,1]."""
    kind = choose(rng, ["ellipse", "polygon", "stripes"])
    if kind == "ellipse":
        return [ellipse(0, 0, 1, float(rng.uniform(0.3, 1)))]
    if kind == "stripes":
        width = float(rng.uniform(0.15, 0.35))
        return [limb((-1, y), (1, y), width, width) for y in np.linspace(-0.8, 0.8, int(rng.integers(2, 5))).tolist()]
    corners = int(rng.integers(3, 9))
    radii, turn = rng.uniform(0.4, 1, size=corners), 2 * np.pi / corners
    return [[(float(r * np.cos(i * turn)), float(r * np.sin(i * turn))) for i, r in enumerate(radii)]]

"""Animals that no horse resembles, and a person to stand in front of things: for the scenes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from slime_bench.data.mini_world.canvas import (
    BLOCK,
    SKIN_TONES,
    Canvas,
    Point,
    Pose,
    Rgb,
    between,
    choose,
    ellipse,
    jitter,
    limb,
    random_pose,
    scaled,
    some_colour,
)

_HEAD, _TORSO, _LEG, _TAIL = 1, 2, 3, 4


@dataclass(frozen=True)
class Build:
    """Proportions of an animal in its own frame, about [-1, 1], as `draw_animal` takes them.

    Attributes:
        coats: names of colours. body: half length and half height of the torso. leg: length and width.
        neck: length, width at the foot, and degrees above the horizontal. head: length and width.
        ears: `up`, `floppy` or `round`. horns: `none`, `curved`, `antlers` or `spiral`.
        tail: `tuft`, `curl`, `bushy` or `stub`. spots: whether the coat has some.
    """

    coats: tuple[str, ...]
    body: tuple[float, float]
    leg: tuple[float, float]
    neck: tuple[float, float, float]
    head: tuple[float, float]
    ears: str
    horns: str
    tail: str
    spots: bool = False


BUILDS: dict[str, Build] = {
    "giraffe": Build(
        ("yellow", "orange"), (0.36, 0.17), (0.72, 0.085), (0.86, 0.24, 70), (0.27, 0.14), "up", "none", "tuft", True
    ),
    "bull": Build(
        ("black", "brown", "white"), (0.6, 0.34), (0.42, 0.13), (0.2, 0.5, 12), (0.36, 0.26), "round", "curved", "tuft"
    ),
    "dachshund": Build(
        ("brown", "orange", "black"), (0.68, 0.17), (0.24, 0.11), (0.24, 0.24, 48), (0.36, 0.17), "floppy", "none", "up"
    ),
    "pig": Build(("pink",), (0.54, 0.36), (0.27, 0.12), (0.06, 0.5, 8), (0.32, 0.3), "floppy", "none", "curl"),
    "stag": Build(
        ("brown", "orange"), (0.44, 0.2), (0.62, 0.085), (0.44, 0.26, 62), (0.28, 0.16), "up", "antlers", "stub"
    ),
    "fox": Build(("orange", "red"), (0.46, 0.17), (0.38, 0.09), (0.2, 0.26, 40), (0.34, 0.19), "up", "none", "bushy"),
    "ram": Build(
        ("white", "gray"), (0.5, 0.32), (0.34, 0.1), (0.18, 0.36, 35), (0.32, 0.22), "floppy", "spiral", "stub"
    ),
}


def draw_animal(canvas: Canvas, rng: np.random.Generator, species: str) -> list[str]:
    """An animal of `BUILDS` from the side, with the parts of a horse: 1 head, 2 neck and torso, 3 leg, 4 tail.

    Horns and ears are of the head, as a person would say.
    """
    build = BUILDS[species]
    tall = build.neck[0] > 0.7
    pose = random_pose(rng, (44, 50) if tall else (54, 62), 8, 0.1, 5, centre=(64, 76) if tall else (66, 62))
    paint = partial(canvas.paint, pose=pose)
    name, coat = some_colour(rng, build.coats)
    dark = scaled(coat, 0.62) if sum(coat) > 150 else (78, 74, 72)

    long, high = (each * rng.uniform(0.94, 1.06) for each in build.body)
    rear, chest = 0.08 + long, 0.08 - long
    back, belly = -high, high
    _tail(paint, rng, build.tail, (rear - 0.02, back + 0.1), coat, dark)
    reach, width = build.leg
    for x, shade in ((chest + 0.16, 0.74), (rear - 0.1, 0.74), (chest + 0.07, 1.0), (rear - 0.19, 1.0)):
        knee = (x + rng.uniform(-0.07, 0.07), belly + reach * 0.4)
        foot = (knee[0] + rng.uniform(-0.06, 0.06), belly + reach)
        paint(limb((x, belly - 0.16), knee, width * 1.5, width), scaled(coat, shade), _LEG)
        paint(limb(knee, foot, width, width * 0.9), scaled(coat, shade), _LEG)
        paint(limb((foot[0], foot[1] - 0.05), (foot[0] - 0.04, foot[1] + 0.02), width, width * 1.3), dark, _LEG)
    paint(ellipse((rear + chest) / 2, 0, long + 0.03, high + 0.01), coat, _TORSO)
    paint(ellipse(rear - high, 0, high, high + 0.02), coat, _TORSO)
    paint(ellipse(chest + high, 0, high, high + 0.02), coat, _TORSO)

    span, thick, degrees = build.neck
    lift = math.radians(degrees + rng.uniform(-10, 10))
    start = (chest + 0.12, back + 0.13)
    poll = (start[0] - (span + 0.1) * math.cos(lift), start[1] - (span + 0.1) * math.sin(lift))
    paint(limb(start, poll, thick, min(thick, build.head[1] * 1.1)), coat, _TORSO)
    if build.spots:
        for _ in range(16):
            t, side = rng.uniform(0, 1), rng.uniform(-0.6, 0.6)
            on_body = (chest + 2 * long * t, side * high * 1.2)
            x, y = between(start, poll, t)
            on_neck = (x + side * 0.12, y)
            at = on_body if rng.random() < 0.55 else on_neck
            inside = on_body is not at or abs(2 * t - 1) < 0.85
            if inside:
                paint(ellipse(*at, rng.uniform(0.035, 0.06), rng.uniform(0.035, 0.06)), dark, None)
    _head(paint, rng, build, poll, coat, dark)
    return [f"a {name} {species}"]


def _head(paint: partial[None], rng: np.random.Generator, build: Build, poll: Point, coat: Rgb, dark: Rgb) -> None:
    length, thick = build.head
    bend = math.radians(rng.uniform(-42, -18))  # the muzzle points forwards and down
    muzzle = (poll[0] - length * math.cos(bend), poll[1] - length * math.sin(bend))
    colour = scaled(coat, 0.9)
    if build.horns == "curved":
        for side in (-0.02, 0.06):
            foot, tip = (poll[0] + side, poll[1] - thick * 0.3), (poll[0] + side - 0.2, poll[1] - thick - 0.2)
            bow = (poll[0] + side + 0.04, poll[1] - thick - 0.12)
            paint(limb(foot, bow, 0.08, 0.07), (226, 214, 186), _HEAD)
            paint(limb(bow, tip, 0.07, 0.02), (226, 214, 186), _HEAD)
    if build.horns == "antlers":
        for side in (-0.06, 0.08):
            foot, top = (poll[0] + side * 0.5, poll[1] - 0.08), (poll[0] + side * 2.4, poll[1] - 0.52)
            paint(limb(foot, top, 0.05, 0.035), (150, 116, 78), _HEAD)
            for t, reach in ((0.4, 0.2), (0.7, 0.17), (0.95, 0.12)):
                at = between(foot, top, t)
                paint(limb(at, (at[0] - reach, at[1] - 0.1), 0.04, 0.02), (150, 116, 78), _HEAD)
    if build.ears == "up":
        for side in (-0.05, 0.07):
            paint(limb((poll[0] + side, poll[1]), (poll[0] + side + 0.03, poll[1] - 0.22), 0.12, 0.02), dark, _HEAD)
    paint(ellipse(poll[0], poll[1], thick / 2 + 0.01, thick / 2 + 0.01), colour, _HEAD)
    paint(limb(poll, muzzle, thick, thick * 0.62), colour, _HEAD)
    snout = coat if build.tail == "curl" else dark
    paint(ellipse(muzzle[0], muzzle[1], thick * 0.36, thick * 0.36), scaled(snout, 0.85), _HEAD)
    if build.ears in ("floppy", "round"):
        droop = (poll[0] + 0.1, poll[1] + 0.2) if build.ears == "floppy" else (poll[0] + 0.2, poll[1] - 0.02)
        paint(limb((poll[0] + 0.03, poll[1] - 0.06), droop, 0.09, 0.13), dark, _HEAD)
    if build.horns == "spiral":
        for radius, shade in ((0.15, 1.0), (0.1, 0.7), (0.055, 1.0)):
            paint(ellipse(poll[0] + 0.05, poll[1] + 0.02, radius, radius), scaled((188, 158, 112), shade), _HEAD)
    x, y = between(poll, muzzle, 0.35)
    for radius, colour in ((0.035, (240, 240, 240)), (0.02, (12, 12, 12))):
        paint(ellipse(x, y - thick * 0.12, radius, radius), colour, _HEAD)


def _tail(paint: partial[None], rng: np.random.Generator, kind: str, root: Point, coat: Rgb, dark: Rgb) -> None:
    x, y = root
    if kind == "tuft":
        end = (x + rng.uniform(0.1, 0.22), y + rng.uniform(0.42, 0.55))
        paint(limb(root, end, 0.05, 0.04), coat, _TAIL)
        paint(ellipse(end[0], end[1] + 0.05, 0.06, 0.1), dark, _TAIL)
    elif kind == "up":
        paint(limb(root, (x + rng.uniform(0.2, 0.3), y - rng.uniform(0.3, 0.42)), 0.08, 0.03), coat, _TAIL)
    elif kind == "bushy":
        end = (x + rng.uniform(0.3, 0.4), y + rng.uniform(-0.02, 0.2))
        paint(limb(root, end, 0.08, 0.24), coat, _TAIL)
        tilt = math.atan2(end[1] - y, end[0] - x)
        paint(ellipse(end[0] + 0.04, end[1], 0.17, 0.12, tilt), coat, _TAIL)
        paint(ellipse(end[0] + 0.14, end[1] + 0.02, 0.08, 0.07, tilt), (240, 236, 228), _TAIL)
    elif kind == "curl":
        ring = [
            (x + 0.1 + 0.085 * math.cos(a), y + 0.085 * math.sin(a)) for a in (math.pi + i * 0.6 for i in range(10))
        ]
        for start, end in pairwise(ring):
            paint(limb(start, end, 0.055, 0.055), scaled(coat, 0.85), _TAIL)
    else:
        paint(limb((x - 0.04, y - 0.04), (x + 0.1, y + 0.08), 0.14, 0.08), (236, 226, 208), _TAIL)


def draw_person(canvas: Canvas, rng: np.random.Generator, pose: Pose) -> None:
    """A standing person, about as high as the frame is, whose pixels are those of a block."""
    paint = partial(canvas.paint, pose=pose)
    skin = jitter(rng, SKIN_TONES[choose(rng, tuple(SKIN_TONES))], 10)
    _, shirt = some_colour(rng, ("red", "green", "blue", "purple", "yellow"))
    _, trousers = some_colour(rng, ("blue", "black", "gray"))
    _, hair = some_colour(rng, ("black", "brown", "orange"))
    for side in (-1, 1):
        hip, foot = (side * 0.09, 0.1), (side * rng.uniform(0.1, 0.24), 0.93)
        paint(limb(hip, foot, 0.19, 0.13), scaled(trousers, 0.9 if side < 0 else 1.0), BLOCK)
        paint(ellipse(foot[0] - 0.05, foot[1] + 0.02, 0.12, 0.05), (32, 28, 28), BLOCK)
        elbow = (side * rng.uniform(0.28, 0.4), -0.2)
        hand = (elbow[0] + side * rng.uniform(-0.12, 0.14), 0.1)
        paint(limb((side * 0.2, -0.5), elbow, 0.13, 0.11), scaled(shirt, 0.85), BLOCK)
        paint(limb(elbow, hand, 0.1, 0.08), skin, BLOCK)
        paint(ellipse(*hand, 0.055, 0.055), skin, BLOCK)
    paint([(-0.25, -0.56), (0.25, -0.56), (0.19, 0.16), (-0.19, 0.16)], shirt, BLOCK)
    paint(limb((0, -0.6), (0, -0.54), 0.12, 0.16), scaled(skin, 0.85), BLOCK)
    paint(ellipse(0, -0.8, 0.17, 0.19), hair, BLOCK)
    paint(ellipse(0, -0.76, 0.13, 0.16), skin, BLOCK)
    for side in (-1, 1):
        paint(ellipse(side * 0.05, -0.78, 0.02, 0.02), (16, 16, 16), BLOCK)
    paint(limb((-0.05, -0.68), (0.05, -0.68), 0.02, 0.02), (150, 40, 40), BLOCK)

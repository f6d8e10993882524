"""The three subjects of the mini world: car, horse, face, with the class lists of the papers' tables.

Each `draw_*` function paints one object part by part in painter's order, every part with its own label, and returns
the words that describe what is really visible in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from slime_bench.data.mini_world.canvas import (
    BLOCK,
    COLOURS,
    SKIN_TONES,
    Canvas,
    Point,
    Pose,
    Rgb,
    between,
    chance,
    choose,
    ellipse,
    jitter,
    limb,
    random_pose,
    scaled,
    some_colour,
)

CLASSES: dict[str, list[str]] = {
    "car": ["background", "body", "light", "plate", "wheel", "window"],
    "horse": ["background", "head", "neck+torso", "leg", "tail"],
    "face": ["background", "skin", "eye", "mouth", "nose", "brow", "ear", "neck", "cloth", "hair"],
}


class CarLabels(NamedTuple):
    """Which label each piece of a car gets; by default the table's parts."""

    body: int = 1
    light: int = 2
    plate: int = 3
    front_wheel: int = 4
    rear_wheel: int = 4
    hub: int = 4
    screen: int = 5
    pane: int = 5


class HorseLabels(NamedTuple):
    """Which label each piece of a horse gets; by default the table's parts."""

    head: int = 1
    ear: int = 1
    muzzle: int = 1
    neck: int = 2
    torso: int = 2
    front_leg: int = 3
    hind_leg: int = 3
    hoof: int = 3
    tail: int = 4


#: what a part's colour mostly is; now and then it is any colour, so that no part is its colour
_TYPICAL = {
    "wheel": ["black", "gray"],
    "window": ["cyan", "blue", "white"],
    "light": ["yellow", "orange", "red"],
    "plate": ["white", "yellow"],
    "coat": ["brown", "black", "white", "gray", "orange"],
    "hair": ["black", "brown", "yellow", "orange", "gray", "red"],
}
_ATYPICAL = 0.2


def _part_colour(rng: np.random.Generator, part: str, unlike: str = "") -> tuple[str, Rgb]:
    """A colour for a part, mostly a typical one; never that of the part that surrounds it."""
    names = [*COLOURS] if chance(rng, _ATYPICAL) else _TYPICAL[part]
    return some_colour(rng, [name for name in names if name != unlike])


def draw_car(
    canvas: Canvas,
    rng: np.random.Generator,
    small: bool = False,
    pose: Pose | None = None,
    labels: CarLabels = CarLabels(),  # noqa: B008 - a tuple
) -> list[str]:
    """A car seen from the side and somewhat from its end, so that lights and plate face the camera."""
    body, light, plate, *wheels, hub_label, screen_label, pane_label = labels
    pose = pose or random_pose(rng, (26, 34) if small else (50, 61), 13, 0.16, 22 if small else 7)
    paint = partial(canvas.paint, pose=pose)
    body_name, body_colour = some_colour(rng)
    wheel_name, wheel_colour = _part_colour(rng, "wheel", unlike=body_name)
    window_name, window_colour = _part_colour(rng, "window", unlike=body_name)
    light_name, light_colour = _part_colour(rng, "light", unlike=body_name)
    plate_name, plate_colour = _part_colour(rng, "plate", unlike=body_name)

    front = rng.uniform(0.5, 0.9)  # width of the visible end
    top, sill = rng.uniform(-0.1, 0.02), rng.uniform(0.46, 0.56)
    roof = top - rng.uniform(0.34, 0.5)
    lift = rng.uniform(0.0, 0.1)  # perspective: the far corner of the end sits higher
    nose, tail, corner = -1.0, 1.0, -1.0 + front
    hood = corner + rng.uniform(0.02, 0.2)
    cabin_end = rng.uniform(0.62, 0.98)
    rake, back_rake = rng.uniform(0.12, 0.34), rng.uniform(0.02, 0.2)

    side = [(corner, top), (tail, top + 0.02), (tail, sill), (corner, sill + 0.04)]
    end = [(nose, top - lift + 0.04), (corner, top), (corner, sill + 0.04), (nose, sill - lift)]
    pillar = (hood + rake, roof)
    cabin = [(hood, top + 0.01), pillar, (cabin_end - back_rake, roof), (cabin_end, top + 0.02)]
    windscreen_foot = nose + 0.12 + lift
    screen = [(windscreen_foot, top - lift), (pillar[0] - front * 0.72, roof - lift * 0.5), pillar, (hood, top)]
    bonnet = [(nose, top - lift + 0.05), (windscreen_foot, top - lift - 0.02), (hood, top), (corner, top + 0.03)]
    paint(side, body_colour, body)
    paint(bonnet, scaled(body_colour, 1.12), body)
    paint(end, scaled(body_colour, 0.86), body)
    paint(cabin, body_colour, body)
    paint(screen, scaled(body_colour, 0.95), body)

    # windows: the end's screen and two or three side panes, framed by bodywork
    inset = lambda quad, t: [between(p, _centre(quad), t) for p in quad]  # noqa: E731
    paint(inset(screen, 0.2), scaled(window_colour, 0.92), screen_label)
    panes = int(rng.integers(2, 4))
    low_l, high_l, high_r, low_r = cabin
    for i in range(panes):
        a, b = i / panes, (i + 1) / panes
        pane = [
            between(low_l, low_r, a),
            between(high_l, high_r, a),
            between(high_l, high_r, b),
            between(low_l, low_r, b),
        ]
        paint(inset(pane, rng.uniform(0.14, 0.22)), window_colour, pane_label)

    # the end's face: two lights, a grille of bodywork, and most often a plate
    def on_end(left: float, upper: float, right: float, lower: float) -> list[Point]:
        corners = ((left, upper), (right, upper), (right, lower), (left, lower))
        return [between(between(end[0], end[1], u), between(end[3], end[2], u), v) for u, v in corners]

    lamp_u, lamp_v = rng.uniform(0.24, 0.33), rng.uniform(0.26, 0.36)
    row = rng.uniform(0.08, 0.2)
    for u in (0.03, 0.97 - lamp_u):
        paint(on_end(u, row, u + lamp_u, row + lamp_v), light_colour, light)
    if chance(rng, 0.35):  # a lamp at the far end of the side
        y = top + rng.uniform(0.06, 0.12)
        paint([(tail - 0.11, y), (tail, y), (tail, y + 0.13), (tail - 0.11, y + 0.13)], light_colour, light)
    has_plate = chance(rng, 0.85)
    if has_plate:
        u0, v0 = rng.uniform(0.14, 0.24), rng.uniform(0.58, 0.66)
        quad = on_end(u0, v0, 1 - u0, v0 + 0.3)
        paint(quad, scaled(plate_colour, 0.6), plate)
        paint(inset(quad, 0.14), plate_colour, plate)

    radius = rng.uniform(0.2, 0.27)
    hub = rng.uniform(0.3, 0.6)
    hub_colour = scaled(wheel_colour, 1.5 if sum(wheel_colour) < 420 else 0.6)
    places = corner + radius * rng.uniform(0.9, 1.3), tail - radius * rng.uniform(1.1, 1.7)
    for x, wheel in zip(places, wheels, strict=True):
        paint(ellipse(x, sill, radius, radius), wheel_colour, wheel)
        paint(ellipse(x, sill, radius * hub, radius * hub), hub_colour, hub_label)
    words = [
        f"a {body_name} car with {body_name} body",
        f"{wheel_name} wheels",
        f"{window_name} windows",
        f"{light_name} lights",
    ]
    return words + ([f"{plate_name} plate"] if has_plate else [])


def _centre(points: list[Point]) -> Point:
    return sum(p[0] for p in points) / len(points), sum(p[1] for p in points) / len(points)


def draw_horse(
    canvas: Canvas,
    rng: np.random.Generator,
    small: bool = False,
    pose: Pose | None = None,
    labels: HorseLabels = HorseLabels(),  # noqa: B008 - a tuple
) -> list[str]:
    """A horse from the side, standing, walking or grazing."""
    head, ear_label, muzzle_label, neck, torso, front, hind, hoof_label, tail = labels
    pose = pose or random_pose(rng, (26, 34) if small else (52, 64), 12, 0.14, 22 if small else 6)
    paint = partial(canvas.paint, pose=pose)
    coat_name, coat = _part_colour(rng, "coat")

    def part_colour(probability: float) -> tuple[str, Rgb]:
        return _part_colour(rng, "coat") if chance(rng, probability) else (coat_name, jitter(rng, coat, 8))

    head_name, head_colour = part_colour(0.55)
    leg_name, leg_colour = part_colour(0.6)
    tail_name, tail_colour = part_colour(0.75)
    mane_colour = tail_colour

    back, belly = rng.uniform(-0.28, -0.16), rng.uniform(0.16, 0.26)
    rear, chest = rng.uniform(0.5, 0.62), rng.uniform(-0.48, -0.38)
    has_tail = chance(rng, 0.88)
    if has_tail:
        swing, length = rng.uniform(0.06, 0.36), rng.uniform(0.5, 0.78)
        root = (rear - 0.02, back + 0.06)
        middle = (root[0] + swing, root[1] + length * 0.45)
        tip = (root[0] + swing * rng.uniform(0.5, 1.2), root[1] + length)
        paint(limb(root, middle, 0.1, 0.2), tail_colour, tail)
        paint(limb(middle, tip, 0.2, 0.07), tail_colour, tail)
    reach = rng.uniform(0.5, 0.68)
    for x, shade, leg in (
        (chest + 0.14, 0.78, front), (rear - 0.1, 0.78, hind), (chest + 0.08, 1.0, front), (rear - 0.16, 1.0, hind)
    ):  # fmt: skip
        knee = (x + rng.uniform(-0.14, 0.14), belly + reach * 0.45)
        hoof = (knee[0] + rng.uniform(-0.12, 0.12), belly + reach)
        width = rng.uniform(0.13, 0.17)
        colour = scaled(leg_colour, shade)
        paint(limb((x, belly - 0.16), knee, width * 1.35, width), colour, leg)
        paint(limb(knee, hoof, width, width * 0.85), colour, leg)
        sole = limb((hoof[0], hoof[1] - 0.05), (hoof[0] - 0.03, hoof[1] + 0.03), width, width * 1.2)
        paint(sole, scaled(colour, 0.5), hoof_label)
    middle_y = (back + belly) / 2
    paint(ellipse((rear + chest) / 2, middle_y, (rear - chest) / 2 + 0.04, (belly - back) / 2 + 0.02), coat, torso)
    paint(ellipse(rear - 0.18, middle_y - 0.02, 0.24, (belly - back) / 2 + 0.05), coat, torso)
    paint(ellipse(chest + 0.14, middle_y, 0.22, (belly - back) / 2 + 0.03), coat, torso)
    # neck: raised, level or grazing
    lift = math.radians(rng.uniform(-35, 68))
    span = rng.uniform(0.42, 0.56)
    foot = (chest + 0.06, back + 0.1)
    poll = (foot[0] - span * math.cos(lift), foot[1] - span * math.sin(lift))
    paint(limb(foot, poll, 0.42, 0.2), coat, neck)
    if chance(rng, 0.7):
        paint(limb((foot[0] + 0.06, foot[1] - 0.12), (poll[0] + 0.05, poll[1] - 0.05), 0.09, 0.08), mane_colour, neck)
    bend = lift - math.radians(rng.uniform(70, 115))
    skull = rng.uniform(0.36, 0.46)
    muzzle = (poll[0] - skull * math.cos(bend), poll[1] - skull * math.sin(bend))
    for offset in (-0.05, 0.06):
        ear = (poll[0] + offset * math.cos(lift), poll[1] + offset * math.sin(lift))
        tip = (ear[0] - 0.17 * math.cos(lift + 0.35), ear[1] - 0.17 * math.sin(lift + 0.35))
        paint(limb(ear, tip, 0.09, 0.02), head_colour, ear_label)
    paint(ellipse(poll[0], poll[1], 0.13, 0.13), head_colour, head)
    paint(limb(poll, muzzle, 0.26, 0.16), head_colour, head)
    paint(ellipse(muzzle[0], muzzle[1], 0.09, 0.08), scaled(head_colour, 0.7), muzzle_label)
    eye = between(poll, muzzle, 0.28)
    paint(ellipse(eye[0], eye[1], 0.025, 0.025), (15, 15, 15), head)
    words = [f"a {coat_name} horse with {coat_name} torso", f"{head_name} head", f"{leg_name} legs"]
    return words + ([f"{tail_name} tail"] if has_tail else [])


def draw_face(canvas: Canvas, rng: np.random.Generator, small: bool = False, pose: Pose | None = None) -> list[str]:
    """A head and shoulders, slightly turned."""
    skin, eye, mouth, nose, brow, ear, neck, cloth, hair = range(1, 10)
    pose = pose or random_pose(rng, (26, 34) if small else (48, 60), 14, 0.1, 22 if small else 8)
    paint = partial(canvas.paint, pose=pose)
    tone = choose(rng, list(SKIN_TONES))
    skin_colour = jitter(rng, SKIN_TONES[tone], 12)
    hair_name, hair_colour = _part_colour(rng, "hair")
    cloth_name, cloth_colour = some_colour(rng)
    eye_name, eye_colour = some_colour(rng, ["blue", "green", "brown", "black", "cyan", "purple"])
    lip_name, lip_colour = some_colour(rng, ["red", "pink", "brown", "purple", "orange"])
    brow_name, brow_colour = (hair_name, scaled(hair_colour, 0.8)) if chance(rng, 0.5) else _part_colour(rng, "hair")

    width, height = rng.uniform(0.42, 0.5), rng.uniform(0.56, 0.64)
    cy, turn = rng.uniform(-0.16, -0.08), rng.uniform(-0.1, 0.1)
    style = choose(rng, ["short", "long", "bald", "cap"] if chance(rng, 0.5) else ["short", "long"])
    covers_ears = style == "long" and chance(rng, 0.55)
    volume = rng.uniform(0.1, 0.2)
    if style == "long":
        drop = rng.uniform(0.5, 0.95)
        upper, lower = width + volume, width + volume * 0.8
        paint(ellipse(0, cy - 0.05, upper, height + volume), hair_colour, hair)
        paint([(-upper, cy), (upper, cy), (lower, cy + drop), (-lower, cy + drop)], hair_colour, hair)
    elif style == "short":
        paint(ellipse(0, cy - 0.12, width + volume * 0.6, height * 0.95), hair_colour, hair)
    shoulder = rng.uniform(0.72, 0.98)
    collar = rng.uniform(0.16, 0.3)
    half_neck = rng.uniform(0.18, 0.25)
    throat = [(-half_neck, cy + 0.3), (half_neck, cy + 0.3), (half_neck + 0.05, 0.95), (-half_neck - 0.05, 0.95)]
    paint(throat, scaled(skin_colour, 0.84), neck)
    neckline = [(-half_neck - 0.06, 0.62), (0.0, 0.62 + collar), (half_neck + 0.06, 0.62)]
    coat = [(shoulder, 0.8), (shoulder + 0.14, 1.7), (-shoulder - 0.14, 1.7), (-shoulder, 0.8)]
    paint([*neckline, *coat], cloth_colour, cloth)
    if not covers_ears:
        for side in (-1, 1):
            size = rng.uniform(0.9, 1.15)
            shell = ellipse(side * width * 1.02 + turn * 0.2, cy + 0.04, 0.1 * size, 0.17 * size)
            paint(shell, scaled(skin_colour, 0.92), ear)
            paint(ellipse(side * width * 1.03 + turn * 0.2, cy + 0.05, 0.045, 0.09), scaled(skin_colour, 0.72), ear)
    paint(ellipse(0, cy, width, height), skin_colour, skin)
    paint(ellipse(turn, cy + height * 0.62, width * 0.55, height * 0.3), scaled(skin_colour, 0.97), skin)

    eye_x, eye_y = rng.uniform(0.17, 0.22), cy - rng.uniform(0.02, 0.1)
    eye_w, eye_h = rng.uniform(0.09, 0.12), rng.uniform(0.045, 0.07)
    raise_, tilt = rng.uniform(0.1, 0.16), rng.uniform(-0.25, 0.25)
    has_brows = chance(rng, 0.92)
    for side in (-1, 1):
        x = side * eye_x + turn
        paint(ellipse(x, eye_y, eye_w, eye_h), (240, 240, 240), eye)
        paint(ellipse(x + turn * 0.3, eye_y, eye_h * 0.9, eye_h * 0.9), eye_colour, eye)
        paint(ellipse(x + turn * 0.3, eye_y, eye_h * 0.4, eye_h * 0.4), (12, 12, 12), eye)
        if has_brows:
            outer = (x + side * eye_w * 1.1, eye_y - raise_ + tilt * 0.1)
            inner = (x - side * eye_w * 0.9, eye_y - raise_ - tilt * 0.1)
            paint(limb(inner, outer, 0.065, 0.045), brow_colour, brow)
    tip = eye_y + rng.uniform(0.2, 0.28)
    half = rng.uniform(0.075, 0.11)
    bridge = [(turn * 1.2 - 0.035, eye_y + 0.02), (turn * 1.2 + 0.035, eye_y + 0.02)]
    nostrils = [(turn * 1.5 + half, tip), (turn * 1.5, tip + 0.05), (turn * 1.5 - half, tip)]
    paint([*bridge, *nostrils], scaled(skin_colour, 0.8), nose)
    lip_y, lip_w, lip_h = tip + rng.uniform(0.13, 0.18), rng.uniform(0.13, 0.19), rng.uniform(0.045, 0.085)
    paint(ellipse(turn, lip_y, lip_w, lip_h), lip_colour, mouth)
    paint(limb((turn - lip_w * 0.8, lip_y), (turn + lip_w * 0.8, lip_y), 0.018, 0.018), scaled(lip_colour, 0.5), mouth)

    if style != "bald":
        line = rng.uniform(0.28, 0.42) * height
        fringe = [p for p in ellipse(0, cy, width * 1.03, height * 1.06, n=48) if p[1] < cy - line]
        fringe.sort()
        part = rng.uniform(-0.6, 0.6) * width
        if len(fringe) > 2:
            paint([*fringe, (part, cy - line - rng.uniform(0.02, 0.16))], hair_colour, hair)
    if covers_ears:
        for side in (-1, 1):
            lock = limb((side * width * 0.95, cy - 0.3), (side * (width + volume * 0.3), cy + 0.45), 0.2, 0.26)
            paint(lock, hair_colour, hair)
    words = [f"a {tone} face with {tone} skin", f"{eye_name} eyes", f"{lip_name} mouth", f"{tone} nose"]
    words += [f"{brow_name} brows"] if has_brows else []
    words += [] if covers_ears else [f"{tone} ears"]
    words += [f"{tone} neck", f"{cloth_name} cloth"]
    return words + (["bald"] if style == "bald" else [f"{style} {hair_name} hair"])


SUBJECTS: dict[str, Callable[..., list[str]]] = {"car": draw_car, "horse": draw_horse, "face": draw_face}


def paint_clutter(
    canvas: Canvas, rng: np.random.Generator, count: int, size: tuple[float, float], edge_only: bool
) -> list[str]:
    """Random polygons labelled background: distractors behind a subject, or occluders in front of it. Returns words."""
    words = []
    for _ in range(count):
        name, colour = some_colour(rng)
        sides = int(rng.integers(3, 7))
        radius = rng.uniform(*size)
        if edge_only:
            angle = rng.uniform(0, 2 * math.pi)
            centre = (64 + 54 * math.cos(angle), 64 + 54 * math.sin(angle))
        else:
            centre = (rng.uniform(0, 128), rng.uniform(0, 128))
        start = rng.uniform(0, 2 * math.pi)
        spokes = sorted(
            rng.uniform(0, 2 * math.pi, size=sides) if sides > 4 else start + np.arange(sides) * 2 * math.pi / sides
        )
        polygon = [(radius * math.cos(a), radius * math.sin(a)) for a in spokes]
        canvas.paint(polygon, colour, BLOCK, Pose(1, 0, 0, 1, *centre))
        words.append(f"{name} block")
    return words

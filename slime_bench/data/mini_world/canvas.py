"""The drawing surface of the mini world: colours, an affine pose, polygons painted on image and label map at once.

Everything random comes from a NumPy generator that is passed in. Pixels are made by Pillow's integer rasteriser and
by element-wise IEEE arithmetic only, so the same generator state gives the same bytes on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 128  # side of a finished image, pixels
SUPERSAMPLE = 2  # images are painted at SIZE * SUPERSAMPLE and reduced by box averaging
_FINE = SIZE * SUPERSAMPLE

Rgb = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, Rgb] = {
    "red": (205, 38, 38),
    "orange": (238, 132, 30),
    "yellow": (240, 215, 60),
    "green": (50, 150, 60),
    "cyan": (70, 200, 210),
    "blue": (45, 80, 200),
    "purple": (130, 50, 160),
    "pink": (240, 140, 185),
    "brown": (120, 72, 36),
    "black": (26, 26, 30),
    "gray": (130, 130, 134),
    "white": (238, 238, 238),
}
SKIN_TONES: dict[str, Rgb] = {
    "pale": (244, 212, 190),
    "fair": (228, 180, 146),
    "tan": (190, 134, 92),
    "brown": (138, 88, 58),
    "dark": (82, 52, 38),
}


def choose(rng: np.random.Generator, names: Sequence[str]) -> str:
    """One of `names`, uniformly."""
    return names[int(rng.integers(len(names)))]


def chance(rng: np.random.Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


def jitter(rng: np.random.Generator, colour: Rgb, amount: int = 18) -> Rgb:
    """`colour` with an independent uniform offset of at most `amount` per channel."""
    offsets = rng.integers(-amount, amount + 1, size=3)
    r, g, b = (int(min(255, max(0, c + o))) for c, o in zip(colour, offsets, strict=True))
    return r, g, b


def some_colour(rng: np.random.Generator, names: Sequence[str] = tuple(COLOURS)) -> tuple[str, Rgb]:
    """One of the `names`, and a colour that is called so."""
    name = choose(rng, names)
    return name, jitter(rng, COLOURS[name])


def scaled(colour: Rgb, factor: float) -> Rgb:
    r, g, b = (int(min(255, max(0, c * factor))) for c in colour)
    return r, g, b


@dataclass(frozen=True)
class Pose:
    """Affine map from a subject's own frame (x to the right, y down, about [-1, 1]) to pixels of the finished image."""

    xx: float
    xy: float
    yx: float
    yy: float
    dx: float
    dy: float

    def apply(self, points: list[Point]) -> list[Point]:
        # 1/16 pixel steps: a last-bit difference of a machine's sine cannot move an edge.
        return [
            (
                round((self.xx * x + self.xy * y + self.dx) * SUPERSAMPLE * 16) / 16,
                round((self.yx * x + self.yy * y + self.dy) * SUPERSAMPLE * 16) / 16,
            )
            for x, y in points
        ]


def random_pose(
    rng: np.random.Generator,
    scale: tuple[float, float],
    degrees: float,
    shear: float,
    shift: float,
    centre: Point = (SIZE / 2, SIZE / 2),
) -> Pose:
    """A pose of random size, rotation, shear, position and mirror.

    Args:
        scale: half extent of the subject's unit frame in pixels, smallest and largest.
        degrees: largest rotation to either side. shear: largest horizontal shear. shift: largest offset from `centre`
            in each direction, pixels.
    """
    size = rng.uniform(*scale)
    angle = math.radians(rng.uniform(-degrees, degrees))
    lean = rng.uniform(-shear, shear)
    stretch = rng.uniform(0.9, 1.1)
    mirror = -1.0 if chance(rng, 0.5) else 1.0
    cos, sin = math.cos(angle), math.sin(angle)
    # rotation @ shear @ diag(mirror * stretch, 1 / stretch) * size
    a, b, d = mirror * stretch * size, lean * size, size / stretch
    dx, dy = centre[0] + rng.uniform(-shift, shift), centre[1] + rng.uniform(-shift, shift)
    return Pose(cos * a, cos * b - sin * d, sin * a, sin * b + cos * d, dx, dy)


def between(a: Point, b: Point, t: float) -> Point:
    """The point at `t` of the way from `a` to `b`."""
    return a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t


def ellipse(cx: float, cy: float, rx: float, ry: float, tilt: float = 0.0, n: int = 28) -> list[Point]:
    """Polygon of an ellipse; `tilt` in radians."""
    cos, sin = math.cos(tilt), math.sin(tilt)
    circle = [(rx * math.cos(2 * math.pi * i / n), ry * math.sin(2 * math.pi * i / n)) for i in range(n)]
    return [(cx + cos * x - sin * y, cy + sin * x + cos * y) for x, y in circle]


def limb(start: Point, end: Point, width_start: float, width_end: float) -> list[Point]:
    """A tapered bar from `start` to `end`."""
    length = math.hypot(end[0] - start[0], end[1] - start[1]) or 1.0
    nx, ny = -(end[1] - start[1]) / length, (end[0] - start[0]) / length
    a, b = width_start / 2, width_end / 2
    return [
        (start[0] + nx * a, start[1] + ny * a),
        (end[0] + nx * b, end[1] + ny * b),
        (end[0] - nx * b, end[1] - ny * b),
        (start[0] - nx * a, start[1] - ny * a),
    ]


BLOCK, OTHER = 200, 201
"""Labels that stand for a block, and for a subject that nobody annotates, while a canvas is painted; in the finished
label map both are background."""


class Canvas:
    """An image and its label map, painted together so that the mask is exact by construction.

    Attributes:
        blocks, others: bool [SIZE,SIZE] both, once finished: where a block is seen, or a subject that is not annotated.
    """

    def __init__(self, background: np.ndarray) -> None:
        self.blocks = self.others = np.zeros((SIZE, SIZE), dtype=bool)
        self._image = Image.fromarray(background).resize((_FINE, _FINE), Image.Resampling.BILINEAR)
        self._label = Image.new("L", (_FINE, _FINE), 0)
        self._draw_image = ImageDraw.Draw(self._image)
        self._draw_label = ImageDraw.Draw(self._label)

    def paint(self, polygon: list[Point], colour: Rgb, label: int | None, pose: Pose) -> None:
        """Fill `polygon` (subject frame). `label` None paints the image only, such as a shade on a part."""
        points = pose.apply(polygon)
        self._draw_image.polygon(points, fill=colour)
        if label is not None:
            self._draw_label.polygon(points, fill=label)

    def seen(self) -> np.ndarray:
        """Labels of what is painted so far, uint8 [SIZE,SIZE], `BLOCK` and `OTHER` among them."""
        start = SUPERSAMPLE // 2
        return np.asarray(self._label)[start::SUPERSAMPLE, start::SUPERSAMPLE].copy()

    def blend(self, texture: np.ndarray, strength: float) -> None:
        """Take `strength` of the colour of every part from `texture` uint8 [SIZE,SIZE,3], the rest from its own."""
        fine = Image.fromarray(texture).resize((_FINE, _FINE), Image.Resampling.BILINEAR)
        own, other = np.asarray(self._image, np.float32), np.asarray(fine, np.float32)
        mixed = np.rint(own + np.float32(strength) * (other - own)).astype(np.uint8)
        label = np.asarray(self._label)
        parts = Image.fromarray((label > 0) & (label < BLOCK))
        self._image.paste(Image.fromarray(mixed), mask=parts)

    def finish(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Light, grain and reduction. Returns image uint8 [SIZE,SIZE,3] and label uint8 [SIZE,SIZE]."""
        image = np.asarray(self._image.reduce(SUPERSAMPLE), dtype=np.float32)
        label = self.seen()
        self.blocks, self.others = label == BLOCK, label == OTHER
        label[label >= BLOCK] = 0
        light = _light(rng)
        grain = int(rng.integers(1, 9))
        noise = rng.integers(-grain, grain + 1, size=(SIZE, SIZE, 1)).astype(np.float32)
        return np.clip(np.rint(image * light + noise), 0, 255).astype(np.uint8), label


def _light(rng: np.random.Generator) -> np.ndarray:
    """Illumination float32 [SIZE,SIZE,3]: a linear gradient times a slight colour cast."""
    gx, gy = rng.uniform(-0.22, 0.22, size=2)
    level = rng.uniform(0.78, 1.1)
    ramp = (np.arange(SIZE, dtype=np.float32) / SIZE - 0.5).astype(np.float32)
    field = np.float32(level) + np.float32(gx) * ramp[None, :] + np.float32(gy) * ramp[:, None]
    cast = rng.uniform(0.93, 1.07, size=3).astype(np.float32)
    return field[..., None] * cast


def smooth_noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Value noise uint8 [SIZE,SIZE]: a coarse random grid enlarged with bicubic interpolation."""
    grid = Image.fromarray(rng.integers(0, 256, size=(cells, cells), dtype=np.uint8))
    return np.asarray(grid.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


# name -> base colour and how rough it is; the caption's words for the scene
SCENES: dict[str, tuple[Rgb, int, int]] = {
    "grass": ((70, 130, 50), 60, 42),
    "sand": ((210, 185, 130), 30, 32),
    "snow": ((228, 232, 240), 18, 10),
    "road": ((105, 105, 108), 26, 48),
    "water": ((50, 110, 165), 40, 12),
    "brick": ((160, 84, 66), 46, 20),
    "forest": ((30, 66, 36), 70, 16),
    "night": ((22, 22, 44), 34, 14),
    "fog": ((188, 192, 196), 20, 5),
    "wall": ((200, 186, 160), 14, 6),
}


def _surface(rng: np.random.Generator, name: str) -> np.ndarray:
    """Texture of a named scene, uint8 [SIZE,SIZE,3]."""
    base, rough, cells = SCENES[name]
    base = jitter(rng, base, 26)
    coarse = smooth_noise(rng, max(2, cells // 5)).astype(np.float32) - 128
    fine = smooth_noise(rng, cells).astype(np.float32) - 128
    value = (coarse * np.float32(0.5) + fine * np.float32(0.5)) * np.float32(rough / 64)
    tint = rng.uniform(0.7, 1.3, size=3).astype(np.float32)
    return np.clip(np.asarray(base, np.float32) + value[..., None] * tint, 0, 255).astype(np.uint8)


def paint_background(
    rng: np.random.Generator, names: tuple[str, ...] = tuple(SCENES)
) -> tuple[np.ndarray, str, np.ndarray]:
    """A textured background uint8 [SIZE,SIZE,3], its words: one surface of `names`, or one above another, and where the
    second of them lies, bool [SIZE,SIZE]."""
    ground = choose(rng, names)
    image = _surface(rng, ground)
    if chance(rng, 0.55):
        upper = choose(rng, [name for name in names if name != ground])
        horizon = int(rng.integers(SIZE // 4, SIZE * 3 // 4))
        slope = rng.uniform(-0.25, 0.25)
        edge = horizon + slope * (np.arange(SIZE) - SIZE / 2)
        above = np.arange(SIZE)[:, None] < edge[None, :]
        image = np.where(above[..., None], _surface(rng, upper), image)
        return image, f"{ground} and {upper}", above
    return image, ground, np.zeros((SIZE, SIZE), dtype=bool)

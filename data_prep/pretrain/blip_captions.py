"""What the mini BLIP reads: views of mini-world pictures, and captions of them that are true or false.

A false caption differs from a true one in one word: the colour of a part, the part, or the scene. Only the presence of
a part in the view decides (a word for the whole view); where it lies is never told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from data_prep.pretrain.stream import stream_picture
from slime_bench.data.mini_world.canvas import COLOURS, SCENES, SKIN_TONES
from slime_bench.data.mini_world.render import SUBJECTS, Picture
from slime_bench.data.mini_world.subjects import CLASSES

TEMPLATE: Final = "image of {} ."
"""The prompts of the paper, "Image of wheel.", as the tokeniser reads them."""

SHOWN, SEEN, ABSENT = 40, 120, 0
"""Pixels in a view, of whatever size: a part is there from `SHOWN` on, what surrounds it from `SEEN` on, and neither is
there with `ABSENT`; between the two nothing is asked."""

BLOCK: Final = "block"
GRIDS: Final = (2, 4, 8)
"""Views of a mosaic along a side."""
_CUTS: Final = {4: (0.18, 0.45), 8: (0.08, 0.2)}
"""Side of the views of fine mosaics, which lie mostly around a part, in sides of the picture."""
_CHOSEN: Final = {2: 3.0, 4: 1.0, 8: 0.25}
"""Words per view that a mosaic's captions take from what is there."""
TILES: Final = max(GRIDS) ** 2
PLURALS: Final = {"wheel": "wheels", "window": "windows", "light": "lights", "leg": "legs", "eye": "eyes"} | {
    "brow": "brows", "ear": "ears", "plate": "plates", "head": "heads", "tail": "tails",
}  # fmt: skip
WORDS: Final[dict[str, list[str]]] = {
    subject: [name.removeprefix("neck+") for name in names[1:]] for subject, names in CLASSES.items()
}
"""Per subject the word of label 1, 2, ..."""
_TRUE: Final = {
    "block": 0.84, "body": 0.64, "brow": 0.52, "car": 0.46, "cloth": 0.44, "ear": 0.50, "eye": 0.58, "face": 0.44,
    "hair": 0.56, "head": 0.39, "horse": 0.48, "leg": 0.56, "light": 0.50, "mouth": 0.54, "neck": 0.52, "nose": 0.56,
    "plate": 0.36, "skin": 0.67, "tail": 0.36, "torso": 0.62, "wheel": 0.53, "window": 0.58,
    **dict.fromkeys(SCENES, 0.42),
}  # fmt: skip
"""Share of a word's captions that are true, counted on 4,000 views; see `weight`."""
_TRUE_IN_MOSAIC: Final = {
    "block": 0.95, "body": 0.95, "brow": 0.65, "cloth": 0.67, "ear": 0.70, "eye": 0.89, "hair": 0.82, "head": 0.65,
    "leg": 0.90, "light": 0.82, "mouth": 0.83, "neck": 0.82, "nose": 0.88, "plate": 0.58, "skin": 0.95, "tail": 0.60,
    "torso": 0.95, "wheel": 0.86, "window": 0.93, **dict.fromkeys(SCENES, 0.62),
}  # fmt: skip
_TRUE_IN_TILE: Final = {
    2: {
        "block": 0.55, "body": 0.35, "brow": 0.20, "cloth": 0.22, "ear": 0.22, "eye": 0.30, "hair": 0.27,
        "head": 0.20, "leg": 0.30, "light": 0.26, "mouth": 0.27, "neck": 0.27, "nose": 0.28, "plate": 0.18,
        "skin": 0.34, "tail": 0.18, "torso": 0.34, "wheel": 0.28, "window": 0.32, **dict.fromkeys(SCENES, 0.19),
    },
    4: {
        "block": 0.17, "body": 0.33, "brow": 0.07, "cloth": 0.12, "ear": 0.12, "eye": 0.16, "hair": 0.24,
        "head": 0.12, "leg": 0.23, "light": 0.18, "mouth": 0.11, "neck": 0.14, "nose": 0.15, "plate": 0.15,
        "skin": 0.30, "tail": 0.13, "torso": 0.28, "wheel": 0.18, "window": 0.21, **dict.fromkeys(SCENES, 0.17),
    },
    8: {
        "block": 0.026, "body": 0.256, "brow": 0.016, "cloth": 0.066, "ear": 0.035, "eye": 0.038, "hair": 0.095,
        "head": 0.083, "leg": 0.104, "light": 0.071, "mouth": 0.044, "neck": 0.047, "nose": 0.045, "plate": 0.058,
        "skin": 0.216, "tail": 0.072, "torso": 0.144, "wheel": 0.082, "window": 0.096, **dict.fromkeys(SCENES, 0.036),
    },
}  # fmt: skip
_SINGULAR: Final = {plural: word for word, plural in PLURALS.items()}
_EVERY_PART: Final = sorted({word for words in WORDS.values() for word in words})
_SUBJECT_NAMES: Final = list(SUBJECTS)


@dataclass(frozen=True)
class View:
    """A picture or a part of it.

    Attributes:
        image: uint8 [side,side,3].
        subject: car, horse or face. shown, absent: words of the parts that are there, and that are not.
        colours: word -> colour of that part, for the parts whose colour the caption names.
        around, not_around: words of the background (surfaces, and blocks) that are there, and that are not.
        others: whether a second subject may be there.
    """

    image: np.ndarray
    subject: str
    shown: list[str]
    absent: list[str]
    colours: dict[str, str]
    around: list[str]
    not_around: list[str]
    others: bool


def describe(caption: str, subject: str) -> tuple[dict[str, str], list[str], bool]:
    """Colours by part word, scene words, and whether a second subject was drawn, from a caption of the mini world."""
    *phrases, scene = caption.split(" , ")
    colours = {}
    for phrase in [phrases[0].split(" with ")[-1], *phrases[1:]]:
        *adjectives, noun = phrase.split()
        word = _SINGULAR.get(noun, noun)
        if word in WORDS[subject] and adjectives:
            colours[word] = adjectives[-1]
    return colours, scene.removeprefix("on ").split(" and "), any(each.startswith("another ") for each in phrases)


@dataclass(frozen=True)
class Caption:
    """A caption and where it is true.

    Attributes:
        truth: of the whole image. tiles: of each tile of a mosaic, None where nobody can say; () for a single view.
        weight, tile_weights: of the losses.
    """

    text: str
    truth: bool
    weight: float = 1.0
    tiles: tuple[bool | None, ...] = ()

    @property
    def grid(self) -> int:
        """Tiles along a side."""
        return math.isqrt(len(self.tiles)) or 1

    @property
    def tile_weights(self) -> tuple[float, ...]:
        table = _TRUE_IN_TILE[self.grid] if self.tiles else {}
        most = 10.0 if self.grid in _CUTS else 3.0
        return tuple(0.0 if truth is None else weight(self.text, truth, table, most) for truth in self.tiles)


@dataclass(frozen=True)
class Example:
    """An image uint8 [128,128,3] and captions of it; the first describes it where `described`."""

    image: np.ndarray
    captions: list[Caption]
    described: bool


def draw_example(index: int, rng: np.random.Generator, shares: Sequence[float] = (0.2, 0.15, 0.3, 0.35)) -> Example:
    """A view of one picture of the stream, or a mosaic of views of four, with 2, 4 or 8 of them along a side.

    Args:
        shares: of the four kinds.
    """
    kind = int(rng.choice(len(shares), p=shares))
    if kind == 0:
        view = draw_view(index, rng)
        told = [Caption(text, truth, weight(text, truth, _TRUE)) for text, truth in captions(view, rng)]
        return Example(view.image, told, True)
    grid = GRIDS[kind - 1]
    views = []
    for offset in range(4):
        place = index + offset
        picture, subject = stream_picture(place), _SUBJECT_NAMES[place % len(_SUBJECT_NAMES)]
        views += [make_view(picture, subject, rng, grid=grid) for _ in range(grid * grid // 4)]
    return mosaic([views[number] for number in rng.permutation(len(views))], rng)


def mosaic(views: list[View], rng: np.random.Generator) -> Example:
    """Views side by side, row by row. What is true of one is mostly false of the others: a model that says in one place
    what it has seen in another is wrong."""
    grid = math.isqrt(len(views))
    rows = [np.concatenate([view.image for view in views[at : at + grid]], axis=1) for at in range(0, len(views), grid)]
    words, coloured = [], []
    for view in views:
        count = int(_CHOSEN[grid]) + (rng.random() < _CHOSEN[grid] % 1)
        words += rng.permutation([*view.shown, *view.around])[:count].tolist()
        words += rng.permutation([*view.absent, _one(view.not_around, rng)])[: max(0, count - 1)].tolist()
        if (described := [word for word in view.shown if word in view.colours]) and rng.random() < 2 / grid:
            word = _one(described, rng)
            right = rng.random() < 0.5
            coloured.append((view.colours[word] if right else _other_colour(view, word, described, rng), word))
    words += rng.permutation([*_EVERY_PART, *SCENES])[:grid].tolist()
    told = []
    for word in dict.fromkeys(words):
        tiles = tuple(_has(view, word) for view in views)
        told += _known(_short(word, rng), tiles)
    for colour, word in list(dict.fromkeys(coloured))[:5]:
        tiles = tuple(_has_coloured(view, colour, word) for view in views)
        told += _known(TEMPLATE.format(f"{colour} {number(word, rng)}"), tiles)
    return Example(np.concatenate(rows), told, False)


def _known(text: str, tiles: tuple[bool | None, ...]) -> list[Caption]:
    """The caption, unless nobody can say whether it is true of the image."""
    few = len(tiles) < min(_CUTS) ** 2
    if True not in tiles and None in tiles and few:
        return []
    truth = True in tiles
    # Of sixteen views nearly every word is true of one: that says nothing of the whole image.
    whole = weight(text, truth, _TRUE_IN_MOSAIC) if few else 0.0
    return [Caption(text, truth, whole, tiles)]


def _has(view: View, word: str) -> bool | None:
    """Whether a view shows a part or surroundings; None where it shows too little of it to tell."""
    if word in view.shown or word in view.around:
        return True
    foreign = word in _EVERY_PART and word not in WORDS[view.subject]
    return False if foreign or word in view.absent or word in view.not_around else None


def _has_coloured(view: View, colour: str, word: str) -> bool | None:
    there = _has(view, word)
    if not there:
        return there
    return None if view.others or word not in view.colours else view.colours[word] == colour


def draw_view(index: int, rng: np.random.Generator, whole: float = 0.3) -> View:
    """A view of picture `index` of the pre-training stream; see `make_view`."""
    return make_view(stream_picture(index), _SUBJECT_NAMES[index % len(_SUBJECT_NAMES)], rng, whole)


def make_view(picture: Picture, subject: str, rng: np.random.Generator, whole: float = 0.3, grid: int = 1) -> View:
    """A view of 128/grid pixels: with probability `whole` all of the picture, otherwise a square of 0.25 to 0.75 of its
    side; half of the views are mirrored. In a fine grid it is a smaller square (`_CUTS`), mostly around a part."""
    image, label, scene, side = picture.image, picture.label, picture.scene, picture.image.shape[0]
    fine, out = grid in _CUTS, side // grid
    if fine or rng.random() >= whole:
        cut = int(rng.uniform(*_CUTS.get(grid, (0.25, 0.75))) * side)
        top, left = (int(v) for v in rng.integers(0, side - cut + 1, size=2))
        if fine and rng.random() < 0.75:
            # A part by its name, not by its area: eyes are to be seen as often as hair.
            ys, xs = np.nonzero(label == rng.choice(np.unique(label[label > 0])))
            at = int(rng.integers(len(ys)))
            top, left = (int(np.clip(v[at] - cut // 2, 0, side - cut)) for v in (ys, xs))
        image, label, scene = (each[top : top + cut, left : left + cut] for each in (image, label, scene))
    if image.shape[0] != out:
        image = np.asarray(Image.fromarray(image).resize((out, out), Image.Resampling.BILINEAR))
        label, scene = (
            np.asarray(Image.fromarray(each).resize((out, out), Image.Resampling.NEAREST)) for each in (label, scene)
        )
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    words = WORDS[subject]
    pixels = np.bincount(label.ravel(), minlength=len(words) + 1)[1:]
    colours, scenes, others = describe(picture.caption, subject)
    areas = np.bincount(scene.ravel(), minlength=4)[1:]
    surfaces = dict(zip([*scenes, *[""] * (2 - len(scenes)), BLOCK], areas, strict=True))
    return View(
        image=np.ascontiguousarray(image),
        subject=subject,
        shown=[word for word, count in zip(words, pixels, strict=True) if count >= SHOWN],
        absent=[word for word, count in zip(words, pixels, strict=True) if count <= ABSENT],
        colours=colours,
        around=[word for word, count in surfaces.items() if word and count >= SEEN],
        not_around=[word for word in (*SCENES, BLOCK) if surfaces.get(word, 0) <= ABSENT],
        others=others,
    )


def captions(view: View, rng: np.random.Generator) -> list[tuple[str, bool]]:
    """Captions of a view and whether each is true, about as many of one kind as of the other.

    The first is always true and describes the view: it is what the contrastive loss compares.
    """
    described = [word for word in view.shown if word in view.colours]
    found: list[tuple[str, bool]] = [(_long(view, _facts(view, described, rng)), True)]
    found += _long_pairs(view, described, rng)
    found += [(_short(word, rng), True) for word in view.shown]
    found += [(_short(word, rng), False) for word in view.absent]
    elsewhere = [word for word in _EVERY_PART if word not in WORDS[view.subject]]
    found += [(_short(word, rng), False) for word in rng.permutation(elsewhere)[:3]]
    found += [(_short(word, rng), True) for word in view.around]
    found += [(_short(word, rng), False) for word in rng.permutation(view.not_around)[:2]]
    found += _subject(view, rng) if rng.random() < 0.3 else []
    if described and not view.others:
        found += _colour_pairs(view, described, rng)
    return found


def weight(text: str, truth: bool, table: Mapping[str, float], most: float = 3.0) -> float:
    """How much a caption counts in the losses: true and false captions of one word as much as each other, or the word
    alone would tell the answer."""
    share = table.get(_SINGULAR.get(text.split()[-2], text.split()[-2])) if text.count(" ") == 3 else None
    return 1.0 if share is None else min(most, 0.5 / (share if truth else 1 - share))


def number(word: str, rng: np.random.Generator) -> str:
    """The word, now and then in the plural."""
    return PLURALS[word] if word in PLURALS and rng.random() < 0.25 else word


def _short(word: str, rng: np.random.Generator) -> str:
    """ "Image of wheel." of a part, or "Image of grass." of what surrounds it."""
    return TEMPLATE.format(number(word, rng))


def _colour_pairs(view: View, described: list[str], rng: np.random.Generator) -> list[tuple[str, bool]]:
    """ "Image of black wheel." with the right colour and with a wrong one, mostly that of another part in the view."""
    word, other = _one(described, rng), _one(described, rng)
    right = TEMPLATE.format(f"{view.colours[word]} {number(word, rng)}")
    wrong = TEMPLATE.format(f"{_other_colour(view, other, described, rng)} {number(other, rng)}")
    return [(right, True), (wrong, False)]


def _subject(view: View, rng: np.random.Generator) -> list[tuple[str, bool]]:
    """ "Image of car.", true or false."""
    if len(view.shown) >= 2 and rng.random() < 0.5:
        return [(TEMPLATE.format(view.subject), True)]
    return [(TEMPLATE.format(_one([name for name in _SUBJECT_NAMES if name != view.subject], rng)), False)]


def _facts(view: View, described: list[str], rng: np.random.Generator) -> list[tuple[str, str]]:
    """One to three (colour, part) of the view."""
    count = min(len(described), int(rng.integers(1, 4)))
    return [(view.colours[word], word) for word in rng.permutation(described)[:count]] if described else []


def _long(view: View, facts: list[tuple[str, str]], subject: str | None = None) -> str:
    parts = " , ".join(f"{colour} {PLURALS.get(word, word)}" for colour, word in facts)
    return f"a {subject or view.subject}" + (f" with {parts}" if parts else "")


def _long_pairs(view: View, described: list[str], rng: np.random.Generator) -> list[tuple[str, bool]]:
    """A caption of the view with one word wrong."""
    facts = _facts(view, described, rng)
    kind = rng.random()
    if not facts or kind < 0.15:
        other = _one([name for name in _SUBJECT_NAMES if name != view.subject], rng)
        return [(_long(view, facts, other), False)]
    place = int(rng.integers(len(facts)))
    colour, word = facts[place]
    if kind < 0.5 and view.absent:
        facts[place] = (colour, _one(view.absent, rng))
    elif not view.others:
        facts[place] = (_other_colour(view, word, described, rng), word)
    else:
        return []
    return [(_long(view, facts), False)]


def _other_colour(view: View, word: str, described: list[str], rng: np.random.Generator) -> str:
    """A colour that `word` does not have; mostly one that another part in the view has."""
    right = view.colours[word]
    near = sorted({view.colours[each] for each in described} - {right})
    names = list(SKIN_TONES) if right in SKIN_TONES and right not in COLOURS else list(COLOURS)
    if near and rng.random() < 0.6:
        return _one(near, rng)
    return _one([name for name in names if name != right], rng)


def _one(words: list[str], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]

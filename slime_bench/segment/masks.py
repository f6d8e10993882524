"""What the user says of the values of masks, and the label maps that this makes of them.

A mask is an index mask (0 = background, 255 = ignore), or a picture of colours with a list that names every one of
them. What is neither is refused: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slime_bench.data.class_files import ClassSpec
from slime_bench.data.label_maps import (
    BACKGROUND,
    IGNORE,
    IGNORE_NAME,
    RGB,
    counted,
    listing,
    palette,
    relabelled,
    shown,
    unpack,
)
from slime_bench.data.reading import MASK_FORMS, Mask
from slime_bench.errors import LabelError

MOST = 77
"""Classes: each owns a token of the prompt. A photo that was given as a mask has more."""
APART = 24
"""Colours that differ by less in every channel cannot be told from one another in an overlay."""

_SHARP = "draw and scale masks without anti-aliasing (nearest neighbour, hard brush), and save them as PNG"
_BY_COLOUR = 'give the classes by colour: --classes classes.yaml with a line `name: "#rrggbb"` for each'


@dataclass(frozen=True)
class Classes:
    """The classes of a set of masks.

    Attributes:
        names: K names, `background` first. colours: K colours to draw them in.
        labels: value in the masks -> label 0..K-1, or 255 for ignored pixels.
        pixels: value in the masks -> pixels in all of them.
        coloured: whether the values are colours, 0xRRGGBB.
    """

    names: tuple[str, ...]
    colours: tuple[RGB, ...]
    labels: dict[int, int]
    pixels: dict[int, int]
    coloured: bool = False

    def table(self) -> list[tuple[str, str, str, str]]:
        """(value in the mask, label, name, part of the pixels) of every value, in order of the label."""
        total, rows = sum(self.pixels.values()), []
        for value, label in sorted(self.labels.items(), key=lambda item: (item[1], item[0])):
            number, name = ("-", "(ignored)") if label == IGNORE else (str(label), self.names[label])
            rows.append((shown(value, self.coloured), number, name, f"{100 * self.pixels.get(value, 0) / total:.1f} %"))
        return rows


def resolve(masks: Sequence[Mask], spec: ClassSpec) -> tuple[Classes, list[NDArray[np.uint8]]]:
    """Classes and label maps uint8 [H,W] (0..K-1, 255 = ignore) of masks that belong together.

    Index 0 or black is the background and index 255 is ignored, unless `spec` says otherwise. Where it says nothing,
    every other index is a class `class_<index>`, in ascending order.

    Raises:
        LabelError: colours or indices where the other is named, values that no class has, palettes that disagree, only
            background, more values than there can be classes.
    """
    masks = [mask.by_colour() for mask in masks] if spec.coloured else masks
    for mask in masks:
        if mask.coloured != spec.coloured:
            found, other = ("colours", "index") if mask.coloured else ("indices", "colour")
            raise LabelError(
                f"the mask holds {found}, and nothing says which class each one is", path=mask.path,
                found=f"{counted(mask.values, mask.coloured)}; classes by {other} in {spec.source}",
                expected=MASK_FORMS,
                remedy=f"save the mask with one channel of class indices, or {_BY_COLOUR}",
            )  # fmt: skip
    if not spec.coloured:
        _check_palettes(masks, spec)
    values, counts = np.unique(np.concatenate([mask.values.ravel() for mask in masks]), return_counts=True)
    pixels = dict(zip(values.tolist(), counts.tolist(), strict=True))
    names, labels = _named(spec) if spec.values else _numbered(masks[0].path, pixels)
    for mask in masks:
        strange = mask.values[~np.isin(mask.values, list(labels))]
        if strange.size:
            raise LabelError(
                "values that no class has", path=mask.path, found=counted(strange, spec.coloured),
                expected=f"{_listed(labels, spec.coloured)} ({', '.join(names)}; from {spec.source})",
                remedy="name the missing classes with --classes, or repaint these pixels; many colours come from "
                "anti-aliased edges",
            )  # fmt: skip
    painted = sum(count for value, count in pixels.items() if 0 < labels[value] < IGNORE)
    if not painted:
        raise LabelError(
            "the masks show no class", path=masks[0].path, found=f"only {_listed(pixels, spec.coloured)}",
            expected=f"pixels of a class besides the background (index 0 or black) and {IGNORE} (ignore)",
            remedy="paint the parts that you are after; of a black-and-white mask, say what white is: --classes "
            f"classes.yaml with the line `name: {IGNORE}`",
        )  # fmt: skip
    if not spec.values and not masks[0].palette and pixels.get(IGNORE, 0) > painted:
        raise LabelError(
            "more of the picture is ignored than belongs to a class", path=masks[0].path,
            found=f"{pixels[IGNORE]} pixels of value {IGNORE} (ignore), {painted} of all classes",
            expected="indices 1, 2, ... and hard edges",
            remedy=f"{_SHARP}; or say what the values mean: --classes classes.yaml with lines `name: index`",
        )  # fmt: skip
    used = {value: label for value, label in labels.items() if label < IGNORE or value in pixels}
    classes = Classes(names, _drawn(masks, len(names), used), used, pixels, spec.coloured)
    return classes, [relabelled(mask.values, labels).astype(np.uint8) for mask in masks]


def _check_palettes(masks: Sequence[Mask], spec: ClassSpec) -> None:
    """Refuse palettes that a program has numbered by itself.

    GIMP's indexed mode and GIF number the colours of each file anew, and need not give black the index 0.
    """
    owners: dict[int, tuple[int, Path]] = {}
    for mask in masks:
        used = [index for index in np.unique(mask.values).tolist() if index in mask.palette]
        for index in used:
            colour = mask.palette[index]
            before, other = owners.setdefault(index, (colour, mask.path))
            if before != colour:
                raise LabelError(
                    "the masks' palettes disagree", path=mask.path,
                    found=f"index {index} is {shown(colour, True)}, but {shown(before, True)} in {other.name}",
                    expected="one index for one class in all masks", remedy=_BY_COLOUR,
                )  # fmt: skip
        black = [index for index in used if mask.palette[index] == 0]
        if black and 0 in used and 0 not in black and BACKGROUND not in spec.values:
            raise LabelError(
                "index 0 of the palette is not black", path=mask.path,
                found=f"index 0 is {shown(mask.palette[0], True)}, and black is index {black[0]}",
                expected="index 0 for the background",
                remedy=f"{_BY_COLOUR}; or by index, with lines `name: index`, `{BACKGROUND}` among them",
            )  # fmt: skip


def _named(spec: ClassSpec) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names, and the label of every value that `spec` names."""
    foreground = [name for name in spec.values if name not in (BACKGROUND, IGNORE_NAME)]
    if not spec.coloured:
        foreground.sort(key=lambda name: spec.values[name])
    labels = {spec.values[name]: 1 + place for place, name in enumerate(foreground)}
    if IGNORE_NAME in spec.values:
        labels[spec.values[IGNORE_NAME]] = IGNORE
    labels.setdefault(spec.values.get(BACKGROUND, 0), 0)
    if not spec.coloured:
        labels.setdefault(IGNORE, IGNORE)
    return (BACKGROUND, *foreground), labels


def _numbered(path: Path, pixels: Mapping[int, int]) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names and labels of indices of which nothing is said."""
    foreground = sorted(value for value in pixels if value > 0 and value != IGNORE)
    if len(foreground) >= MOST:
        raise LabelError(
            f"{len(foreground)} different values in the masks", path=path, found="as a grey picture has them",
            expected=f"at most {MOST - 1} besides the background, one for each class",
            remedy=_SHARP,
        )  # fmt: skip
    names = (BACKGROUND, *(f"class_{value}" for value in foreground))
    return names, {0: 0, **{value: 1 + place for place, value in enumerate(foreground)}, IGNORE: IGNORE}


def _drawn(masks: Sequence[Mask], count: int, labels: Mapping[int, int]) -> tuple[RGB, ...]:
    """The masks' own colours where they can be told apart, otherwise the bench's."""
    usual: list[Any] = [tuple(colour) for colour in palette(count).tolist()]
    own: dict[int, RGB] = {0: usual[0]}
    for value, label in labels.items():
        found = [value] if masks[0].coloured else [mask.palette[value] for mask in masks if value in mask.palette]
        own |= {label: unpack(found[0])} if found else {}
    if any(label not in own for label in range(count)):
        return tuple(usual)
    chosen = [own[label] for label in range(count)]
    far = (max(abs(a - b) for a, b in zip(one, other, strict=True)) >= APART for one, other in combinations(chosen, 2))
    return tuple(chosen if all(far) else usual)


def _listed(values: Iterable[int], coloured: bool) -> str:
    return listing([shown(value, coloured) for value in sorted(values)])

"""From masks and what the user says about them to classes and label maps. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from slime_bench.data.label_maps import BACKGROUND, IGNORE, palette
from slime_bench.errors import ConfigError, LabelError
from slime_bench.segment.masks import COLOURS, INDICES, RGB, Mask, hexadecimal, pack, unpack
from slime_bench.segment.spec import IGNORED, ClassSpec

APART = 24
"""Colours that differ by less in every channel cannot be told from one another in an overlay."""

_WHITE = 0xFFFFFF

Labels = tuple[tuple[str, ...], dict[int, int]]
"""Class names, and the label of each value in the masks."""

MOST = 77
"""Classes: each owns a token of the prompt. A photo that was given as a mask has more."""


@dataclass(frozen=True)
class Classes:
    """The classes of a set of masks.

    Attributes:
        names: K names, `background` first.
        colours: K colours to draw them in.
        labels: value in the masks -> label 0..K-1, or 255 for ignored pixels.
        pixels: value in the masks -> pixels in all of them.
        coloured: whether the values are colours, packed as 0xRRGGBB.
    """

    names: tuple[str, ...]
    colours: tuple[RGB, ...]
    labels: dict[int, int]
    pixels: dict[int, int]
    coloured: bool

    def table(self) -> list[tuple[str, str, str, str]]:
        """(value in the mask, label, name, part of the pixels) of every value, in order of the label."""
        total = sum(self.pixels.values())
        rows = []
        for value, label in sorted(self.labels.items(), key=lambda item: (item[1], item[0])):
            shown = hexadecimal(unpack(value)) if self.coloured else str(value)
            name = "(ignored)" if label == IGNORE else self.names[label]
            part = f"{100 * self.pixels.get(value, 0) / total:.1f} %"
            rows.append((shown, "-" if label == IGNORE else str(label), name, part))
        return rows


def resolve(masks: Sequence[Mask], spec: ClassSpec) -> tuple[Classes, list[NDArray[np.uint8]]]:
    """Classes and label maps uint8 [H,W] (0..K-1, 255 = ignore) of masks that belong together.

    Without a word about the classes, index 0 or black is the background, 255 of a one-channel file is ignored (unless
    nothing else but 0 is there: a black-and-white mask), and every other index or colour is a class: `class_<index>`
    with gaps closed, or `class_1`, ... in the order of the colours' hexadecimal numbers.

    Raises:
        LabelError: masks of different kinds, palettes that disagree, only background, values that no class has, too
            many colours. ConfigError: classes that cannot be matched with the masks.
    """
    masks = _of_one_kind(masks, spec)
    pixels: dict[int, int] = {}
    for mask in masks:
        values, counts = np.unique(mask.values, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            pixels[value] = pixels.get(value, 0) + count
    coloured = masks[0].kind == COLOURS
    names, labels = _labels(masks, pixels, spec)
    if not (spec.indices or spec.colours or spec.names):
        _check_plausible(masks, pixels, labels)
    if not any(0 < labels[value] < IGNORE for value in pixels):
        raise LabelError(
            "the masks show no class", path=masks[0].path, found=f"only {_values(pixels, coloured)}",
            expected="pixels of at least one class besides the background",
            remedy="paint the parts that you are after: black or index 0 is the background",
        )  # fmt: skip
    classes = Classes(names, _drawn(masks, names, labels), labels, pixels, coloured)
    return classes, [label_map(mask, labels) for mask in masks]


def label_map(mask: Mask, labels: Mapping[int, int]) -> NDArray[np.uint8]:
    """uint8 [H,W]: the label of every pixel's value."""
    values, places = np.unique(mask.values, return_inverse=True)
    table = np.array([labels[value] for value in values.tolist()], dtype=np.uint8)
    return table[places].reshape(mask.values.shape)


def _of_one_kind(masks: Sequence[Mask], spec: ClassSpec) -> list[Mask]:
    kinds = {mask.kind for mask in masks}
    if spec.colours:
        return [_by_colour(mask) for mask in masks]
    if len(kinds) > 1:
        named = {mask.kind: mask.path.name for mask in masks}
        raise LabelError(
            "the masks are of different kinds", path=masks[0].path.parent,
            found="; ".join(f"{kind}: {name}" for kind, name in sorted(named.items())),
            expected="indices in all masks, or colours in all",
            remedy="export them in one way, or give the classes by colour: --classes with `name: \"#rrggbb\"`",
        )  # fmt: skip
    if kinds == {COLOURS} and all(_is_grey(mask) for mask in masks):  # indices in a file of three equal channels
        return [replace(mask, kind=INDICES, values=mask.values & 255) for mask in masks]
    _check_palettes(masks)
    if not spec.indices:
        _check_black(masks)
    return list(masks)


def _by_colour(mask: Mask) -> Mask:
    """A mask of indices as one of colours: by its palette, or grey."""
    if mask.kind == COLOURS:
        return mask
    low, high = int(mask.values.min()), int(mask.values.max())
    if low < 0 or high > 255:
        raise _strangers(mask, [high if high > 255 else low], "colours", "0 to 255")
    table = np.array([mask.palette.get(index, (index,) * 3) for index in range(256)], dtype=np.uint8)
    return replace(mask, kind=COLOURS, values=pack(table)[mask.values], ignores=False)


def _is_grey(mask: Mask) -> bool:
    red, green, blue = mask.values >> 16, mask.values >> 8 & 255, mask.values & 255
    return bool(((red == green) & (green == blue)).all())


def _check_palettes(masks: Sequence[Mask]) -> None:
    """Two palettes that disagree mean that a program has numbered the colours anew in each file."""
    known: dict[int, tuple[RGB, Mask]] = {}
    for mask in masks:
        for index in np.unique(mask.values).tolist() if mask.palette else ():
            colour = mask.palette.get(index)
            if colour is None:
                continue
            before, other = known.setdefault(index, (colour, mask))
            if before != colour:
                raise LabelError(
                    "the masks' palettes disagree", path=mask.path,
                    found=f"index {index} is {hexadecimal(colour)}, but {hexadecimal(before)} in {other.path.name}",
                    expected="one index for one class in all masks",
                    remedy="give the classes by colour: --classes classes.yaml with lines `name: \"#rrggbb\"`",
                )  # fmt: skip


def _check_black(masks: Sequence[Mask]) -> None:
    """A program that numbers colours by itself (GIMP's indexed mode, GIF) need not give black the index 0."""
    for mask in masks:
        used = np.unique(mask.values).tolist() if mask.palette else []
        black = [index for index in used if mask.palette.get(index) == (0, 0, 0)]
        if black and 0 in used and 0 not in black:
            raise LabelError(
                "index 0 of the palette is not black", path=mask.path,
                found=f"index 0 is {hexadecimal(mask.palette[0])}, and black is index {black[0]}",
                expected="index 0 for the background",
                remedy="give the classes by colour: --classes classes.yaml with lines `name: \"#rrggbb\"`; or by "
                "index, with lines `name: index`, `background` among them",
            )  # fmt: skip


def _check_plausible(masks: Sequence[Mask], pixels: Mapping[int, int], labels: Mapping[int, int]) -> None:
    """What nobody means who has said nothing of the classes: soft edges as classes, a white canvas as a part."""
    mask = masks[0]
    classes = {value: count for value, count in pixels.items() if 0 < labels[value] < IGNORE}
    ignored = pixels.get(IGNORE, 0) if labels.get(IGNORE) == IGNORE else 0
    if mask.kind == INDICES and not mask.palette and ignored > sum(classes.values()):
        raise LabelError(
            "more of the picture is ignored than belongs to a class", path=mask.path,
            found=f"{ignored} pixels of value {IGNORE} (ignore), {sum(classes.values())} of {_values(classes, False)}",
            expected="a black-and-white mask with hard edges, or indices 1, 2, ...",
            remedy="draw and scale masks without anti-aliasing (nearest neighbour, hard brush); or say what the values "
            "mean: --classes classes.yaml with lines `name: index`",
        )  # fmt: skip
    if mask.kind == COLOURS and not pixels.get(0) and _WHITE in classes:
        raise LabelError(
            "the mask has no background", path=mask.path, found="white, and no black",
            expected="black where there is no part",
            remedy="paint it black; or give the colours: --classes classes.yaml with `background: \"#ffffff\"` and a "
            "line for each class",
        )  # fmt: skip


def _labels(
    masks: Sequence[Mask], pixels: Mapping[int, int], spec: ClassSpec
) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names, and the label of every value that the masks hold or the user names."""
    coloured = masks[0].kind == COLOURS
    given = {name: pack(np.array(colour, dtype=np.uint8)).item() for name, colour in spec.colours.items()}
    if spec.indices or given:
        if coloured and spec.indices:
            raise ConfigError(
                "the classes are given by index and the masks hold colours", path=spec.source,
                found=_values(pixels, coloured), expected="a colour for every class, e.g. wheel: \"#ffff00\"",
                remedy="replace the indices by colours",
            )  # fmt: skip
        return _as_mapped(masks, pixels, spec, given or spec.indices)
    ignored = {IGNORE} if masks[0].ignores else set()
    foreground = sorted(set(pixels) - {0} - ignored)
    if not foreground and IGNORE in pixels:  # black and white
        foreground, ignored = [IGNORE], set()
    if foreground and foreground[0] < 0:
        raise _strangers(masks[0], foreground[:1], "a negative index", "0 and above")
    names, values = spec.names, foreground  # in ascending order: gaps are closed
    if not names:
        names = _numbered(masks, foreground, coloured)
    elif not coloured and all(value < len(names) for value in foreground):
        values = list(range(1, len(names)))
    elif len(foreground) != len(names) - 1 or (coloured and len(foreground) > 1):
        raise _unmatched(masks, foreground, names, spec)
    labels = {0: 0, **{value: 1 + place for place, value in enumerate(values)}}
    return names, labels | {value: IGNORE for value in ignored if value in pixels}


def _as_mapped(masks: Sequence[Mask], pixels: Mapping[int, int], spec: ClassSpec, given: Mapping[str, int]) -> Labels:
    """Labels where the user has said what every value means."""
    coloured = masks[0].kind == COLOURS
    foreground = [name for name in given if name not in (BACKGROUND, IGNORED)]
    if not coloured:
        foreground.sort(key=lambda name: given[name])
    labels = {given[name]: 1 + place for place, name in enumerate(foreground)}
    if IGNORED in given:
        labels[given[IGNORED]] = IGNORE
    labels.setdefault(given.get(BACKGROUND, 0), 0)
    if not coloured and masks[0].ignores:
        labels.setdefault(IGNORE, IGNORE)
    for mask in masks:
        strange = sorted(set(np.unique(mask.values).tolist()) - set(labels))
        if strange:
            shown = _values(labels, coloured)
            raise _strangers(mask, strange, "values that no class has", f"{shown} (from {spec.source})")
    return (BACKGROUND, *foreground), {
        value: label for value, label in labels.items() if label < IGNORE or value in pixels
    }


def _numbered(masks: Sequence[Mask], foreground: Sequence[int], coloured: bool) -> tuple[str, ...]:
    if len(foreground) >= MOST:
        raise LabelError(
            f"{len(foreground)} different {'colours' if coloured else 'values'} in the masks", path=masks[0].path,
            found="as anti-aliased edges, or a photo, have them" if coloured else "as a grey picture has them",
            expected=f"at most {MOST - 1} besides the background, one for each class",
            remedy="draw and scale masks without anti-aliasing (nearest neighbour, hard brush), and save them as PNG",
        )  # fmt: skip
    plain = coloured or list(foreground) == [IGNORE]
    return (BACKGROUND, *(f"class_{1 + place if plain else value}" for place, value in enumerate(foreground)))


def _unmatched(
    masks: Sequence[Mask], foreground: Sequence[int], names: Sequence[str], spec: ClassSpec
) -> ConfigError | LabelError:
    if masks[0].kind == INDICES:
        return _strangers(
            masks[0], [value for value in foreground if value >= len(names)], "labels outside the classes",
            f"0..{len(names) - 1} ({', '.join(names)}) or {IGNORE} (ignore)",
        )  # fmt: skip
    return ConfigError(
        "names alone do not say which colour is which class", path=spec.source,
        found=f"the classes {', '.join(names[1:])} and the colours {_values(foreground, True)}",
        expected="a YAML file with a line for each class, e.g. wheel: \"#ffff00\"",
        remedy="give --classes classes.yaml, or leave --classes out to have the classes numbered",
    )  # fmt: skip


def _strangers(mask: Mask, values: Sequence[int], what: str, expected: str) -> LabelError:
    coloured = mask.kind == COLOURS
    hint = "; many colours come from anti-aliased edges" if coloured and len(values) > 10 else ""
    counted = [f"{_values([value], coloured)} ({int((mask.values == value).sum())} pixels)" for value in values[:5]]
    more = f" and {len(values) - 5} more" if len(values) > 5 else ""
    return LabelError(
        what, path=mask.path, found=f"{', '.join(counted)}{more}{hint}", expected=expected,
        remedy="name the missing classes with --classes, or repaint these pixels",
    )  # fmt: skip


def _values(values: Sequence[int] | Mapping[int, int], coloured: bool) -> str:
    shown = [hexadecimal(unpack(value)) if coloured else str(value) for value in sorted(values)]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


def _drawn(masks: Sequence[Mask], names: Sequence[str], labels: Mapping[int, int]) -> tuple[RGB, ...]:
    """The masks' own colours where they can be told apart, otherwise the bench's."""
    own: dict[int, RGB] = {}
    for value, label in labels.items():
        if masks[0].kind == COLOURS:
            own[label] = unpack(value)
        else:
            found = [mask.palette[value] for mask in masks if value in mask.palette]
            own |= {label: found[0]} if found else {}
    usual = [(int(red), int(green), int(blue)) for red, green, blue in palette(len(names)).tolist()]
    own.setdefault(0, usual[0])
    if any(label not in own for label in range(len(names))):
        return tuple(usual)
    chosen = [own[label] for label in range(len(names))]
    far = (max(abs(a - b) for a, b in zip(one, other, strict=True)) >= APART for one, other in combinations(chosen, 2))
    return tuple(chosen) if all(far) else tuple(usual)

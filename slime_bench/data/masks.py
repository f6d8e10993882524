"""What the user says of the values of masks, and the label maps that this makes of them.

One reader for `segment`, its page, the Python call and folder data sets. A mask is a label map of indices (0 =
background, 255 = ignore), a picture of colours with a list that names them, or names its classes itself. Nothing is
guessed: what can be read in two ways is asked about, and what can be none of these is refused by its kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import ImageColor

from slime_bench.colours import class_colours
from slime_bench.data.annotations import numbered
from slime_bench.data.class_files import ClassSpec
from slime_bench.data.label_maps import (
    BACKGROUND,
    IGNORE,
    IGNORE_NAME,
    RGB,
    counted,
    listing,
    relabelled,
    shown,
    unpack,
)
from slime_bench.data.mask_edges import border_value, soft_values
from slime_bench.data.mask_files import HARD_EDGES, MASK_FORMS, Mask
from slime_bench.errors import LabelError

MOST: Final = 77
"""Classes: each owns a token of the prompt. A photo that was given as a mask has more."""
APART: Final = 24
"""Colours that differ by less in every channel cannot be told from one another in an overlay."""
FEW: Final = 20
"""Pixels below which a class is hardly learned."""
_MANY: Final = 8
_MUCH_IGNORED: Final = 0.2
_VOID: Final = 0xE0E0C0
"""PASCAL VOC's colour of the border between objects, which is ignored."""
_WHITE: Final = {255, 65535}
_BY_COLOUR: Final = 'give the classes by colour: --classes classes.yaml with a line `name: "#rrggbb"` for each'


@dataclass(frozen=True)
class Classes:
    """The classes of a set of masks.

    Attributes:
        names: K names, `background` first. colours: K colours to draw them in.
        labels: value in the masks -> label 0..K-1, or 255 for ignored pixels.
        pixels: value in the masks -> pixels in all of them.
        coloured: whether the values are colours, 0xRRGGBB. notes: sentences for the user.
    """

    names: tuple[str, ...]
    colours: tuple[RGB, ...]
    labels: dict[int, int]
    pixels: dict[int, int]
    coloured: bool = False
    notes: tuple[str, ...] = ()

    def table(self) -> list[tuple[str, str, str, str, str, str]]:
        """(value in the mask, label, name, pixels, part of the pixels, remark) of every value, in order of the label.

        The remark is about a class that cannot be learned from so few pixels.
        """
        total, rows = sum(self.pixels.values()), []
        for value, label in sorted(self.labels.items(), key=lambda item: (item[1], item[0])):
            number, name = ("-", "(ignored)") if label == IGNORE else (str(label), self.names[label])
            count = self.pixels.get(value, 0)
            remark = ""
            if 0 < label < IGNORE and count < FEW:
                remark = "too few to learn from" if count else "not in the masks: never found"
            rows.append((shown(value, self.coloured), number, name, str(count), f"{100 * count / total:.1f} %", remark))
        return rows


class UnnamedColours(LabelError):
    """Masks of colours of which nothing is said, but that can be read.

    Args:
        path: of the first mask. proposal: colours with the names that they could have. pixels: colour -> pixels.
    """

    def __init__(self, path: Path, proposal: ClassSpec, pixels: Mapping[int, int]) -> None:
        self.proposal, self.pixels = proposal, dict(pixels)
        found = ", ".join(f"{colour} as {name}" for colour, _, _, name in self.table())
        super().__init__(
            "the mask holds colours, and nothing says which class each one is", path=path, found=found,
            expected="a list that says which colour is which class", remedy=_BY_COLOUR,
        )  # fmt: skip

    def table(self) -> list[tuple[str, str, str, str]]:
        """(colour, pixels, part of the pixels, proposed name) of every colour."""
        total, named = sum(self.pixels.values()), self.proposal.values
        rows = [(shown(value, True), self.pixels[value], name) for name, value in named.items()]
        return [(colour, str(count), f"{100 * count / total:.1f} %", name) for colour, count, name in rows]

    def __reduce__(self) -> tuple:
        return type(self), (self.path, self.proposal, self.pixels)

    def class_file(self) -> str:
        """The proposal as the text of a class file, to be corrected by hand."""
        named = {name: shown(value, True) for name, value in self.proposal.values.items()}
        return "# Colours of the mask: correct the names.\n" + yaml.safe_dump(named, sort_keys=False)


def resolve(masks: Sequence[Mask], spec: ClassSpec, *, accept: bool = False) -> tuple[Classes, list[NDArray[np.uint8]]]:
    """Classes and label maps uint8 [H,W] (0..K-1, 255 = ignore) of masks that belong together.

    Index 0 or black is the background and index 255 is ignored, unless `spec` says otherwise. Where it says nothing,
    every other index is a class `class_<index>`, in ascending order.

    Args:
        accept: take what is only odd as it is: colours by the names that are proposed for them, masks without a
            background, much that is ignored.

    Raises:
        UnnamedColours: colours that only lack their names.
        LabelError: soft edges, colours or indices where the other is named, values that no class has, palettes that
            disagree, only background, more values than there can be classes; without `accept` what is odd.
    """
    masks, spec = _by_own_names(masks, spec)
    masks = [mask.by_colour() if spec.coloured else mask.by_index() for mask in masks]
    for mask in masks:
        _check_edges(mask, spec)
    values, counts = np.unique(np.concatenate([mask.values.ravel() for mask in masks]), return_counts=True)
    pixels = dict(zip(values.tolist(), counts.tolist(), strict=True))
    if not spec.values and all(mask.coloured for mask in masks):
        spec = _proposed(masks, pixels, accept)
    _check_forms(masks, spec)
    names, labels = _named(spec) if spec.values else _numbered(masks[0].path, pixels)
    for mask in masks:
        check_values(mask, labels, names, spec)
    painted = sum(count for value, count in pixels.items() if 0 < labels[value] < IGNORE)
    if not painted:
        raise _nothing_painted(masks[0], pixels, spec)
    if not accept:
        _check_odd(masks, pixels, labels, spec)
    used = {value: label for value, label in labels.items() if label < IGNORE or value in pixels}
    notes = tuple(note for mask in masks for note in mask.notes)
    classes = Classes(names, _drawn(masks, len(names), used), used, pixels, spec.coloured, notes)
    return classes, [relabelled(mask.values, labels).astype(np.uint8) for mask in masks]


def _by_own_names(masks: Sequence[Mask], spec: ClassSpec) -> tuple[list[Mask], ClassSpec]:
    """Masks whose files name their classes, with one index for each name in all of them; others as they are. Refused
    are masks of which only some name their classes, and a name that `spec` lacks."""
    named = [mask for mask in masks if mask.names]
    if not named:
        return list(masks), spec
    path, own = named[0].path, list(named[0].names.values())
    if any(mask.names != named[0].names for mask in masks):
        own = sorted({name for mask in named for name in mask.names.values()})
    for mask in masks:
        if not mask.names and (mask.coloured or not np.isin(mask.values, (0, IGNORE)).all()):
            raise LabelError(
                "some masks name their classes, and others do not", path=mask.path,
                found=counted(mask.values, mask.coloured),
                expected=f"names in all of them, as in {path.name} ({listing(own)})",
                remedy="annotate all images in the same way",
            )  # fmt: skip
    names = [name for name in spec.values if name not in (BACKGROUND, IGNORE_NAME)] or own
    unknown = [name for name in own if name not in names]
    if unknown:
        raise LabelError(
            "classes that the list does not have", path=path, found=listing(unknown),
            expected=f"{', '.join(names)} (from {spec.source})",
            remedy="add them to --classes, or leave --classes out: these masks name their classes themselves",
        )  # fmt: skip
    indices = numbered(names, path)
    masks = list(masks)
    for place, mask in enumerate(masks):
        table = {IGNORE: IGNORE} | {value: indices[name] for value, name in mask.names.items()}
        masks[place] = replace(mask, values=relabelled(mask.values, table), names={})
    return masks, ClassSpec(indices)


def _check_edges(mask: Mask, spec: ClassSpec) -> None:
    """Refuse soft edges, and more colours than there can be classes."""
    check_hard_edges(mask, named=bool(spec.values))
    colours = len(np.unique(mask.values)) if mask.coloured else 0
    if colours > MOST:
        raise LabelError(
            "a photograph, or a mask with soft edges or from a lossy format", path=mask.path,
            found=f"{colours} colours", expected=MASK_FORMS,
            remedy=f"give the mask that belongs to the picture; {HARD_EDGES}",
        )  # fmt: skip


def check_hard_edges(mask: Mask, *, named: bool) -> None:
    """Refuse (LabelError) a mask whose edges hold values that only smoothing has made; see `soft_values`."""
    values = soft_values(mask.values, mask.coloured, named)
    if not values:
        return
    some = listing([shown(value, mask.coloured) for value in values])
    raise LabelError(
        "the mask has soft edges: values between those of two regions, which belong to neither", path=mask.path,
        found=f"{len(values)} such values: {some}", expected="regions that meet without a value between them",
        remedy=f"{HARD_EDGES} (GIMP: pencil, not brush; Inkscape: export without antialiasing; resizing: nearest)",
    )  # fmt: skip


def _check_forms(masks: Sequence[Mask], spec: ClassSpec) -> None:
    """Refuse colours where indices are named, and the other way round, and palettes that a program has numbered."""
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


def check_values(mask: Mask, labels: Mapping[int, int], names: Sequence[str], spec: ClassSpec) -> None:
    """Refuse values of a mask that no class has; the message names them, and how many pixels carry each."""
    strange = mask.values[~np.isin(mask.values, list(labels))]
    if not strange.size:
        return
    remedy = "name the missing classes with --classes, or repaint these pixels"
    if len(np.unique(strange)) > _MANY:
        remedy = f"so many values come from soft edges, a soft brush or a lossy format: {HARD_EDGES}"
    elif spec.coloured and _VOID in strange:
        remedy = f'{shown(_VOID, True)} is the border of PASCAL VOC: add a line `{IGNORE_NAME}: "{shown(_VOID, True)}"`'
    elif spec.coloured and BACKGROUND not in spec.values and (border := border_value(mask.values)) in strange:
        colour = shown(border or 0, True)
        remedy = f'is {colour} the background? Then add a line `{BACKGROUND}: "{colour}"`'
    elif {*strange.tolist()} <= _WHITE:
        remedy = f"if {strange[0]} is the part of a black-and-white mask, give a class file with `name: {strange[0]}`"
    raise LabelError(
        "values that no class has", path=mask.path, found=counted(strange, spec.coloured),
        expected=f"{_listed(labels, spec.coloured)} ({', '.join(names)}; from {spec.source})", remedy=remedy,
    )  # fmt: skip


def _nothing_painted(mask: Mask, pixels: Mapping[int, int], spec: ClassSpec) -> LabelError:
    white = next((value for value in _WHITE if value in pixels), IGNORE)
    remedy = "paint the parts that you are after"
    if white in pixels:
        remedy = f"of a black-and-white mask, say what white is: --classes classes.yaml with the line `name: {white}`"
    elif mask.unpainted:
        remedy = "the layer is transparent, and nothing is painted on it: export the layer that holds the paint"
    return LabelError(
        "the masks show no class", path=mask.path, found=f"only {_listed(pixels, spec.coloured)}",
        expected=f"pixels of a class besides the background (index 0 or black) and {IGNORE} (ignore)", remedy=remedy,
    )  # fmt: skip


def _check_odd(masks: Sequence[Mask], pixels: Mapping[int, int], labels: Mapping[int, int], spec: ClassSpec) -> None:
    """Ask about what is seldom meant: white without a name, much that is ignored, no background at all."""
    total = sum(pixels.values())
    ignored = sum(count for value, count in pixels.items() if labels[value] == IGNORE)
    yes = "if it is right as it is, add --yes"
    if not spec.values and masks[0].values.max() == 65535:
        raise LabelError(
            "a mask of 16 bits in black and white", path=masks[0].path, found=f"{_listed(pixels, False)}",
            expected="class indices 1, 2, ...", remedy="say what white is: --classes classes.yaml with `name: 65535`",
        )  # fmt: skip
    if ignored > _MUCH_IGNORED * total and IGNORE_NAME not in spec.values:
        raise LabelError(
            f"{100 * ignored / total:.0f} % of the masks have the value {IGNORE}, which means ignored",
            path=masks[0].path, found=f"{ignored} pixels of {IGNORE}, {total - ignored} others",
            expected=f"{IGNORE} on few pixels, if any",
            remedy=f"say what {IGNORE} is: --classes with a line `{BACKGROUND}: {IGNORE}`, `{IGNORE_NAME}: {IGNORE}` "
            f"or `name: {IGNORE}`; {yes}",
        )  # fmt: skip
    if not any(labels[value] == 0 for value in pixels):
        likely = next((value for mask in masks if (value := border_value(mask.values)) is not None), None)
        line = "" if likely is None else f" (the picture's border has {shown(likely, spec.coloured)})"
        raise LabelError(
            "the masks have no background", path=masks[0].path,
            found=", ".join(f"{shown(value, spec.coloured)} ({count} pixels)" for value, count in pixels.items()),
            expected="pixels of the background: index 0 or black, or what --classes says",
            remedy=f"say which value it is: --classes with a line `{BACKGROUND}: ...`{line}; {yes}",
        )  # fmt: skip


def _proposed(masks: Sequence[Mask], pixels: Mapping[int, int], accept: bool) -> ClassSpec:
    """Names for colours of which nothing is said: the one along the border is the background. Unless `accept`ed they
    are to be confirmed; refused are more colours than classes, or none along the border."""
    pixels = dict(sorted(pixels.items(), key=lambda item: -item[1]))
    borders = {border_value(mask.values) for mask in masks}
    background = borders.pop()
    if len(pixels) > MOST or background is None or borders:
        raise LabelError(
            "the mask holds colours, and nothing says which class each one is", path=masks[0].path,
            found=f"{len(pixels)} colours: {counted(masks[0].values, coloured=True)}; none of them is along most of "
            "the picture's border, as a background is", expected=MASK_FORMS,
            remedy=f"save the mask with one channel of class indices, or {_BY_COLOUR}, `{BACKGROUND}` among them",
        )  # fmt: skip
    named = {BACKGROUND: background}
    for value in pixels:
        if value == _VOID and value != background:
            named[IGNORE_NAME] = value
        elif value != background:
            name = _colour_name(value)
            named[next(each for each in (name, *(f"{name}_{n}" for n in range(2, MOST))) if each not in named)] = value
    proposal = ClassSpec(named, True, "--yes")
    if not accept:
        raise UnnamedColours(masks[0].path, proposal, pixels)
    return proposal


def _colour_name(value: int) -> str:
    """The nearest of the names of colours that people use."""
    usual = ("red", "green", "blue", "yellow", "cyan", "magenta", "orange", "purple", "brown", "pink", "white", "gray",
             "black", "lime", "navy", "teal", "olive", "maroon")  # fmt: skip
    rgb = np.array(unpack(value))
    return min(usual, key=lambda name: int(((np.array(ImageColor.getrgb(name)) - rgb) ** 2).sum()))


def _check_palettes(masks: Sequence[Mask], spec: ClassSpec) -> None:
    """Refuse palettes that a program has numbered by itself: GIMP's indexed mode and GIF number the colours of each
    file anew, and need not give black the index 0."""
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
            remedy=HARD_EDGES,
        )  # fmt: skip
    names = (BACKGROUND, *(f"class_{value}" for value in foreground))
    return names, {0: 0, **{value: 1 + place for place, value in enumerate(foreground)}, IGNORE: IGNORE}


def _drawn(masks: Sequence[Mask], count: int, labels: Mapping[int, int]) -> tuple[RGB, ...]:
    """The masks' own colours where they can be told apart, otherwise the bench's."""
    usual = class_colours(count)
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

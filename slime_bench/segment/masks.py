"""What a mask holds, what the user says of its values, and the label map that this makes.

A mask is an index mask (one channel: grey, palette picture or `.npy`; 0 = background, 255 = ignore), or a picture of
colours with a list that names every one of them. What is neither is refused: nothing is guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image, ImageColor, ImageOps

from slime_bench.data.label_maps import BACKGROUND, IGNORE, IGNORE_NAME, palette, validate_classes
from slime_bench.data.reading import DECODING_ERRORS
from slime_bench.errors import ConfigError, DataError, LabelError

RGB = tuple[int, int, int]
MOST = 77
"""Classes: each owns a token of the prompt. A photo that was given as a mask has more."""
APART = 24
"""Colours that differ by less in every channel cannot be told from one another in an overlay."""

_BACKGROUNDS = (BACKGROUND, "bg", "_background_")
_FORMS = 'a list of names, `name: index`, or `name: "#rrggbb"` (or [r, g, b])'
_EXPECTED = "an 8-bit PNG of grey or palette indices, or a .npy array of class indices"
_BY_COLOUR = 'give the classes by colour: --classes classes.yaml with a line `name: "#rrggbb"` for each'
_SHARP = "draw and scale masks without anti-aliasing (nearest neighbour, hard brush), and save them as PNG"
_LOSSLESS = ("PNG", "BMP", "GIF", "TIFF", "PPM")
_ONE_CHANNEL = ("1", "L", "P", "LA", "I", "I;16", "I;16B", "I;16L")


@dataclass(frozen=True)
class ClassSpec:
    """What the user says the values of a mask mean.

    Attributes:
        values: class -> its index, or its colour as 0xRRGGBB where `coloured`; `background` and `ignore` may be among
            them. Empty where nothing is said.
        source: the file or option, for messages.
    """

    values: dict[str, int] = field(default_factory=dict)
    coloured: bool = False
    source: str = "--classes"


@dataclass(frozen=True)
class Mask:
    """One mask as it is in its file.

    Attributes:
        values: int64 [H,W]: class indices, or colours as 0xRRGGBB where `coloured`.
        palette: index -> 0xRRGGBB of a palette picture.
    """

    path: Path
    values: NDArray[np.int64]
    coloured: bool = False
    palette: dict[int, int] = field(default_factory=dict)


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
            rows.append(
                (_shown(value, self.coloured), number, name, f"{100 * self.pixels.get(value, 0) / total:.1f} %")
            )
        return rows


def read_classes(text: str | None) -> ClassSpec:
    """The classes of a YAML file, or of names separated by commas; an empty `ClassSpec` for None.

    Raises:
        ConfigError: a file that cannot be read or is neither list nor mapping, or names or values that cannot be.
    """
    if text is None:
        return ClassSpec()
    path = Path(text)
    if path.suffix.lower() not in (".yaml", ".yml", ".json") and ("," in text or not path.is_file()):
        return parse_classes(text.split(","), "--classes")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))  # refuses a key that stands twice
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        first = getattr(error, "problem", None) or getattr(error, "strerror", None) or str(error)
        raise _bad(str(path), first, "correct the file, or name the classes on the command line") from error
    return parse_classes(content, str(path))


def parse_classes(content: Any, source: str) -> ClassSpec:
    """What a YAML file holds, or names in order of the indices, in which the background may be left out.

    Raises:
        ConfigError: as `read_classes`.
    """
    if isinstance(content, Mapping) and list(content) == ["classes"]:
        content = content["classes"]
    if isinstance(content, list):
        names = [_standard(name) for name in content]
        names = [BACKGROUND, *names] if names and BACKGROUND not in names else names
        return ClassSpec(
            {name: place for place, name in enumerate(validate_classes(names, path=source))}, source=source
        )
    if not isinstance(content, Mapping) or not content:
        raise _bad(source, repr(content)[:80], "see docs/segment.md")
    pairs = list(content.items())
    if all(_is_index(key) and isinstance(value, str) for key, value in pairs):  # index: name
        pairs = [(value, key) for key, value in pairs]
    names = [_standard(name) for name, _ in pairs]
    validate_classes([BACKGROUND, *(name for name in names if name not in (BACKGROUND, IGNORE_NAME))], path=source)
    coloured = not all(_is_index(value) for _, value in pairs)
    owners: dict[int, str] = {}
    for name, (_, value) in zip(names, pairs, strict=True):
        number = _colour(value, name, source) if coloured else value
        other = owners.setdefault(number, name)
        if other != name or names.count(name) > 1:
            raise _bad(source, f"{value} for both `{other}` and `{name}`", "give every class one line and one value")
    return ClassSpec({name: value for value, name in owners.items()}, coloured, source)


def read_mask(path: Path) -> Mask:
    """The mask in a file. A camera's orientation in the file is applied, as it is to images.

    Raises:
        DataError: missing, unreadable or cut short. LabelError: a lossy file (JPEG), or a file of another kind.
    """
    colours: dict[int, int] = {}
    try:
        if path.suffix.lower() == ".npy":
            kind, array = _LOSSLESS[0], np.asarray(np.load(path, allow_pickle=False))
            form = f"an array {list(array.shape)} of {array.dtype}"
            known = True
        else:
            with Image.open(path) as file:
                kind, turned = str(file.format), ImageOps.exif_transpose(file)
            array, form = np.array(turned), f"a picture of mode {turned.mode}"
            known = turned.mode in (*_ONE_CHANNEL, "RGB", "RGBA")
            if turned.mode == "P":
                colours = dict(enumerate(pack(np.array(turned.getpalette("RGB"), np.uint8).reshape(-1, 3)).tolist()))
            if turned.mode in ("LA", "RGBA"):  # what is fully transparent was never painted
                array = np.where(array[..., -1:] == 0, 0, array[..., :-1])
    except DECODING_ERRORS as error:
        raise _unreadable(path, error) from error
    if kind not in _LOSSLESS:
        raise LabelError(
            f"a {kind} cannot hold a mask", path=path, found=f"a {kind} file, whose compression changes the classes",
            expected=_EXPECTED, remedy="export the mask as PNG from the program that drew it; do not convert this file",
        )  # fmt: skip
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if known and array.ndim == 2 and array.dtype.kind in "bui":
        return Mask(path, array.astype(np.int64), palette=colours)
    if known and array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8:
        return Mask(path, pack(array), coloured=True)
    raise LabelError(
        "this is not a mask", path=path, found=form, expected=_EXPECTED,
        remedy="save one whole number for each pixel, the index of its class, e.g. as an 8-bit PNG",
    )  # fmt: skip


def resolve(masks: Sequence[Mask], spec: ClassSpec) -> tuple[Classes, list[NDArray[np.uint8]]]:
    """Classes and label maps uint8 [H,W] (0..K-1, 255 = ignore) of masks that belong together.

    Index 0 or black is the background and index 255 is ignored, unless `spec` says otherwise. Where it says nothing,
    every other index is a class `class_<index>`, in ascending order.

    Raises:
        LabelError: colours or indices where the other is named, values that no class has, palettes that disagree, only
            background, more values than there can be classes.
    """
    masks = [_by_colour(mask, spec) if spec.coloured else mask for mask in masks]
    if not spec.coloured:
        _check_indices(masks, spec)
    pixels: Counter[int] = Counter()
    for mask in masks:
        values, counts = np.unique(mask.values, return_counts=True)
        pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    names, labels = _named(spec) if spec.values else _numbered(masks[0].path, pixels)
    for mask in masks:
        _check_values(mask, names, labels, spec)
    classes = {value: count for value, count in pixels.items() if 0 < labels[value] < IGNORE}
    if not classes:
        raise LabelError(
            "the masks show no class", path=masks[0].path, found=f"only {_listed(pixels, spec.coloured)}",
            expected=f"pixels of a class besides the background (index 0 or black) and {IGNORE} (ignore)",
            remedy="paint the parts that you are after; of a black-and-white mask, say what white is: --classes "
            f"classes.yaml with the line `name: {IGNORE}`",
        )  # fmt: skip
    if not spec.values and not masks[0].palette and pixels[IGNORE] > sum(classes.values()):
        raise LabelError(
            "more of the picture is ignored than belongs to a class", path=masks[0].path,
            found=f"{pixels[IGNORE]} pixels of value {IGNORE} (ignore), {sum(classes.values())} of "
            f"{_listed(classes, False)}",
            expected="indices 1, 2, ... and hard edges",
            remedy=f"{_SHARP}; or say what the values mean: --classes classes.yaml with lines `name: index`",
        )  # fmt: skip
    used = {value: label for value, label in labels.items() if label < IGNORE or value in pixels}
    colours = _drawn(masks, len(names), used)
    return Classes(names, colours, used, dict(pixels), spec.coloured), [_label_map(mask, labels) for mask in masks]


def pack(colours: NDArray[np.uint8]) -> NDArray[np.int64]:
    """uint8 [...,3] RGB -> int64 [...], 0xRRGGBB."""
    return colours.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])


def unpack(value: int) -> RGB:
    """0xRRGGBB -> (r, g, b)."""
    return value >> 16 & 255, value >> 8 & 255, value & 255


def _by_colour(mask: Mask, spec: ClassSpec) -> Mask:
    """A palette picture as one of colours."""
    if mask.coloured:
        return mask
    if not mask.palette:
        raise LabelError(
            "the classes are given by colour and the mask holds indices", path=mask.path,
            found=_listed(np.unique(mask.values).tolist(), False), expected=f"colours, as {spec.source} has",
            remedy="give an index for every class, e.g. `wheel: 3`",
        )  # fmt: skip
    table = np.zeros(256, np.int64)
    table[list(mask.palette)] = list(mask.palette.values())
    return replace(mask, values=table[mask.values], coloured=True)


def _check_indices(masks: Sequence[Mask], spec: ClassSpec) -> None:
    """Refuse colours that nothing names, and palettes that a program has numbered by itself.

    GIMP's indexed mode and GIF number the colours of each file anew, and need not give black the index 0.
    """
    owners: dict[int, tuple[int, Path]] = {}
    for mask in masks:
        used = np.unique(mask.values).tolist()
        if mask.coloured:
            raise LabelError(
                "the mask holds colours, and nothing says which class each one is", path=mask.path,
                found=_listed(used, True), expected=_EXPECTED,
                remedy=f"save the mask with one channel of class indices, or {_BY_COLOUR}",
            )  # fmt: skip
        for index in (each for each in used if each in mask.palette):
            colour = mask.palette[index]
            before, other = owners.setdefault(index, (colour, mask.path))
            if before != colour:
                raise LabelError(
                    "the masks' palettes disagree", path=mask.path,
                    found=f"index {index} is {_shown(colour, True)}, but {_shown(before, True)} in {other.name}",
                    expected="one index for one class in all masks", remedy=_BY_COLOUR,
                )  # fmt: skip
        black = [index for index in used if mask.palette.get(index) == 0]
        if black and 0 in used and 0 not in black and BACKGROUND not in spec.values:
            raise LabelError(
                "index 0 of the palette is not black", path=mask.path,
                found=f"index 0 is {_shown(mask.palette[0], True)}, and black is index {black[0]}",
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
            expected=f"at most {MOST - 1} besides the background, one for each class", remedy=_SHARP,
        )  # fmt: skip
    names = (BACKGROUND, *(f"class_{value}" for value in foreground))
    return names, {0: 0, **{value: 1 + place for place, value in enumerate(foreground)}, IGNORE: IGNORE}


def _check_values(mask: Mask, names: Sequence[str], labels: Mapping[int, int], spec: ClassSpec) -> None:
    strange = sorted(set(np.unique(mask.values).tolist()) - set(labels))
    if not strange:
        return
    counted = [f"{_shown(value, spec.coloured)} ({int((mask.values == value).sum())} pixels)" for value in strange[:5]]
    more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
    hint = "; many colours come from anti-aliased edges" if spec.coloured and len(strange) > 10 else ""
    raise LabelError(
        "a negative index" if strange[0] < 0 else "values that no class has", path=mask.path,
        found=f"{', '.join(counted)}{more}{hint}",
        expected=f"{_listed(labels, spec.coloured)} ({', '.join(names)}; from {spec.source})",
        remedy="name the missing classes with --classes, or repaint these pixels",
    )  # fmt: skip


def _label_map(mask: Mask, labels: Mapping[int, int]) -> NDArray[np.uint8]:
    values, places = np.unique(mask.values, return_inverse=True)
    return np.array([labels[value] for value in values.tolist()], np.uint8)[places].reshape(mask.values.shape)


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


def _shown(value: int, coloured: bool) -> str:
    return f"#{value:06x}" if coloured else str(value)


def _listed(values: Iterable[int], coloured: bool) -> str:
    shown = [_shown(value, coloured) for value in sorted(values)]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


def _standard(name: Any) -> Any:
    """A name without the spaces around it, and one word for the background; what is no name stays, to be refused."""
    if not isinstance(name, str):
        return name
    return BACKGROUND if name.strip().lower() in _BACKGROUNDS else name.strip()


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**16


def _colour(value: Any, name: str, source: str) -> int:
    """0xRRGGBB of [r, g, b], "#rrggbb" or a colour's English name."""
    try:
        if isinstance(value, list) and len(value) == 3:
            return int(pack(np.array([int(one) for one in value], np.uint8)))
        return int(pack(np.array(ImageColor.getrgb(value if isinstance(value, str) else "")[:3], np.uint8)))
    except (ValueError, TypeError, OverflowError):
        remedy = (
            "put colours in quotes, as YAML takes # for a comment; give all classes indices, or all of them colours"
        )
        raise _bad(source, f"{name}: {value!r}", remedy) from None


def _bad(source: str, found: object, remedy: str) -> ConfigError:
    return ConfigError("the classes cannot be read", path=source, found=found, expected=_FORMS, remedy=remedy)


def _unreadable(path: Path, error: BaseException) -> DataError:
    if isinstance(error, FileNotFoundError):
        found, remedy = "nothing", "correct the name"
    elif isinstance(error, IsADirectoryError):
        found, remedy = "a folder", "name a file; a folder of annotated images goes to --support"
    elif isinstance(error, PermissionError):
        found, remedy = "a file this user may not read", "change the file's permissions"
    else:
        size = path.stat().st_size if path.is_file() else 0
        found = f"{size} bytes that do not decode ({type(error).__name__}: {error})"
        remedy = "export the mask again"
    return DataError("cannot read the mask", path=path, found=found, expected=_EXPECTED, remedy=remedy)

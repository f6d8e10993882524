"""Class lists and label maps: what a label means, which colour it is drawn in, and how many pixels it has."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slime_bench.config.read import nearest
from slime_bench.errors import ConfigError

BACKGROUND = "background"
IGNORE = 255
MAX_CLASSES = 255
"""Label maps have 8 bits and 255 is no class. How many classes a method takes is the method's to check."""

IGNORE_NAME = "ignore"
"""Key of `data.colours` for the colour of ignored pixels."""

Colours = Mapping[tuple[int, int, int], int]
"""(red, green, blue) -> label, of label maps that are colour pictures; empty where there are none."""

_GOLDEN = 0.6180339887498949
_SHADES = ((0.90, 0.95), (0.45, 1.00), (0.95, 0.60), (0.60, 0.80))
_SHOWN = 5


def listing(names: Sequence[str]) -> str:
    """The first few of `names`, and how many there are in all."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def validate_classes(classes: Sequence[str], *, path: str = "data.classes") -> tuple[str, ...]:
    """`classes` as a tuple, once it is sure that they can be the classes of a label map.

    Args:
        classes: names in label order; index 0 is the background.
        path: the configuration key or file they come from, for the message.

    Raises:
        ConfigError: not a list of names, fewer than two, more than 255, first not `background`, or a name twice.
    """

    def require(holds: bool, summary: str, found: object, expected: str, remedy: str) -> None:
        if not holds:
            raise ConfigError(summary, path=path, found=found, expected=expected, remedy=remedy)

    require(
        not isinstance(classes, str) and all(isinstance(name, str) and name.strip() for name in classes),
        "the class list is not a list of names", repr(classes),
        "a list of non-empty names, e.g. [background, body, wheel]",
        "write the classes as a YAML list; quote names such as `on` or `no`, which YAML reads as booleans",
    )  # fmt: skip
    names = tuple(classes)
    require(
        bool(names) and names[0] == BACKGROUND,
        "the first class is not the background", names[0] if names else "an empty list", f"`{BACKGROUND}` at index 0",
        f"put `{BACKGROUND}` first and give it label 0",
    )  # fmt: skip
    require(
        len(names) >= 2,
        "there is nothing to segment", list(names), "the background and at least one more class",
        "name the classes of the label maps",
    )  # fmt: skip
    repeated = sorted({name for name in names if names.count(name) > 1})
    require(
        not repeated,
        "a class is listed twice", ", ".join(repeated), "every name once",
        "merge the labels while preparing the data, or rename one of the classes",
    )  # fmt: skip
    require(
        len(names) <= MAX_CLASSES,
        "too many classes for a label map", f"{len(names)} classes",
        f"at most {MAX_CLASSES}, as label maps have 8 bits and {IGNORE} is ignored",
        "merge classes, or segment them in several trials",
    )  # fmt: skip
    return names


def class_index(name: str, classes: Sequence[str], *, path: str = "data.classes") -> int:
    """The label of the class called `name`.

    Raises:
        ConfigError: no such class; the message names the nearest ones.
    """
    if name in classes:
        return list(classes).index(name)
    close = " or ".join(f"`{option}`" for option in nearest(name, classes))
    raise ConfigError(
        f"unknown class `{name}`", path=path, found=name, expected=", ".join(classes),
        remedy=f"did you mean {close}?" if close else "use one of these names",
    )  # fmt: skip


def check_same_classes(classes: Sequence[str], expected: Sequence[str]) -> None:
    """Refuse class names that are not those of the data set's manifest, in their order.

    Raises:
        ConfigError: names the first unknown class and its nearest, or both lists.
    """
    for name in classes:
        class_index(name, expected)
    if list(classes) != list(expected):
        raise ConfigError(
            "the class list differs from the data set's", path="data.classes", found=list(classes),
            expected=list(expected), remedy="list all classes of the label maps, in their order",
        )  # fmt: skip


def validate_colours(colours: Mapping[str, Sequence[int]], classes: Sequence[str]) -> dict[tuple[int, int, int], int]:
    """The table of `data.colours`: (red, green, blue), each 0..255, -> label.

    Args:
        colours: class name, or `ignore` for 255, -> RGB.
        classes: the K class names.

    Raises:
        ConfigError: an unknown class, something else than three numbers of 0..255, or one colour for two classes.
    """
    table: dict[tuple[int, int, int], int] = {}
    remedy = "correct it in the data set's YAML or on the command line"
    for name, colour in colours.items():
        path = f"data.colours.{name}"
        label = IGNORE if name == IGNORE_NAME and name not in classes else class_index(name, classes, path=path)
        if len(colour) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in colour):
            raise ConfigError(
                f"the colour of `{name}` is no colour", path=path, found=list(colour),
                expected="[red, green, blue], each 0 to 255", remedy=remedy,
            )  # fmt: skip
        red, green, blue = colour
        if (red, green, blue) in table:
            raise ConfigError(
                "two classes have one colour", path=path, found=list(colour),
                expected="a colour of its own for every class", remedy=remedy,
            )  # fmt: skip
        table[red, green, blue] = label
    return table


def labels_of_colours(picture: NDArray[np.uint8], colours: Colours) -> tuple[NDArray[np.int64], dict[tuple, int]]:
    """Class indices of a colour label map.

    Args:
        picture: uint8 [H,W,3] RGB.
        colours: as `validate_colours` gives them.

    Returns:
        int64 [H,W], 0 where the colour is none of `colours`; and those other colours -> number of pixels, most first.
    """
    codes = (picture.astype(np.int64) << np.array([16, 8, 0])).sum(axis=-1)  # one number per colour
    values, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    rgb = [(int(code) >> 16, int(code) >> 8 & 255, int(code) & 255) for code in values]
    labels = np.array([colours.get(colour, 0) for colour in rgb], dtype=np.int64)
    strangers = {colour: int(count) for colour, count in zip(rgb, counts, strict=True) if colour not in colours}
    ordered = dict(sorted(strangers.items(), key=lambda item: -item[1]))
    return labels[inverse.reshape(codes.shape)], ordered


def class_pixels(label: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
    """Pixels of each class: int64 [K], from a label map [H,W] in 0..255, of which those beyond K count for no class."""
    return np.bincount(label.ravel(), minlength=IGNORE + 1)[:num_classes]


def palette(num_classes: int) -> NDArray[np.uint8]:
    """Distinct colours, the same on every machine: uint8 [num_classes, 3] RGB; the background is black.

    Hues walk round the circle by the golden ratio, so that the first few classes, the ones most often seen side by
    side, are far apart whatever their number; saturation and value change from one to the next.
    """
    colours = [(0, 0, 0)]
    for index in range(num_classes - 1):
        rgb = colorsys.hsv_to_rgb(index * _GOLDEN % 1.0, *_SHADES[index % len(_SHADES)])
        colours.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    return np.array(colours[:num_classes], dtype=np.uint8)

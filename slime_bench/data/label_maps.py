"""Class lists and label maps: what a label means, and how many pixels it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from slime_bench.config.read import nearest
from slime_bench.errors import ConfigError

BACKGROUND = "background"
IGNORE = 255
IGNORE_NAME = "ignore"
"""Where a user says what values mean: the name of ignored pixels."""
MAX_CLASSES = 255
"""Label maps have 8 bits and 255 is no class. How many classes a method takes is the method's to check."""

RGB = tuple[int, int, int]
Packed = TypeVar("Packed", int, NDArray[np.int64])

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
    names = () if isinstance(classes, str) else tuple(classes)
    named = all(isinstance(name, str) and name.strip() for name in names)
    if not (named and names[:1] == (BACKGROUND,) and 2 <= len(names) <= MAX_CLASSES and len({*names}) == len(names)):
        raise ConfigError(
            "this class list cannot be", path=path,
            found=repr(classes) if len(names) <= MAX_CLASSES else f"{len(names)} classes",
            expected=f"2 to {MAX_CLASSES} names in label order, each of them once, `{BACKGROUND}` first",
            remedy=f"e.g. [{BACKGROUND}, body, wheel]; quote names such as `on` or `no`, which YAML reads as booleans",
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


def validate_colours(colours: Mapping[str, Sequence[int]], classes: Sequence[str]) -> dict[int, int]:
    """The table of `data.colours` (class name, or `ignore` for 255, -> [red, green, blue]): colour, 0xRRGGBB -> label.

    Raises:
        ConfigError: an unknown class, something else than three numbers of 0..255, or one colour for two classes.
    """
    table: dict[int, int] = {}
    for name, colour in colours.items():
        path = f"data.colours.{name}"
        label = IGNORE if name == IGNORE_NAME and name not in classes else class_index(name, classes, path=path)
        rgb = len(colour) == 3 and all(0 <= value <= 255 for value in colour)
        if not rgb or int(pack(np.array(colour))) in table:
            raise ConfigError(
                f"`{name}` cannot have this colour", path=path, found=list(colour),
                expected="[red, green, blue], each 0 to 255, and a colour of its own for every class",
                remedy="correct it in the data set's YAML or on the command line",
            )  # fmt: skip
        table[int(pack(np.array(colour)))] = label
    return table


def pack(colours: NDArray[Any]) -> NDArray[np.int64]:
    """uint8 [...,3] RGB -> int64 [...], 0xRRGGBB."""
    return colours.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])


def unpack(value: Packed) -> tuple[Packed, Packed, Packed]:
    """0xRRGGBB -> (r, g, b), of one colour or of int64 [...]."""
    return value >> 16 & 255, value >> 8 & 255, value & 255


def relabelled(values: NDArray[np.int64], labels: Mapping[int, int]) -> NDArray[np.int64]:
    """int64 [H,W]: the label of each of the `values` [H,W], 0 where `labels` has none."""
    found, places = np.unique(values, return_inverse=True)
    table = np.array([labels.get(value, 0) for value in found.tolist()], np.int64)
    return table[places].reshape(values.shape)


def counted(values: NDArray[np.int64], coloured: bool = False) -> str:
    """The most frequent `values`, with their numbers of pixels, for messages."""
    found, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return listing([f"{shown(int(found[i]), coloured)} ({counts[i]} pixels)" for i in order])


def shown(value: int, coloured: bool = False) -> str:
    """A value of a mask as people write it: an index, or `#rrggbb`."""
    return f"#{value:06x}" if coloured else str(value)


def class_pixels(label: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
    """Pixels of each class: int64 [K], from a label map [H,W] in 0..255, of which those beyond K count for no class."""
    return np.bincount(label.ravel(), minlength=IGNORE + 1)[:num_classes]

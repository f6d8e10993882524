"""Class lists and label maps: what a label means, how it is drawn, how it is resized."""

from __future__ import annotations

import colorsys
import difflib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
_IGNORE_COLOUR = (224, 224, 224)


def nearest(name: str, options: Iterable[str], count: int = 3) -> list[str]:
    """The `options` whose spelling is nearest to `name`, best first; empty when nothing is near."""
    return difflib.get_close_matches(name, list(options), n=count, cutoff=0.5)


def validate_classes(classes: Sequence[str], *, path: str = "data.classes") -> tuple[str, ...]:
    """`classes` as a tuple, once it is sure that they can be the classes of a label map.

    Args:
        classes: names in label order; index 0 is the background.
        path: the configuration key or file they come from, for the message.

    Raises:
        ConfigError: not a list of names, fewer than two, more than 255, first not `background`, or a name twice.
    """
    if isinstance(classes, str) or not all(isinstance(name, str) and name.strip() for name in classes):
        raise ConfigError(
            "the class list is not a list of names",
            path=path,
            found=repr(classes),
            expected="a list of non-empty names, e.g. [background, body, wheel]",
            remedy="write the classes as a YAML list; quote names such as `on` or `no`, which YAML reads as booleans",
        )
    names = tuple(classes)
    if not names or names[0] != BACKGROUND:
        raise ConfigError(
            "the first class is not the background",
            path=path,
            found=names[0] if names else "an empty list",
            expected=f"`{BACKGROUND}` at index 0",
            remedy=f"put `{BACKGROUND}` first and give it label 0",
        )
    if len(names) < 2:
        raise ConfigError(
            "there is nothing to segment",
            path=path,
            found=list(names),
            expected="the background and at least one more class",
            remedy="name the classes of the label maps",
        )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(
            "a class is listed twice",
            path=path,
            found=", ".join(repeated),
            expected="every name once",
            remedy="merge the labels while preparing the data, or rename one of the classes",
        )
    if len(names) > MAX_CLASSES:
        raise ConfigError(
            "too many classes for a label map",
            path=path,
            found=f"{len(names)} classes",
            expected=f"at most {MAX_CLASSES}, as label maps have 8 bits and {IGNORE} is ignored",
            remedy="merge classes, or segment them in several trials",
        )
    return names


def class_index(name: str, classes: Sequence[str], *, path: str = "data.classes") -> int:
    """The label of the class called `name`.

    Raises:
        ConfigError: no such class; the message names the nearest ones.
    """
    if name in classes:
        return list(classes).index(name)
    close = nearest(name, classes)
    raise ConfigError(
        f"unknown class `{name}`",
        path=path,
        found=name,
        expected=", ".join(classes),
        remedy=f"did you mean {' or '.join(f'`{option}`' for option in close)}?" if close else "use one of these names",
    )


def check_same_classes(classes: Sequence[str], known: Sequence[str]) -> None:
    """Refuse class names that are not those of the data set's manifest, in their order.

    Raises:
        ConfigError: names the first unknown class and its nearest, or both lists.
    """
    for name in classes:
        class_index(name, known)
    if list(classes) != list(known):
        raise ConfigError(
            "the class list differs from the data set's",
            path="data.classes",
            found=list(classes),
            expected=list(known),
            remedy="list all classes of the label maps, in their order",
        )


def validate_colours(colours: Mapping[str, Sequence[int]], classes: Sequence[str]) -> dict[tuple[int, int, int], int]:
    """The table of `data.colours`: (red, green, blue), each 0..255, -> label.

    Args:
        colours: class name, or `ignore` for 255, -> RGB.
        classes: the K class names.

    Raises:
        ConfigError: an unknown class, something else than three numbers of 0..255, or one colour for two classes.
    """
    table: dict[tuple[int, int, int], int] = {}
    for name, colour in colours.items():
        path = f"data.colours.{name}"
        label = IGNORE if name == IGNORE_NAME and name not in classes else class_index(name, classes, path=path)
        whole = all(isinstance(value, int) and 0 <= value <= 255 for value in colour)
        if len(colour) != 3 or not whole:
            raise ConfigError(
                f"the colour of `{name}` is no colour",
                path=path,
                found=list(colour),
                expected="[red, green, blue], each 0 to 255",
                remedy="correct it in the data set's YAML or on the command line",
            )
        key = (int(colour[0]), int(colour[1]), int(colour[2]))
        if key in table:
            raise ConfigError(
                "two classes have one colour",
                path=path,
                found=list(colour),
                expected="a colour of its own for every class",
                remedy="correct it in the data set's YAML or on the command line",
            )
        table[key] = label
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


def palette(num_classes: int) -> Tensor:
    """Distinct colours, the same on every machine: uint8 [num_classes, 3] RGB; the background is black.

    Hues walk round the circle by the golden ratio, so that the first few classes, the ones most often seen side by
    side, are far apart whatever their number; saturation and value change from one to the next.
    """
    colours = [(0, 0, 0)]
    for index in range(num_classes - 1):
        saturation, value = _SHADES[index % len(_SHADES)]
        red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN % 1.0, saturation, value)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return torch.tensor(colours[:num_classes], dtype=torch.uint8)


def colourise(label: Tensor, num_classes: int) -> Tensor:
    """A label map as a picture.

    Args:
        label: [H,W] integers in 0..num_classes-1, or 255 for ignored pixels, which are drawn light grey.
        num_classes: K.

    Returns:
        uint8 [H,W,3] RGB, ready for PIL or matplotlib.

    Raises:
        ValueError: a label that has no colour.
    """
    if label.ndim != 2 or label.is_floating_point():
        raise ValueError(f"a label map is [H,W] integers, found {label.dtype} {list(label.shape)}")
    label = label.long().cpu()
    known = (label >= 0) & (label < num_classes)
    ignored = label == IGNORE
    if not bool((known | ignored).all()):
        raise ValueError(f"labels {label[~(known | ignored)].unique().tolist()} lie outside 0..{num_classes - 1}")
    colours = torch.cat([palette(num_classes), torch.tensor([_IGNORE_COLOUR], dtype=torch.uint8)])
    return colours[torch.where(known, label, num_classes)]


def resize_label(label: Tensor, size: int | tuple[int, int], *, opencv: bool = False) -> Tensor:
    """Nearest-neighbour resize of label maps: out[i,j] = label[floor(i H/h), floor(j W/w)] from [H,W] to [h,w].

    This is the reference's `F.interpolate(mode="nearest")` (`src/dataset.py`) in whole numbers: the upper left pixel of
    each block; 255 stays 255 and no new value can appear.

    Args:
        label: [H,W] or [B,H,W], any integer type.
        size: the new side, or (height, width).
        opencv: round as OpenCV's INTER_NEAREST does, which the reference uses before that: the ratio is inverted
            twice in floating point, so that where i H/h is whole it may fall to the pixel before.

    Returns:
        the same type and number of axes at the new size.
    """
    size = (size, size) if isinstance(size, int) else size
    for axis, new in ((-2, size[0]), (-1, size[1])):
        old = label.shape[axis]
        if old == new:
            continue
        steps = torch.arange(new, device=label.device)
        index = (steps.double() * (1 / (new / old))).floor().long() if opencv else steps * old // new
        label = label.index_select(axis, index.clamp(max=old - 1))
    return label

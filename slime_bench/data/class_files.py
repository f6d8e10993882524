"""What a user says about the values of label maps: names in order, or an index or a colour for each name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import ImageColor

from slime_bench.data.label_maps import BACKGROUND, IGNORE_NAME, pack, validate_classes
from slime_bench.errors import ConfigError

_FORMS = 'a list of names, `name: index`, or `name: "#rrggbb"` (or [r, g, b])'


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


def read_classes(path: Path) -> ClassSpec:
    """The classes of a YAML file: a list of names, or `name: index`, or `name: colour`.

    Raises:
        ConfigError: a file that cannot be read or is neither list nor mapping, or names or values that cannot be.
    """
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
    if isinstance(content, list) and content:
        names = [name.strip() if isinstance(name, str) else name for name in content]
        names = names if BACKGROUND in names else [BACKGROUND, *names]
        valid = validate_classes(names, path=source)
        return ClassSpec({name: place for place, name in enumerate(valid)}, source=source)
    if not isinstance(content, Mapping) or not content:
        raise _bad(source, repr(content)[:80], "see docs/segment.md")
    values: dict[Any, Any] = dict(content)
    by_index = all(_is_index(key) and isinstance(name, str) for key, name in values.items())
    if by_index and len({*values.values()}) == len(values):
        values = {name: index for index, name in values.items()}
    validate_classes([BACKGROUND, *(name for name in values if name not in (BACKGROUND, IGNORE_NAME))], path=source)
    coloured = not all(map(_is_index, values.values()))
    if coloured:
        values = {name: _colour(value, name, source) for name, value in values.items()}
    if len({*values.values()}) < len(values):
        raise _bad(source, f"{content}"[:80], "give every class one line and one value")
    return ClassSpec(values, coloured, source)


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

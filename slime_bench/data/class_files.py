"""What a user says about the values of label maps: names in order, or an index or a colour for each name; and the class
lists that labelling tools write."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import ImageColor

from slime_bench.data.label_maps import BACKGROUND, IGNORE, IGNORE_NAME, pack, validate_classes
from slime_bench.errors import ConfigError
from slime_bench.storage import read_text

CLASS_FILES: Final = (
    "classes.yaml", "classes.yml", "data.yaml", "labelmap.txt", "_classes.csv", "labels.txt", "label_names.txt",
    "class_names.txt", "classes.txt",
)  # fmt: skip
"""Names of class lists as this bench, YOLO, CVAT, Roboflow and labelme write them."""

_FORMS = 'a list of names, `name: index`, or `name: "#rrggbb"` (or [r, g, b])'
_LABELME = {"_background_": BACKGROUND, "__ignore__": IGNORE_NAME}
_CVAT = re.compile(r"(?P<name>.+?):(?P<red>\d+),(?P<green>\d+),(?P<blue>\d+):[^:]*:[^:]*")


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
    """The classes of a file: YAML (a list of names, `name: index`, `name: colour`, or YOLO's `names:`), CVAT's
    `labelmap.txt`, Roboflow's `_classes.csv`, or text with one name per line, as labelme's `label_names.txt`.

    Names without indices are counted from 0 where the background is the first of them, and from 1 otherwise.
    ConfigError: a file that cannot be read or is of another kind, or names or values that cannot be.
    """
    text, source = read_text(path, ConfigError), str(path)
    if path.suffix.lower() == ".csv":
        return _roboflow(text, source)
    lines = [line for each in text.splitlines() if (line := each.strip())]
    if path.suffix.lower() not in (".yaml", ".yml"):
        if any(_CVAT.fullmatch(line) for line in lines):
            return _cvat([line for line in lines if not line.startswith("#")], source)
        if not any(":" in line or line.startswith(("-", "[")) for line in lines):
            return _one_per_line(lines, source)
    try:
        content = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))  # refuses a key that stands twice
    except (OSError, yaml.YAMLError, OmegaConfBaseException) as error:
        first = getattr(error, "problem", None) or getattr(error, "strerror", None) or str(error)
        raise _bad(source, first, "correct the file, or name the classes on the command line") from error
    names = content.get("names") if isinstance(content, Mapping) else None
    if isinstance(names, Mapping) and names.get(0) not in (None, BACKGROUND):
        raise ConfigError(
            f"class 0 is called `{names[0]}`, but 0 is the background of a label map", path=source,
            found=f"names: {dict(names)}"[:80], expected=f"`0: {BACKGROUND}`, or no 0",
            remedy=f"say what the values of your masks mean, in a file with lines `{names[0]}: 1`; or `{names[0]}: 0`, "
            "where the masks have no background",
        )  # fmt: skip
    return parse_classes(names if isinstance(names, list | Mapping) else content, source)


def class_file_of(folder: Path) -> Path | None:
    """The class list that lies in a folder of annotated images, if any; ConfigError where there are several."""
    found = [path for name in CLASS_FILES if (path := folder / name).is_file()]
    if len(found) > 1:
        raise ConfigError(
            "the folder has several class lists", path=folder, found=" and ".join(path.name for path in found),
            expected="one of them", remedy=f"say which one holds, e.g. --classes {found[0]}, or move the others away",
        )  # fmt: skip
    return found[0] if found else None


def parse_classes(content: Any, source: str) -> ClassSpec:
    """What a YAML file holds, or names in order of the indices, in which the background may be left out; ConfigError as
    `read_classes`."""
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


def _roboflow(text: str, source: str) -> ClassSpec:
    """`_classes.csv`: a line of titles, then `index, name`."""
    rows = [row for row in csv.reader(io.StringIO(text), skipinitialspace=True) if row][1:]
    values = {}
    for row in rows:
        if len(row) != 2 or not row[0].strip().isdecimal() or row[1].strip() in values:
            raise _bad(source, ",".join(row)[:80], "give each class a line of its own, `index, name`, below the titles")
        values[row[1].strip()] = int(row[0])
    return parse_classes(values, source)


def _cvat(lines: list[str], source: str) -> ClassSpec:
    """`labelmap.txt`: lines `name:red,green,blue:parts:actions`."""
    values: dict[str, Any] = {}
    for line in lines:
        found = _CVAT.fullmatch(line)
        if not found or found["name"] in values:
            remedy = "give each class a line of its own, `name:red,green,blue::`, as CVAT exports it"
            raise _bad(source, line[:80], remedy)
        values[found["name"]] = [int(found[channel]) for channel in ("red", "green", "blue")]
    return parse_classes(values, source)


def _one_per_line(lines: list[str], source: str) -> ClassSpec:
    """Names in order of the indices. labelme counts `__ignore__`, where it is the first, as -1, and saves it as 255."""
    names = [_LABELME.get(line, line) for line in lines]
    ignored = names[:1] == [IGNORE_NAME]
    spec = parse_classes(names[ignored:], source)
    return ClassSpec(spec.values | ({IGNORE_NAME: IGNORE} if ignored else {}), source=source)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**16


def _colour(value: Any, name: str, source: str) -> int:
    """0xRRGGBB of [r, g, b], "#rrggbb" or a colour's English name."""
    try:
        named = not (isinstance(value, list) and len(value) == 3)
        channels = ImageColor.getrgb(value if isinstance(value, str) else "")[:3] if named else value
        return int(pack(np.array([int(one) for one in channels], np.uint8)))
    except (ValueError, TypeError, OverflowError):
        remedy = (
            "put colours in quotes, as YAML takes # for a comment; give all classes indices, or all of them colours"
        )
        raise _bad(source, f"{name}: {value!r}", remedy) from None


def _bad(source: str, found: object, remedy: str) -> ConfigError:
    return ConfigError("the classes cannot be read", path=source, found=found, expected=_FORMS, remedy=remedy)

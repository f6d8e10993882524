"""What the user says about the classes: names in order, or names with indices or colours; from YAML or commas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from PIL import ImageColor

from slime_bench.data.label_maps import BACKGROUND, validate_classes
from slime_bench.errors import ConfigError
from slime_bench.segment.masks import RGB

IGNORED = "ignore"
_BACKGROUNDS = (BACKGROUND, "bg", "_background_")
_FORMS = 'a list of names, `name: index`, or `name: "#rrggbb"` (or [r, g, b])'


@dataclass(frozen=True)
class ClassSpec:
    """At most one of the three says what the values of a mask mean.

    Attributes:
        names: in label order, `background` first.
        indices, colours: value of each class in the masks; the name `ignore` marks pixels that count for no class.
        source: the file or option, for messages.
    """

    names: tuple[str, ...] = ()
    indices: dict[str, int] = field(default_factory=dict)
    colours: dict[str, RGB] = field(default_factory=dict)
    source: str = "--classes"


def read_classes(text: str | None) -> ClassSpec:
    """The classes of a YAML file, or of names separated by commas; an empty `ClassSpec` for None.

    Names in order may leave the background out: it is put first.

    Raises:
        ConfigError: a file that cannot be read or is neither list nor mapping, or names or values that cannot be.
    """
    if text is None:
        return ClassSpec()
    path = Path(text)
    if path.suffix.lower() not in (".yaml", ".yml", ".json") and ("," in text or not path.is_file()):
        return _from_list([name.strip() for name in text.split(",")], "--classes")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        first = getattr(error, "problem", None) or getattr(error, "strerror", None) or str(error)
        raise _bad(str(path), first, "correct the file, or name the classes on the command line") from error
    if isinstance(content, dict) and list(content) == ["classes"]:
        content = content["classes"]
    return parse_classes(content, str(path))


def parse_classes(content: Any, source: str) -> ClassSpec:
    """What a YAML file holds, as a `ClassSpec`; see `read_classes`."""
    if isinstance(content, list):
        return _from_list(content, source)
    if not isinstance(content, Mapping) or not content:
        raise _bad(source, repr(content)[:80], "see README.md, `Your own images`")
    pairs = list(content.items())
    if all(_is_index(key) and isinstance(value, str) for key, value in pairs):  # index: name
        pairs = [(value, key) for key, value in pairs]
    names = [_standard(name) for name, _ in pairs]
    values = [value for _, value in pairs]
    wanted = [name for name in names if name not in (BACKGROUND, IGNORED)]
    validate_classes([BACKGROUND, *wanted], path=source)
    if len(set(names)) < len(names):
        raise _bad(source, "a class twice", "give every class one line")
    if all(_is_index(value) for value in values):
        return _checked(ClassSpec(indices=dict(zip(names, values, strict=True)), source=source))
    colours = [_colour(value, name, source) for name, value in zip(names, values, strict=True)]
    return _checked(ClassSpec(colours=dict(zip(names, colours, strict=True)), source=source))


def _from_list(names: list[Any], source: str) -> ClassSpec:
    names = [_standard(name) for name in names]
    if names and BACKGROUND not in names:
        names = [BACKGROUND, *names]
    return ClassSpec(names=validate_classes(names, path=source), source=source)


def _checked(spec: ClassSpec) -> ClassSpec:
    values = list((spec.indices or spec.colours).items())
    owners: dict[Any, str] = {}
    for name, value in values:
        if value in owners:
            raise _bad(
                spec.source, f"{value} for both `{owners[value]}` and `{name}`", "give every class its own value"
            )
        owners[value] = name
    return spec


def _standard(name: Any) -> Any:
    """A name without the spaces around it, and one word for the background; what is no name stays, to be refused."""
    if not isinstance(name, str):
        return name
    name = name.strip()
    return BACKGROUND if name.lower() in _BACKGROUNDS else name


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**16


def _colour(value: Any, name: Any, source: str) -> RGB:
    if isinstance(value, list) and len(value) == 3 and all(_is_index(one) and one < 256 for one in value):
        return (value[0], value[1], value[2])
    try:
        red, green, blue = ImageColor.getrgb(value if isinstance(value, str) else "")[:3]
    except ValueError:
        found = f"{name}: {value!r}"
        remedy = (
            "put colours in quotes, as YAML takes # for a comment; give all classes indices, or all of them colours"
        )
        raise _bad(source, found, remedy) from None
    return red, green, blue


def _bad(source: str, found: object, remedy: str) -> ConfigError:
    return ConfigError("the classes cannot be read", path=source, found=found, expected=_FORMS, remedy=remedy)


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML's own loader keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
        if twice is not None:
            raise yaml.MarkedYAMLError(problem=f"the key `{twice}` stands twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep=deep)

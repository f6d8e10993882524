"""Plain values to dataclasses, strictly, by pydantic; its complaints become errors that name the key and a way out.

A `Config` is an ordinary dataclass. What its types do not say stands in them as pydantic's `Field`, e.g.
`Annotated[int, Field(ge=0)]`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import os
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from slime_bench.errors import ConfigError, SlimeBenchError

MISSING = "???"
"""OmegaConf's word for a value that has to be given."""
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
T = TypeVar("T")


def join(path: str, key: object) -> str:
    """`path.key`, `path[key]` for a place in a list, or `key` alone at the root."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else str(key)


def nearest(name: str, valid: Iterable[str], count: int = 3, cutoff: float = 0.5) -> list[str]:
    """The valid names most like `name`, best first; a dotted name whose last part equals `name` comes before all."""
    names = list(dict.fromkeys(valid))
    moved = [key for key in names if "." in key and key.rsplit(".", 1)[1] == name.rsplit(".", 1)[-1]]
    similar = difflib.get_close_matches(name, names, n=count, cutoff=cutoff)
    return list(dict.fromkeys([*moved, *similar]))[:count]


def read(cls: type[T], values: Mapping[str, Any], path: str = "", elsewhere: Iterable[str] = ()) -> T:
    """An instance of the dataclass `cls` from plain values; `???` stands for a value that was not given.

    Args:
        path: dotted key of `values`, for messages. elsewhere: dotted keys that the user may have meant instead.

    Raises:
        ConfigError: an unknown, missing or ill-typed key, or values that the dataclass itself refuses.
    """
    given = _given(values)
    try:
        # As JSON, in which strictness leaves lists for tuples, and text for paths and enumerations.
        found: T = _adapter(cls).validate_json(json.dumps(given), strict=True)  # type: ignore[arg-type]
        return found
    except ValidationError as error:
        raise _translated(error.errors(include_url=False), cls, given, path, elsewhere) from error


@functools.cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    _make_strict(cls)
    return TypeAdapter(cls)


def _make_strict(hint: Any) -> None:
    """Let every dataclass within `hint` refuse keys that it does not have."""
    for each in _dataclasses(hint):
        if not hasattr(each, "__pydantic_config__"):
            each.__pydantic_config__ = _STRICT  # type: ignore[attr-defined]
            for inner in typing.get_type_hints(each).values():
                _make_strict(inner)


def _dataclasses(hint: Any) -> Iterator[type]:
    """The dataclasses of a type such as `list[Inner] | None`."""
    if dataclasses.is_dataclass(hint):
        yield typing.cast(type, hint)
    for part in typing.get_args(hint):
        yield from _dataclasses(part)


def _given(value: Any) -> Any:
    """Without what was not given; paths below `~` are expanded, as no shell does it in a file or a variable."""
    if isinstance(value, Mapping):
        return {str(key): _given(item) for key, item in value.items() if item != MISSING}
    if isinstance(value, list | tuple):
        return [_given(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _translated(
    errors: Sequence[Mapping[str, Any]], cls: type, values: Any, path: str, elsewhere: Iterable[str]
) -> SlimeBenchError:
    # An unknown key first: it may be why another one is missing.
    first = next((each for each in errors if each["type"] in _UNKNOWN), errors[0])
    keys = list(_keys(first, values))
    here = functools.reduce(join, keys, path)
    if first["type"] in _UNKNOWN:
        return unknown_key(here, [join(here.rpartition(".")[0], name) for name in _fields(cls, keys[:-1])], elsewhere)
    if first["type"] == "missing" and not isinstance(first["loc"][-1], int):  # with a number: a list that is too short
        return ConfigError(
            f"`{here}` is missing", path=here, found="no value", expected="one: it has no default",
            remedy=f"give it in the YAML file or on the command line: {here}=<value>",
        )  # fmt: skip
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, SlimeBenchError):
        return cause
    if first["type"] in ("value_error", "assertion_error"):
        return ConfigError(
            f"`{here or cls.__name__}` holds values that do not go together", path=here or None, found=cause,
            remedy="correct the values named above",
        )  # fmt: skip
    return _ill_typed(here, first["input"], [each for each in errors if list(_keys(each, values)) == keys])


def _keys(error: Mapping[str, Any], values: Any) -> Iterator[str | int]:
    """The path of an error's value; pydantic's own has names of types in it, where there is a choice of them."""
    for key in error["loc"]:
        if isinstance(values, Mapping) and (key in values or error["type"] == "missing"):
            values = values.get(key)
        elif isinstance(values, list) and isinstance(key, int) and key < len(values):
            values = values[key]
        else:
            continue
        yield key


def _fields(cls: type, keys: Sequence[str | int]) -> list[str]:
    """Names of the fields of the dataclass at `keys` within `cls`."""
    found = [cls]
    for key in keys:  # a place in a list, or a key of a mapping, leads to no other dataclass
        hints = [typing.get_type_hints(each).get(str(key)) for each in found]
        found = [inner for hint in hints for inner in _dataclasses(hint)] or found
    return [each.name for one in found for each in dataclasses.fields(one) if each.init]


def unknown_key(path: str, valid: Sequence[str], elsewhere: Iterable[str] = ()) -> ConfigError:
    """The error for a key that is not there, with the nearest ones; all of them dotted."""
    close = nearest(path, valid)
    close += [each for each in nearest(path, elsewhere) if each not in close]
    return ConfigError(
        f"unknown key `{path}`",
        path=path,
        found=f"`{path.rpartition('.')[2]}`",
        expected=f"one of {', '.join(sorted(each.rpartition('.')[2] for each in valid))}" if valid else "no key at all",
        remedy=f"did you mean `{'` or `'.join(close)}`?" if close else "correct or remove the key",
    )


def _ill_typed(path: str, value: Any, errors: Sequence[Mapping[str, Any]]) -> ConfigError:
    """The error for a value of which pydantic says what it should be, in a sentence for each type that it may have."""
    said = (each["msg"].removeprefix("Input should be ").replace("array", "list") for each in errors)
    expected = " or ".join(dict.fromkeys(said))
    remedy = f"correct `{path}`"
    # Short words are soon alike: `gpu` is not to become `cpu`.
    if isinstance(value, str) and (close := nearest(value, re.findall(r"'([^']*)'", expected), cutoff=0.7)):
        remedy = f"did you mean {path}={close[0]}?"
    elif any(each["type"] == "string_type" for each in errors):
        remedy = "put the text in quotes of its own inside the shell's: 'key=\"text\"'; digits joined by _ are a number"
    kind = "null" if value is None else f"{value!r} ({'text' if isinstance(value, str) else type(value).__name__})"
    return ConfigError(
        f"`{path}` has a value that it cannot have", path=path, found=kind, expected=expected, remedy=remedy
    )


def plain(instance: Any) -> Any:
    """A dataclass instance as dict, list and scalars that YAML and JSON can hold; paths and enums become text."""
    if dataclasses.is_dataclass(instance) and not isinstance(instance, type):
        return {each.name: plain(getattr(instance, each.name)) for each in dataclasses.fields(instance) if each.init}
    if isinstance(instance, Mapping):
        return {str(key): plain(entry) for key, entry in instance.items()}
    if isinstance(instance, list | tuple):
        return [plain(entry) for entry in instance]
    if isinstance(instance, Enum):
        return instance.value
    return str(instance) if isinstance(instance, Path) else instance

"""Plain values to dataclasses, strictly, by pydantic; its complaints become errors that name the key and a way out.

A `Config` is an ordinary dataclass. What its types do not say stands in them as pydantic's `Field`, e.g.
`Annotated[int, Field(ge=0)]`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import types
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
_WORDS = {
    # pydantic's type of an error: what was expected, in a user's words
    "bool_type": "true or false", "int_type": "whole number", "int_from_float": "whole number", "float_type": "number",
    "finite_number": "number", "string_type": "text", "path_type": "path", "list_type": "list", "tuple_type": "list",
    "dict_type": "mapping", "none_required": "null",
}  # fmt: skip
_NAMES = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path", type(None): "null"}
T = TypeVar("T")
Error = Mapping[str, Any]


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
    given = _without_missing(values)
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
    if dataclasses.is_dataclass(hint) and not hasattr(hint, "__pydantic_config__"):
        hint.__pydantic_config__ = _STRICT  # type: ignore[union-attr]
        for each in typing.get_type_hints(hint).values():
            _make_strict(each)
    for each in typing.get_args(hint):
        _make_strict(each)


def _without_missing(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_missing(item) for key, item in value.items() if item != MISSING}
    return [_without_missing(item) for item in value] if isinstance(value, list | tuple) else value


def _translated(
    errors: Sequence[Error], cls: type, values: Any, path: str, elsewhere: Iterable[str]
) -> SlimeBenchError:
    # An unknown key first: it may be why another one is missing.
    first = next((each for each in errors if each["type"] in _UNKNOWN), errors[0])
    keys = list(_keys(first, values))
    here = functools.reduce(join, keys, path)
    if first["type"] in _UNKNOWN:
        return unknown_key(here, [join(here.rpartition(".")[0], name) for name in _names(cls, keys[:-1])], elsewhere)
    hint = _hint(cls, keys)
    if first["type"] == "missing" and not isinstance(first["loc"][-1], int):  # with a number: a list that is too short
        return ConfigError(
            f"`{here}` is missing", path=here, found="no value", expected=describe(hint),
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
    same = [each for each in errors if list(_keys(each, values)) == keys]
    expected = " or ".join(dict.fromkeys(_expected(each, hint) for each in same))
    return _ill_typed(here, first["input"], expected, hint)


def _keys(error: Error, values: Any) -> Iterator[str | int]:
    """The path of an error's value; pydantic's own has names of types in it, where there is a choice of them."""
    for key in error["loc"]:
        if isinstance(values, Mapping) and (key in values or error["type"] == "missing"):
            values = values.get(key)
        elif isinstance(values, list) and isinstance(key, int) and key < len(values):
            values = values[key]
        else:
            continue
        yield key


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


def _hint(hint: Any, keys: Sequence[str | int]) -> Any:
    """The type of the value at `keys` below a value of the type `hint`; Any where that cannot be told."""
    for key in keys:
        options = [each for each in (typing.get_args(hint) if _is_union(hint) else [hint]) if each is not type(None)]
        for option in options:
            if dataclasses.is_dataclass(option) and key in (hints := typing.get_type_hints(option)):
                hint = hints[str(key)]
                break
            parts = [each for each in typing.get_args(option) if each is not Ellipsis]
            if parts and typing.get_origin(option) is not typing.Literal:
                fixed = typing.get_origin(option) is tuple and isinstance(key, int) and key < len(parts)
                hint = parts[key] if fixed else parts[-1]  # type: ignore[index]
                break
        else:
            return Any
    return hint


def _names(cls: type, keys: Sequence[str | int]) -> list[str]:
    hint = _hint(cls, keys)
    options = typing.get_args(hint) if _is_union(hint) else [hint]
    found = next((each for each in options if dataclasses.is_dataclass(each)), None)
    return [] if found is None else [each.name for each in dataclasses.fields(found) if each.init]


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _expected(error: Error, hint: Any) -> str:
    kind, facts = error["type"], error.get("ctx", {})
    match kind:
        case "string_type" if hint is Path:
            return "path"
        case "literal_error" | "enum":
            return f"one of {', '.join(map(str, _options(hint)))}"
        case "greater_than_equal" | "less_than_equal" | "greater_than" | "less_than":
            name, bound = next(iter(facts.items()))
            return f"{_NAMES.get(type(bound), 'number')}, {_BOUNDS[name]} {bound}"
        case "too_short" | "too_long":
            count = facts.get("min_length", facts.get("max_length"))
            return f"list of {count} × {describe(hint).rpartition(' × ')[2].removeprefix('list of ')}"
        case "missing" | "dataclass_type" | "list_type" | "tuple_type":
            return describe(hint)
    return _WORDS.get(kind) or error["msg"].removeprefix("Input should be ")


_BOUNDS = {"ge": "at least", "le": "at most", "gt": "above", "lt": "below"}


def _ill_typed(path: str, value: Any, expected: str, hint: Any) -> ConfigError:
    remedy, options = f"correct `{path}`", [str(each) for each in _options(hint)]
    # Short words are soon alike: `gpu` is not to become `cpu`.
    close = nearest(value, options, cutoff=0.7) if isinstance(value, str) else []
    if close:
        remedy = f"did you mean {path}={close[0]}?"
    elif expected == "text" and isinstance(value, bool | int | float):
        remedy = f"put it in quotes to have it read as text: '{path}=\"{value}\"'"
        if path.endswith("]"):
            key = path.partition("[")[0]
            remedy = (
                f"put each item in quotes, and the whole in others: '{key}=[\"...\"]'; digits joined by _ are a number"
            )
    kind = "null" if value is None else f"{value!r} ({type(value).__name__})"
    return ConfigError(
        f"`{path}` has a value that it cannot have", path=path, expected=expected, remedy=remedy,
        found=repr(value) + " (text)" if isinstance(value, str) else kind,
    )  # fmt: skip


def _options(hint: Any) -> tuple[Any, ...]:
    if _is_union(hint):
        return tuple(each for part in typing.get_args(hint) for each in _options(part))
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    return tuple(member.value for member in hint) if isinstance(hint, type) and issubclass(hint, Enum) else ()


def describe(hint: Any) -> str:
    """A type in a user's words: `list of 2 × whole number`."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return describe(parts[0])
    if _is_union(hint):
        return " or ".join(describe(part) for part in parts)
    if _options(hint):
        return f"one of {', '.join(map(str, _options(hint)))}"
    if origin in (list, tuple) or hint in (list, tuple):
        kinds = dict.fromkeys(describe(part) for part in parts if part is not Ellipsis)
        count = f"{len(parts)} × " if origin is tuple and Ellipsis not in parts else ""
        return f"list of {count}{' and '.join(kinds) or 'anything'}"
    if dataclasses.is_dataclass(hint):
        return f"mapping with the keys {', '.join(each.name for each in dataclasses.fields(hint))}"
    return "mapping" if origin is dict else _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


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

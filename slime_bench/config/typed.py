"""Plain values to dataclasses, strictly: an unknown key, a wrong type or a missing value is an error naming its key.

A dataclass may say more about a field than its type does, in the field's metadata:
`choices` (allowed values), `min` and `max` (inclusive bounds), `length` (of a list). `choices`, `min` and `max` of a
list hold for its items.

OmegaConf's structured configs check types too, but they turn 2.5 and "2" into what is wanted where they can, know no
`Literal` and no bounds, and their messages name neither the nearest key nor what to do.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from slime_bench.errors import ConfigError, SlimeBenchError

MISSING = "???"
_NO_METADATA: Mapping[str, Any] = types.MappingProxyType({})
_UNIONS = (typing.Union, types.UnionType)
_NAMES = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path", type(None): "null"}
T = TypeVar("T")


class _Interpolated(str):
    """Text that came out of an interpolation: environment variables are text even where a number is meant."""


def join(path: str, key: object) -> str:
    """`path.key`, or `key` alone at the root."""
    return f"{path}.{key}" if path else str(key)


def nearest(name: str, valid: Iterable[str], count: int = 3, cutoff: float = 0.5) -> list[str]:
    """The valid names most like `name`, best first; a dotted name whose last part equals `name` comes before all."""
    known = list(dict.fromkeys(valid))
    moved = [key for key in known if "." in key and key.rsplit(".", 1)[1] == name.rsplit(".", 1)[-1]]
    similar = difflib.get_close_matches(name, known, n=count, cutoff=cutoff)
    return list(dict.fromkeys([*moved, *similar]))[:count]


def resolved(node: Any, path: str = "") -> Any:
    """An OmegaConf node as plain dict, list and scalars with its interpolations resolved; `???` stays.

    Raises:
        ConfigError: an interpolation that leads nowhere, e.g. an environment variable that is not set.
    """
    if isinstance(node, DictConfig):
        if node._is_missing():
            return MISSING
        if node._is_none():
            return None
        return {str(key): _child(node, key, join(path, key)) for key in node}
    if isinstance(node, ListConfig):
        if node._is_none():
            return None
        return [_child(node, index, f"{path}[{index}]") for index in range(len(node))]
    return node


def _child(node: DictConfig | ListConfig, key: Any, path: str) -> Any:
    if OmegaConf.is_missing(node, key):
        return MISSING
    try:
        value = node[key]
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"the value of `{path}` cannot be looked up",
            path=path,
            found=str(error).split("\n", 1)[0],
            expected="an interpolation of existing keys, or a variable that is set",
            remedy=f"give the value itself: {path}=<value>",
        ) from error
    if isinstance(value, str) and OmegaConf.is_interpolation(node, key):
        return _Interpolated(value)
    return resolved(value, path)


def typed(cls: type[T], values: Mapping[str, Any], path: str = "") -> T:
    """An instance of the dataclass `cls` from plain values.

    Args:
        cls: dataclass; its fields may be bool, int, float, str, Path, Any, Enum, Literal, Optional and other unions,
            list, tuple, dict and dataclasses again.
        values: plain values as `resolved` gives them.
        path: dotted key of `values`, for messages.

    Raises:
        ConfigError: an unknown, missing or ill-typed key, or values that the dataclass itself refuses.
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    check_names(values, fields, path)
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        here = join(path, name)
        default = _default(field)
        value = values.get(name, default)
        if value is dataclasses.MISSING or value == MISSING:
            raise ConfigError(
                f"`{here}` is missing",
                path=here,
                found="no value",
                expected=describe(hints[name], field.metadata),
                remedy=f"give it in the YAML file or on the command line: {here}=<value>",
            )
        if name in values:
            arguments[name] = convert(value, hints[name], here, field.metadata)
    try:
        return cls(**arguments)
    except SlimeBenchError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"`{path or cls.__name__}` holds values that do not go together",
            path=path or None,
            found=error,
            remedy="correct the values named above",
        ) from error


def check_names(values: Mapping[str, Any], valid: Iterable[str], path: str = "", elsewhere: Iterable[str] = ()) -> None:
    """Raise a ConfigError for the first key of `values` that is not in `valid`.

    Args:
        elsewhere: dotted keys that the user may have meant instead.
    """
    names = list(valid)
    for key in values:
        if key in names:
            continue
        close = [join(path, name) for name in nearest(key, names)]
        close += [name for name in nearest(join(path, key), elsewhere) if name not in close]
        raise ConfigError(
            f"unknown key `{join(path, key)}`",
            path=join(path, key),
            found=f"`{key}`",
            expected=f"one of {', '.join(sorted(names))}" if names else "no key at all",
            remedy=f"did you mean `{'` or `'.join(close)}`?" if close else "correct or remove the key",
        )


def convert(value: Any, hint: Any, path: str, metadata: Mapping[str, Any] = _NO_METADATA) -> Any:
    """`value` as the type `hint`, or a ConfigError that names `path`."""
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return str(value) if isinstance(value, _Interpolated) else value
    if origin in _UNIONS:
        return _convert_union(value, hint, path, metadata)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise _ill_typed(value, hint, path, metadata)
        return typed(typing.cast(type, hint), value, path)
    if origin is dict or origin is Mapping:
        if not isinstance(value, Mapping):
            raise _ill_typed(value, hint, path, metadata)
        item = parameters[1] if parameters else Any
        return {str(key): convert(entry, item, join(path, key), metadata) for key, entry in value.items()}
    if origin in (list, tuple, Sequence) or hint in (list, tuple):
        return _convert_items(value, hint, path, metadata)
    return _convert_scalar(value, hint, path, metadata)


def _convert_union(value: Any, hint: Any, path: str, metadata: Mapping[str, Any]) -> Any:
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    if value is None and len(options) < len(typing.get_args(hint)):
        return None
    if len(options) == 1:
        return convert(value, options[0], path, metadata)
    for option in options:
        try:
            return convert(value, option, path)
        except ConfigError:
            continue
    raise _ill_typed(value, hint, path, metadata)


def _convert_items(value: Any, hint: Any, path: str, metadata: Mapping[str, Any]) -> Any:
    origin, parameters = typing.get_origin(hint) or hint, typing.get_args(hint)
    if not isinstance(value, list | tuple):
        raise _ill_typed(value, hint, path, metadata)
    fixed = origin is tuple and bool(parameters) and Ellipsis not in parameters
    length = len(parameters) if fixed else metadata.get("length")
    if length is not None and len(value) != length:
        raise _ill_typed(list(value), hint, path, {**metadata, "length": length})
    kinds = parameters if fixed else [parameters[0] if parameters else Any] * len(value)
    entries = zip(value, kinds, strict=True)
    items = [convert(entry, kind, f"{path}[{index}]", metadata) for index, (entry, kind) in enumerate(entries)]
    return tuple(items) if origin is tuple else items


def _convert_scalar(value: Any, hint: Any, path: str, metadata: Mapping[str, Any]) -> Any:
    result = value
    if isinstance(value, _Interpolated):
        result = _parse(value) if hint in (bool, int, float) else str(value)
    if hint is float and isinstance(result, int) and not isinstance(result, bool):
        result = float(result)
    if typing.get_origin(hint) is typing.Literal:
        fits = any(type(result) is type(option) and result == option for option in typing.get_args(hint))
    elif isinstance(hint, type) and issubclass(hint, Enum):
        members = {**{str(member.value): member for member in hint}, **hint.__members__}
        fits = str(result) in members
        result = members.get(str(result))
    elif hint is Path:
        fits = isinstance(result, str | Path) and bool(str(result))
        result = Path(result) if fits else result
    elif hint in (bool, int, float, str, type(None)):
        fits = type(result) is hint and not (hint is float and not math.isfinite(result))
    else:
        raise TypeError(f"{path}: a configuration field cannot have the type {hint!r}")
    choices, least, most = metadata.get("choices"), metadata.get("min"), metadata.get("max")
    fits = fits and (choices is None or result in choices)
    fits = fits and (least is None or result >= least) and (most is None or result <= most)
    if not fits:
        raise _ill_typed(value, hint, path, metadata)
    return result


def _parse(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _ill_typed(value: Any, hint: Any, path: str, metadata: Mapping[str, Any]) -> ConfigError:
    remedy = f"correct `{path}`"
    options = [str(option) for option in metadata.get("choices") or _literals(hint)]
    # Short words are soon alike: `gpu` is not to become `cpu`.
    close = nearest(value, options, cutoff=0.7) if isinstance(value, str) else []
    if close:
        remedy = f"did you mean {path}={close[0]}?"
    elif hint is str and not options and isinstance(value, bool | int | float):
        remedy = f"put it in quotes to have it read as text: '{path}=\"{value}\"'"
        if path.endswith("]"):
            key = path.partition("[")[0]
            remedy = (
                f"put each item in quotes, and the whole in others: '{key}=[\"...\"]'; digits joined by _ are a number"
            )
    kind = "null" if value is None else f"{value!r} ({type(value).__name__})"
    return ConfigError(
        f"`{path}` has a value that it cannot have",
        path=path,
        found=repr(str(value)) + " (text)" if isinstance(value, str) else kind,
        expected=describe(hint, metadata),
        remedy=remedy,
    )


def _literals(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    return tuple(member.value for member in hint) if isinstance(hint, type) and issubclass(hint, Enum) else ()


def describe(hint: Any, metadata: Mapping[str, Any] = _NO_METADATA) -> str:
    """A type in a user's words: `list of 2 whole numbers, at least 0`."""
    options = metadata.get("choices") or _literals(hint)
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return " or ".join(describe(part, _NO_METADATA if part is type(None) else metadata) for part in parameters)
    if origin in (list, tuple, Sequence) or hint in (list, tuple):
        count = metadata.get("length")
        rest = {key: entry for key, entry in metadata.items() if key != "length"}
        kinds = dict.fromkeys(describe(part, rest) for part in parameters if part is not Ellipsis)
        return f"list of {f'{count} × ' if count else ''}{' and '.join(kinds) or 'anything'}"
    if options:
        return f"one of {', '.join(map(str, options))}"
    if dataclasses.is_dataclass(hint):
        return f"mapping with the keys {', '.join(field.name for field in dataclasses.fields(hint))}"
    if origin in (dict, Mapping):
        return "mapping"
    bounds = [f"at {word} {metadata[key]}" for key, word in (("min", "least"), ("max", "most")) if key in metadata]
    return ", ".join([_NAMES.get(hint, getattr(hint, "__name__", str(hint))), *bounds])


def plain(instance: Any) -> dict[str, Any]:
    """A dataclass instance as dict, list and scalars that YAML and JSON can hold; paths and enums become text."""

    def simple(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: simple(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
        if isinstance(value, Mapping):
            return {str(key): simple(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [simple(entry) for entry in value]
        if isinstance(value, Enum):
            return value.name
        return str(value) if isinstance(value, Path | str) else value

    result: dict[str, Any] = simple(instance)
    return result


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return dataclasses.MISSING if field.default_factory is dataclasses.MISSING else field.default_factory()

"""In which keys two mappings differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slime_bench.errors import ConfigError
from slime_bench.results.identity import canonical_json


@dataclass(frozen=True)
class Change:
    """A key with two values, or with one.

    Attributes:
        key: dotted.
        a, b: the values; None where the key is absent, which `only` tells from a None that is written there.
        only: `a` or `b` where the other one lacks the key, else empty.
    """

    key: str
    a: Any
    b: Any
    only: str = ""


def changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Change]:
    """The differing keys of two flat mappings (dotted key -> plain value), in the order of the keys.

    Numbers are compared by value: 1 and 1.0 are the same. Where one says `gpu: null` and the other `gpu.name: ...`, the
    first has None for `gpu.name`; it does not lack it.
    """
    found = []
    for key in sorted({*a, *b}):
        here, there = _has(a, key), _has(b, key)
        if here and there:
            if not _same(a.get(key), b.get(key)):
                found.append(Change(key, a.get(key), b.get(key)))
        elif not any(other.startswith(f"{key}.") for other in (*a, *b)):  # a None that the keys below it stand for
            found.append(Change(key, a.get(key), b.get(key), "a" if here else "b"))
    return found


def _has(values: Mapping[str, Any], key: str) -> bool:
    """Whether `values` has the key, or says of something above it that there is none."""
    parts = key.split(".")
    above = (".".join(parts[:count]) for count in range(1, len(parts)))
    return key in values or any(name in values and values[name] is None for name in above)


def _same(left: Any, right: Any) -> bool:
    try:
        return canonical_json(left) == canonical_json(right)
    except ConfigError:  # a value that JSON cannot hold, in a file that somebody has edited
        return bool(left == right)

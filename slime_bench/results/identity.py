"""Identity of a trial: the hash of what decides its numbers, and the folder that carries it.

Which keys cannot change a trial's counts, each says itself, in the metadata of its own field
(`slime_bench.config.parts.NO_NUMBERS` and its like).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, Final

from slime_bench.config.read import plain
from slime_bench.config.schema import PARTS, TrialConfig
from slime_bench.config.secrets import redact
from slime_bench.errors import ConfigError

RESULTS_VERSION: Final = 1
"""Raise it when a change of the code changes the numbers of an unchanged configuration: finished trials run again."""

_SEGMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_TRIAL: Final = re.compile(r"(?:.*/)?([^/]+)/([^/]+)/(\d+)-shot/seed(\d+)-([0-9a-f]{16})")


def signature(cfg: TrialConfig, fingerprints: Mapping[str, str]) -> str:
    """16 hexadecimal digits of the SHA-256 of the canonical JSON of everything that decides a trial's numbers.

    Args:
        fingerprints: content hashes of what the configuration only points to, e.g. `backbone` (weights) and `data`
            (manifest).

    Raises:
        ConfigError: a location without its fingerprint.
    """
    for path, name in _locations(cfg):
        if not fingerprints.get(name):
            raise ConfigError(
                f"The trial cannot be identified: `{path}` is a location, and nothing says what lies there.", path=path,
                found=f"fingerprints of {sorted(fingerprints) or 'nothing'}", expected=f"a fingerprint called {name!r}",
                remedy="Let the data module and the backbone hand their fingerprints to the trial.",
            )  # fmt: skip
    return signature_of(deciding(cfg), fingerprints)


def series(cfg: TrialConfig, fingerprints: Mapping[str, str]) -> str:
    """The signature without the seed: trials of one series differ in their seed alone and may be averaged."""
    return signature_of({key: value for key, value in deciding(cfg).items() if key != "seed"}, fingerprints)


def signature_of(decided: Mapping[str, Any], fingerprints: Mapping[str, str]) -> str:
    """As `signature`, of the part of a configuration that `deciding` gives."""
    return digest({"config": decided, "fingerprints": dict(fingerprints), "results_version": RESULTS_VERSION})


def digest(value: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def deciding(cfg: TrialConfig) -> dict[str, Any]:
    """The part of a configuration that can change a trial's numbers, as plain JSON values."""
    found = deciding_of(cfg)
    for group in PARTS:
        found[group] = {"_target_": cfg.plain[group]["_target_"], **found[group]}
    return found


def recorded(cfg: TrialConfig) -> dict[str, Any]:
    """What a result file says of its configuration: what decides the numbers and the metric, secrets redacted.

    No path and no fact of the machine is in it, so that the same trial writes the same bytes everywhere. Redaction
    comes after hashing: a method's own key that merely looks like a secret still tells two trials apart.
    """
    return redact({**deciding(cfg), "metric": plain(cfg.metric)})


def deciding_of(config: Any) -> dict[str, Any]:
    """The values of a dataclass that can change a trial's numbers, as its fields' metadata say."""
    found = {}
    for each in dataclasses.fields(config):
        value, kind = getattr(config, each.name), each.metadata.get("identity")
        if not each.init or kind is False:
            continue
        if kind == "file name":
            value = None if value is None else PurePath(str(value)).name
        found[each.name] = deciding_of(value) if dataclasses.is_dataclass(value) else plain(value)
    return found


def _locations(config: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys that say where something lies, and the names of the fingerprints that stand in for them."""
    for each in dataclasses.fields(config):
        value, here = getattr(config, each.name), f"{path}{each.name}"
        if "fingerprint" in each.metadata and value is not None:
            yield here, each.metadata["fingerprint"]
        if dataclasses.is_dataclass(value):
            yield from _locations(value, f"{here}.")


def canonical_json(value: Any) -> str:
    """JSON in which equal values have equal text: sorted keys, no spaces, whole floats as integers.

    `1` and `1.0` are the same number to every method, and only the schema decides which of them is written.
    """
    return json.dumps(_whole(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs (dotted key, leaf value) of nested mappings; sequences and empty mappings are leaves."""
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{path}.")
        else:
            yield path, value


def trial_folder(
    output_root: str | Path, data_name: str, method_name: str, shots: int, seed: int, signature: str
) -> Path:
    """`<output_root>/runs/<data>/<method>/<k>-shot/seed<s>-<signature>`; nothing is created.

    Raises:
        ConfigError: a name that is no plain folder name.
    """
    for key, name in (("data.name", data_name), ("method.name", method_name)):
        if not _SEGMENT.fullmatch(name):
            raise ConfigError(
                "The name cannot be used as a folder name.", path=key, found=repr(name),
                expected="letters, digits and . _ + -, beginning with a letter or digit",
            )  # fmt: skip
    return Path(output_root) / "runs" / data_name / method_name / f"{shots}-shot" / f"seed{seed}-{signature}"


def parse_trial_folder(folder: Path) -> dict[str, Any] | None:
    """The inverse of `trial_folder`: data, method, shots, seed and signature, or None for another kind of folder."""
    found = _TRIAL.fullmatch(folder.as_posix())
    if found is None:
        return None
    data, method, shots, seed, signature = found.groups()
    return {"data": data, "method": method, "shots": int(shots), "seed": int(seed), "signature": signature}


def _whole(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value

"""Identity of a trial: the hash of what decides its numbers, and the folder that carries it."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Final

from slime_bench.config.secrets import redact
from slime_bench.errors import ConfigError

RESULTS_VERSION: Final = 1
"""Raise it when a change of the code changes the numbers of an unchanged configuration: finished trials run again."""

EXCLUDED: Final[tuple[str, ...]] = (
    # where things lie, and how a run is started and shown
    "data_root",
    "output_root",
    "force",
    "save_maps",
    "per_preset",  # what it holds stands where it is used
    "logger",
    "launcher",
    "hydra",
    "trainer.progress",
    "trainer.devices",
    "trainer.threads",
    "trainer.checkpoint_every",
    # how the test images are fed: results do not depend on it by design
    "data.batch_size",
    "data.num_workers",
    # locations; the fingerprint of what lies there decides (see `STANDS_IN`)
    "data.root",
    "data.splits",
    "data.label_maps",
    "backbone.weights",
    "backbone.revision",
    "backbone.single_file_config",
    "method.start.path",
    # how much the backbone is given at once, and what is kept
    "backbone.memory_gb",
    "backbone.encoder_cache_mb",
    "backbone.checkpoint_activations",
    "backbone.compile",
    "backbone.prompts_per_call",
    "method.keep_gb",
    "backbone.layer_groups",  # names to choose from; the chosen ones stand in `backbone.cross_layers`
    # a reduction of the stored counts: every result file holds all conventions
    "metric",
)
"""Dotted keys, with everything below them, that cannot change the counts of a trial. `*` stands for one segment."""

STANDS_IN: Final[dict[str, str]] = {
    "data.root": "data",
    "data.splits": "data",
    "data.label_maps": "data",
    "backbone.weights": "backbone",
    "method.start.path": "start",
}
"""For an excluded location, the fingerprint that has to stand in for it."""

NAMES_OF_FILES: Final = (("method", "prompts"),)
"""Group and key of paths of which only the last part is kept; the fingerprint of what lies there decides."""

_SEGMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_TRIAL: Final = re.compile(r"seed(\d+)-([0-9a-f]{16})")
_SHOTS: Final = re.compile(r"(\d+)-shot")


def signature(config: Mapping[str, Any], fingerprints: Mapping[str, str]) -> str:
    """16 hexadecimal digits of the SHA-256 of the canonical JSON of everything that decides a trial's numbers.

    Args:
        config: the resolved configuration as plain mappings, sequences and scalars.
        fingerprints: content hashes of what the configuration only points to, e.g. `backbone` (weights) and `data`
            (manifest).

    Raises:
        ConfigError: a value that JSON cannot hold, or a location without its fingerprint.
    """
    flat = dict(flatten(config))
    for location, name in STANDS_IN.items():
        if flat.get(location) is not None and not fingerprints.get(name):
            raise ConfigError(
                f"The trial cannot be identified: `{location}` is a location, and nothing says what lies there.",
                path=location,
                found=f"fingerprints of {sorted(fingerprints) or 'nothing'}",
                expected=f"a fingerprint called {name!r}",
                remedy="Let the data module and the backbone hand their fingerprints to the trial.",
            )
    decided = {
        "config": deciding(config),
        "fingerprints": dict(fingerprints),
        "results_version": RESULTS_VERSION,
    }
    return hashlib.sha256(canonical_json(decided).encode()).hexdigest()[:16]


def series(config: Mapping[str, Any], fingerprints: Mapping[str, str]) -> str:
    """The signature without the seed: trials of one series differ in their seed alone and may be averaged."""
    return signature({key: value for key, value in config.items() if key != "seed"}, fingerprints)


def deciding(config: Mapping[str, Any], keep: Sequence[str] = ()) -> dict[str, Any]:
    """The part of `config` that can change a trial's numbers, as plain JSON values.

    Args:
        keep: patterns of `EXCLUDED` to keep nevertheless.
    """
    patterns = [pattern.split(".") for pattern in EXCLUDED if pattern not in keep]
    plain: dict[str, Any] = _without(_plain(config, ()), patterns, ())
    for group, key in NAMES_OF_FILES:
        settings = plain.get(group)
        if isinstance(settings, dict) and isinstance(settings.get(key), str):
            plain[group] = {**settings, key: PurePath(settings[key]).name}
    return plain


def recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a result file says of its configuration: what decides the numbers and the metric, secrets redacted.

    No path and no fact of the machine is in it, so that the same trial writes the same bytes everywhere. Redaction
    comes after hashing: a method's own key that merely looks like a secret still tells two trials apart.
    """
    return redact(deciding(config, keep=("metric",)))


def canonical_json(value: Any) -> str:
    """JSON in which equal values have equal text: sorted keys, no spaces, whole floats as integers.

    `1` and `1.0` are the same number to every method, and only the schema decides which of them is written.
    """
    return json.dumps(_whole(_plain(value, ())), sort_keys=True, separators=(",", ":"), allow_nan=False)


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
        ConfigError: a name that is no plain folder name, or a malformed signature.
    """
    for key, name in (("data.name", data_name), ("method.name", method_name)):
        if not _SEGMENT.fullmatch(name):
            raise ConfigError(
                "The name cannot be used as a folder name.",
                path=key,
                found=repr(name),
                expected="letters, digits and . _ + -, beginning with a letter or digit",
            )
    leaf = f"seed{seed}-{signature}"
    if not _TRIAL.fullmatch(leaf):
        raise ConfigError(
            "Malformed trial identity.", found=leaf, expected="a seed of 0 or more and 16 hexadecimal digits"
        )
    return Path(output_root) / "runs" / data_name / method_name / f"{shots}-shot" / leaf


def parse_trial_folder(folder: Path) -> dict[str, Any] | None:
    """The inverse of `trial_folder`: data, method, shots, seed and signature, or None for another kind of folder."""
    names = folder.parts[-4:]
    if len(names) < 4:
        return None
    shots, leaf = _SHOTS.fullmatch(names[2]), _TRIAL.fullmatch(names[3])
    if shots is None or leaf is None:
        return None
    return {
        "data": names[0],
        "method": names[1],
        "shots": int(shots[1]),
        "seed": int(leaf[1]),
        "signature": leaf[2],
    }


def _without(value: Any, patterns: Sequence[Sequence[str]], path: tuple[str, ...]) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        key: _without(item, patterns, (*path, key))
        for key, item in value.items()
        if not any(_matches((*path, key), pattern) for pattern in patterns)
    }


def _matches(path: tuple[str, ...], pattern: Sequence[str]) -> bool:
    return len(path) == len(pattern) and all(
        fnmatch.fnmatchcase(part, wanted) for part, wanted in zip(path, pattern, strict=True)
    )


def _plain(value: Any, path: tuple[str, ...]) -> Any:
    """`value` as dict, list and scalars of JSON; everything else would make the hash depend on a `repr`."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError("A configuration key is not text.", path=".".join(path) or "(root)", found=repr(key))
        return {key: _plain(item, (*path, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, (*path, str(index))) for index, item in enumerate(value)]
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ConfigError(
        "The configuration holds a value that cannot be recorded.",
        path=".".join(path) or "(root)",
        found=f"{value!r} ({type(value).__name__})",
        expected="text, finite number, true, false, null, list or mapping",
        remedy="Resolve the configuration to plain values first; give paths as text.",
    )


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value

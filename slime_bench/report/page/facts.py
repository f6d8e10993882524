"""Provenance: with which code, weights, data and machine the trials ran, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slime_bench.report.grid import DASH
from slime_bench.report.page.view import Facts, TrialFacts
from slime_bench.results.environment import read_environment
from slime_bench.results.identity import flatten
from slime_bench.results.result import TrialResult

_SHORT = 12
_MEGA = 1024**2
HEADER = ("row", "seed", "avg", "seconds", "peak memory", "device", "commit", "finished")


def facts_of(
    rows: Sequence[tuple[str, str]],
    results: Sequence[TrialResult],
    folders: Mapping[str, Path],
    root: Path,
    convention: str,
    background: bool,
) -> Facts:
    """The provenance of the rows' trials.

    Args:
        rows: series and label, in the order of the tables. root: outputs folder, to which paths are told.
        convention, background: of the averages.
    """
    trials = []
    every: list[tuple[TrialResult, dict[str, Any]]] = []
    for series, label in rows:
        for one in sorted((one for one in results if one.series == series), key=lambda one: one.seed):
            folder = folders[one.signature]
            found = read_environment(folder) or {}
            every.append((one, found))
            average = one.under(convention, background).average
            text = DASH if average is None else f"{100 * average:.1f}"
            facts = _all(one, found, relative(folder, root))
            trials.append(TrialFacts(label, one.seed, series, text, _cells(found), facts))
    return Facts(_shared(every), HEADER, trials)


def relative(path: Path, root: Path) -> str:
    """A path below `root` as it is told on a page."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _shared(every: Sequence[tuple[TrialResult, Mapping[str, Any]]]) -> list[tuple[str, str]]:
    """One line for each fact that a reader asks for first, with all its distinct values."""
    seconds = [total for _, found in every if (total := _seconds(found)) is not None]
    peaks = [
        found[key] for _, found in every for key in ("peak_gpu_bytes", "peak_rss_bytes") if _number(found.get(key))
    ]
    silent = sum(not found for _, found in every)

    def distinct(texts: Sequence[str | None]) -> str:
        return ", ".join(dict.fromkeys(text for text in texts if text)) or "not recorded"

    packages = ("slime-bench", "torch", "diffusers", "transformers", "numpy")
    lines = [
        ("code", distinct([_commit(found) for _, found in every])),
        ("device", distinct([_text(found.get("device")) for _, found in every])),
        ("system", distinct([_text(found.get("platform")) for _, found in every])),
        (
            "versions",
            "; ".join(
                f"{name} {distinct([_text(_part(found, 'packages').get(name)) for _, found in every])}"
                for name in packages
            ),
        ),
        ("weights, sha256", distinct([_print(one, "backbone") for one, _ in every])),
        ("data, sha256", distinct([_print(one, "data") for one, _ in every])),
        ("time", f"{sum(seconds):.0f} s in {len(seconds)} trials" if seconds else "not recorded"),
        ("peak memory", _memory(max(peaks)) if peaks else "not recorded"),
    ]
    if silent:
        lines.append(("not recorded", f"{silent} of {len(every)} trials have no readable environment.json"))
    return lines


def _cells(found: Mapping[str, Any]) -> list[str]:
    seconds = _seconds(found)
    peak = next((found[key] for key in ("peak_gpu_bytes", "peak_rss_bytes") if _number(found.get(key))), None)
    return [
        DASH if seconds is None else f"{seconds:.1f}",
        DASH if peak is None else _memory(peak),
        _text(found.get("device")) or DASH,
        _commit(found) or DASH,
        (_text(found.get("finished")) or DASH)[:16].replace("T", " "),
    ]


def _all(one: TrialResult, found: Mapping[str, Any], folder: str) -> list[tuple[str, str]]:
    lines = [
        ("folder", folder),
        ("signature", one.signature),
        ("support images", ", ".join(one.support_ids) or "none"),
        ("test images", str(one.num_test_images)),
        *((f"prepared.{key}", value) for key, value in one.prepared.items()),
        *((f"sha256 of {key}", value) for key, value in sorted(one.fingerprints.items())),
    ]
    rest = {key: value for key, value in found.items() if key not in ("fingerprints", "packages")}
    lines += [(key, str(value)) for key, value in sorted(flatten(rest)) if value is not None]
    packages = sorted((name, version) for name, version in _part(found, "packages").items() if version)
    return [*lines, ("packages", ", ".join(f"{name} {version}" for name, version in packages) or "not recorded")]


def _commit(found: Mapping[str, Any]) -> str | None:
    git = _part(found, "git")
    commit = _text(git.get("commit"))
    return None if commit is None else commit[:9] + (" + uncommitted changes" if git.get("dirty") else "")


def _seconds(found: Mapping[str, Any]) -> float | None:
    parts = [value for value in _part(found, "seconds").values() if _number(value)]
    return float(sum(parts)) if parts else None


def _print(one: TrialResult, name: str) -> str | None:
    value = one.fingerprints.get(name)
    return value[:_SHORT] if value else None


def _memory(size: float) -> str:
    return f"{size / _MEGA:,.0f} MiB"


def _part(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = found.get(name)
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

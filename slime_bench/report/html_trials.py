"""What single trials show on the page: learning curves, confusion, and where and with what they ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from slime_bench.report.charts import Series, line_chart, mean_curve, thinned
from slime_bench.report.collect import commit_of, read_optional
from slime_bench.report.html_tables import STATES, stated
from slime_bench.report.table import DASH, listed
from slime_bench.results.artifacts import CONFUSION_FILE, CURVES_FILE, read_confusion, read_curves
from slime_bench.results.identity import flatten
from slime_bench.results.result import TrialResult

MOST_POINTS: Final = 120
"""Of a learning curve; more are averaged in blocks, since a chart has no more pixels for them."""
MOST_PANELS: Final = 12
MOST_CLASSES: Final = 40
"""Of a confusion matrix."""
_SHADES = 10


def curves_of(label: str, trials: Sequence[TrialResult], folders: Mapping[str, Path]) -> dict[str, Any] | None:
    """One small chart for each value that a row's trials logged; None where none of them kept any."""
    found = {one.seed: read_optional(folders[one.signature] / CURVES_FILE, read_curves) or {} for one in trials}
    names = sorted({name for curves in found.values() for name, (steps, _) in curves.items() if steps})
    if not names:
        return None
    panels = []
    for name in names[:MOST_PANELS]:
        every = {seed: curves[name] for seed, curves in found.items() if name in curves and curves[name][0]}
        lines = [
            Series(f"seed {seed}", *thinned(curve, MOST_POINTS), style=index)
            for index, (seed, curve) in enumerate(every.items())
        ]
        mean = mean_curve(every.values())
        if len(every) > 1 and mean[0]:
            lines.append(Series("mean over seeds", *thinned(mean, MOST_POINTS), style=None))
        panels.append(line_chart(name, f"{name} of {label} by optimisation step", lines, "step"))
    notes = [f"{len(names) - MOST_PANELS} more logged values are in {CURVES_FILE}"] if len(names) > MOST_PANELS else []
    longest = max(len(steps) for curves in found.values() for steps, _ in curves.values())
    if longest > MOST_POINTS:
        notes.append(f"each point is the mean of {-(-longest // MOST_POINTS)} logged values or fewer")
    return {"label": label, "panels": panels, "note": "; ".join(notes)}


def confusion_of(label: str, trials: Sequence[TrialResult], folders: Mapping[str, Path]) -> dict[str, Any] | None:
    """A row's matrix, each line as shares of its class, over those of its seeds that kept one; None where none did."""
    found = {one.seed: read_optional(folders[one.signature] / CONFUSION_FILE, read_confusion) for one in trials}
    seeds = [seed for seed, each in found.items() if each is not None]
    if not seeds or len(trials[0].classes) > MOST_CLASSES:
        return None
    pixels = np.sum([each[1] for each in found.values() if each is not None], axis=0)
    note = "" if len(seeds) == len(trials) else f"of seed {', '.join(map(str, seeds))} alone: the others kept none"
    rows = []
    for name, line in zip(trials[0].classes, pixels.tolist(), strict=True):
        shares = [100.0 * value / sum(line) for value in line] if sum(line) else []
        cells = [(f"{value:.1f}", round(value / 100 * _SHADES)) for value in shares] or [(DASH, 0)] * len(line)
        rows.append((name, cells, f"{sum(line):,}"))
    return {"label": label, "rows": rows, "note": note}


# -------------------------------------------------------------------------------------------------------- provenance


def shared_facts(every: Sequence[tuple[TrialResult, Mapping[str, Any]]]) -> list[tuple[str, str]]:
    """One line for each fact that a reader asks for first, with all its distinct values."""
    found = [each for _, each in every]
    seconds = [sum(each["seconds"].values()) for each in found if each.get("seconds")]
    peaks = [peak for each in found for key in ("peak_gpu_bytes", "peak_rss_bytes") if (peak := each.get(key))]
    silent = sum(not each for each in found)

    def distinct(texts: Sequence[str | None]) -> str:
        return listed(text for text in texts if text) or "not recorded"

    packages = ("slime-bench", "torch", "diffusers", "transformers", "numpy")
    versions = {name: distinct([each.get("packages", {}).get(name) for each in found]) for name in packages}
    lines = [
        ("code", distinct([commit_of(each, " + uncommitted changes") for each in found])),
        ("device", distinct([each.get("device") for each in found])),
        ("system", distinct([each.get("platform") for each in found])),
        ("versions", "; ".join(f"{name} {version}" for name, version in versions.items())),
        ("weights, sha256", distinct([one.fingerprints.get("backbone", "")[:12] for one, _ in every])),
        ("data, sha256", distinct([one.fingerprints.get("data", "")[:12] for one, _ in every])),
        ("time", f"{sum(seconds):.0f} s in {len(seconds)} trials" if seconds else "not recorded"),
        ("peak memory", _memory(max(peaks)) if peaks else "not recorded"),
    ]
    unread = f"{silent} of {len(every)} trials have no readable environment.json"
    return [*lines, *([("not recorded", unread)] if silent else [])]


def trial_facts(label: str, one: TrialResult, found: Mapping[str, Any], folder: str, state: tuple[str, bool]) -> Any:
    """One trial's overview as cells, and everything that it recorded."""
    values = [None if (average := one.under(*each).average) is None else 100 * average for each in STATES]
    texts = [DASH if value is None else f"{value:.1f}" for value in values]
    seconds, peak = found.get("seconds"), found.get("peak_gpu_bytes") or found.get("peak_rss_bytes")
    packages = [f"{name} {version}" for name, version in sorted(found.get("packages", {}).items()) if version]
    rest = {key: value for key, value in found.items() if key not in ("fingerprints", "packages")}
    return {
        "label": label,
        "seed": one.seed,
        "series": one.series,
        "average": texts[STATES.index(state)],
        "states": stated(texts, values),
        "cells": [
            f"{sum(seconds.values()):.1f}" if seconds else DASH,
            _memory(peak) if peak else DASH,
            found.get("device") or DASH,
            commit_of(found, " + uncommitted changes") or DASH,
            (found.get("finished") or DASH)[:16].replace("T", " "),
        ],
        "facts": {
            "folder": folder,
            "signature": one.signature,
            "support images": ", ".join(one.support_ids) or "none",
            "test images": one.num_test_images,
            **{f"prepared.{key}": value for key, value in one.prepared.items()},
            **{f"sha256 of {key}": value for key, value in sorted(one.fingerprints.items())},
            **{key: value for key, value in sorted(flatten(rest)) if value is not None},
            "packages": ", ".join(packages) or "not recorded",
        },
    }


def _memory(size: float) -> str:
    return f"{size / 1024**2:,.0f} MiB"

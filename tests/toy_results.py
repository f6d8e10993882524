"""Made-up finished trials with everything that a report reads: counts, pictures, curves, confusion, environment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slime_bench import identity
from slime_bench.confusion import CONFUSION_FILE, write_confusion
from slime_bench.curves import CURVES_FILE, Point, write_curves
from slime_bench.metrics.iou import IouCounts
from slime_bench.qualitative import QUALITATIVE_FILE, GridItem, write_qualitative
from slime_bench.results import PER_IMAGE_FILE, TrialResult, from_counts, write_per_image, write_result

CAR = ["background", "body", "light", "plate", "wheel", "window"]
IMAGES = 12
FINGERPRINTS = {"backbone": "ab" * 32, "data": "cd" * 32}
NAMES = {
    "method": "slime",
    "backbone": "mini_sd",
    "data": "mini_car",
    "subject": "car",
    "preset": "mini",
    "protocol": "slime_mini",
}
MODERN = frozenset({"counts", "curves", "confusion", "pictures", "environment"})


def random_counts(rng: np.random.Generator, classes: int, images: int = IMAGES) -> IouCounts:
    """Counts of classes that some images lack, and that are predicted where they are not."""
    union = rng.integers(1, 4000, (images, classes))
    inside = (union * rng.uniform(0, 1, (images, classes))).astype(np.int64)
    present = rng.uniform(size=(images, classes)) < 0.8
    present[:, 0] = True
    present[0] = False  # an image with nothing but background
    present[0, 0] = True
    inside[~present] = 0
    union[~present & (rng.uniform(size=(images, classes)) < 0.5)] = 0
    return IouCounts(torch.from_numpy(inside), torch.from_numpy(union), torch.from_numpy(present))


def config_of(seed: int = 0, shots: int = 1, lr: float = 0.1, **names: str) -> dict[str, Any]:
    """The configuration of `make`'s trial with the same arguments."""
    names = {**NAMES, **names}
    return {
        "preset": names["preset"],
        "seed": seed,
        "shots": shots,
        "method": {"name": names["method"], "lr": lr},
        "trainer": {"device": "cpu"},
        **{key: {"name": names[key]} for key in ("backbone", "data", "protocol")},
    }


def make(
    root: Path,
    seed: int = 0,
    shots: int = 1,
    *,
    keeps: frozenset[str] = MODERN,
    classes: Sequence[str] = CAR,
    lr: float = 0.1,
    image: str = "car-test",
    **names: str,
) -> TrialResult:
    """One trial under `root`, with the files that it `keeps`; the same arguments give the same bytes."""
    names = {**NAMES, **names}
    rng = np.random.default_rng([seed, shots, len(names["method"]), round(1000 * lr)])
    counts = random_counts(rng, len(classes))
    config = config_of(seed, shots, lr, **names)
    result = from_counts(
        counts, config=config, fingerprints=FINGERPRINTS, seed=seed, shots=shots, classes=list(classes), **names
    )  # type: ignore[arg-type]
    folder = identity.trial_folder(root, result.data, result.method, shots, seed, result.signature)
    ids = [f"{image}-{index}" for index in range(IMAGES)]
    if "counts" in keeps:
        write_per_image(folder_of(folder) / PER_IMAGE_FILE, ids, classes, counts)
    if "curves" in keeps and shots:
        steps = [
            Point(step, step // 10, name, float(100 * 0.93**step + rng.uniform()))
            for step in range(40)
            for name in ("loss", "loss_ce")
        ]
        write_curves(folder_of(folder) / CURVES_FILE, steps)
    if "confusion" in keeps:
        pixels = rng.integers(0, 500, (len(classes), len(classes))) + np.diag([5000] * len(classes))
        write_confusion(folder_of(folder) / CONFUSION_FILE, classes, pixels)
    if "pictures" in keeps:
        write_qualitative(folder_of(folder) / QUALITATIVE_FILE, pictures(rng, len(classes), ids[:2]), classes)
    if "environment" in keeps:
        facts: dict[str, Any] = {
            "device": "a CPU", "platform": "a system", "git": {"commit": "0123456789abcdef", "dirty": True},
            "packages": {"torch": "2.13.0", "slime-bench": "0.1.0"}, "seconds": {"fit": 2.5, "test": 1.0},
            "peak_rss_bytes": 700 * 1024**2, "finished": "2026-01-02T03:04:05+00:00",
        }  # fmt: skip
        (folder_of(folder) / "environment.json").write_text(json.dumps(facts))
    write_result(folder, result)
    return result


def pictures(rng: np.random.Generator, classes: int, ids: Sequence[str], side: int = 32) -> list[GridItem]:
    items = []
    for name in ids:
        label = np.zeros((side, side), dtype=np.uint8)
        for index in range(1, classes):
            label[4 * index : 4 * index + 4, 4:24] = index
        guess = np.roll(label, 2, axis=1)
        image = rng.integers(0, 255, (side, side, 3)).astype(np.uint8)
        items.append(GridItem(image, label, guess, rng.uniform(size=(classes, 16, 16)).astype(np.float16), name))
    return items


def fail(root: Path, seed: int, shots: int, summary: str, method: str = "slime", data: str = "mini_car") -> Path:
    """A trial that ended in an error."""
    folder = identity.trial_folder(root, data, method, shots, seed, "f" * 16)
    folder_of(folder)
    (folder / "error.json").write_text(json.dumps({"type": "DataError", "summary": summary, "status": "failed"}))
    return folder


def folder_of(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder

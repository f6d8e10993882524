"""What W&B is told of a finished trial, as plain values; all of it comes from the trial's files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_bench.results.qualitative import QUALITATIVE_FILE, GridItem, read_qualitative
from slime_bench.results.result import PER_IMAGE_FILE, TrialResult, read_per_image
from slime_bench.tracking import keys

LAYER_COLUMNS = ("layer", "InfoScore", "rank", "used", "mIoU alone")


@dataclass(frozen=True)
class Example:
    """A test image. `iou`: class -> IoU of this image in percent; None where the class is neither there nor predicted.
    `miou`: mean of those that are not None."""

    item: GridItem
    iou: dict[str, float | None]
    miou: float | None


def summary(result: TrialResult, seconds: Mapping[str, float]) -> dict[str, float | int | str]:
    """Key -> value of the run's summary: IoU under the trial's own convention and under all, in percent; what is not
    defined is left out.

    Args:
        seconds: that the trial's stages took.
    """
    found: dict[str, float | int | str | None] = {
        keys.MIOU: _percent(result.average),
        "test/convention": result.convention,
        "test/background_in_average": int(result.background_in_average),
        "test/num_images": result.num_test_images,
    }
    found |= {keys.iou(name): _percent(value) for name, value in result.per_class.items()}
    for convention, table in result.conventions.items():
        found[keys.iou("miou", convention)] = _percent(table["average"])
        found |= {keys.iou(name, convention): _percent(value) for name, value in table["per_class"].items()}
    found["val/best_miou"] = _percent(result.validation.get("score"))
    found["val/best_epoch"] = result.validation.get("epoch")
    found |= {f"seconds/{name}": value for name, value in seconds.items()}
    return {key: value for key, value in found.items() if value is not None}


def seconds(folder: Path) -> dict[str, float]:
    """What the trial's environment file says of its stages; nothing where there is no such file."""
    return {key: float(value) for key, value in _json(folder / "environment.json").get("seconds", {}).items()}


def examples(folder: Path) -> tuple[list[Example], list[str]]:
    """The images that the trial has kept, in their order, and the classes; none where it kept none."""
    path = folder / QUALITATIVE_FILE
    if not path.exists():
        return [], []
    items, classes = read_qualitative(path)
    ids, names, counts = read_per_image(folder / PER_IMAGE_FILE)
    rows = {name: index for index, name in enumerate(ids)}
    found = []
    for item in items:
        row = rows[item.image_id]
        pairs = zip(names, counts.intersection[row].tolist(), counts.union[row].tolist(), strict=True)
        iou = {name: 100.0 * inner / outer if outer else None for name, inner, outer in pairs}
        defined = [value for value in iou.values() if value is not None]
        found.append(Example(item, iou, sum(defined) / len(defined) if defined else None))
    return found, classes


def layers(folder: Path, convention: str) -> list[tuple[Any, ...]]:
    """Rows of `LAYER_COLUMNS`, the best InfoScore first; none where the method has ranked none.

    The last column is a layer's mIoU, in percent, where the trial has studied every layer alone.
    """
    ranking = _json(folder / "ranking.json")
    if not ranking or not ranking.get("ranking"):
        return []
    names: Sequence[str] = ranking["ranking"]["layers"]
    scores: Sequence[float] = ranking["ranking"]["score"]
    study = _json(folder / "layer_study.json")
    alone: dict[str, float | None] = {}
    if study:
        alone = dict(zip(study["layers"], study["conventions"][convention]["single"], strict=True))
    order = sorted(range(len(names)), key=lambda index: -scores[index])
    return [
        (names[index], scores[index], rank, names[index] in ranking["layers"], alone.get(names[index]))
        for rank, index in enumerate(order, start=1)
    ]


def _percent(value: float | None) -> float | None:
    return None if value is None else 100.0 * value


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

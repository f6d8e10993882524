"""Reads `layer_study.json`, what a trial of the ranking experiment records beside its result.

Every number of it that follows from others is worked out again: a file that contradicts itself, or the result beside
it, is no study.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from slime_bench.errors import ResultError
from slime_bench.metrics import CONVENTION_RULES
from slime_bench.results.result import TrialResult, average_of

STUDY_FILE: Final = "layer_study.json"
_REMEDY: Final = "Delete the trial's folder and run the trial again."
_NEAR: Final = 1e-6
_SAME_MIOU: Final = 0.01  # percentage points
_FIELDS: Final = (
    "layers",
    "info_score",
    "info_rank",
    "order",
    "rank_images",
    "test_images",
    "bootstrap",
    "conventions",
)
_FIELDS_OF_TRIAL: Final = ("rank_on", "used", "classes", "forwarded_images")


@dataclass(frozen=True)
class Selection:
    """Layers used together, and their mIoU in percent."""

    layers: tuple[str, ...]
    miou: float


@dataclass(frozen=True)
class Measured:
    """The numbers of one convention.

    Attributes:
        rho: Spearman's rank correlation of InfoScore and mIoU of the single layers; None where a rank is undefined.
        interval: of the bootstrap, lower and upper end.
        selections: by name: every layer alone, `top-1` to `top-L`, `last`, `middle`, `all`, `pair-<number>`.
    """

    rho: float | None
    interval: tuple[float, float] | None
    selections: dict[str, Selection]

    def pairs(self) -> list[float]:
        """mIoU of the random pairs."""
        return [each.miou for name, each in self.selections.items() if name.startswith("pair-")]


@dataclass(frozen=True)
class LayerStudy:
    """What one trial found. Layers in running order; `order` by InfoScore, best first; `used` gave the trial's result.

    Attributes:
        rank_on: `train` or `test`: where the images come from that layers were ranked on.
        resamples, percent, over: of the bootstrap: their number, the percentage inside the interval, what was drawn.
        seconds: of ranking and test, empty where they are not recorded.
    """

    layers: tuple[str, ...]
    info_score: tuple[float, ...]
    order: tuple[str, ...]
    used: tuple[str, ...]
    rank_on: str
    rank_images: int
    test_images: int
    forwarded_images: int
    resamples: int
    percent: int
    over: str
    seconds: dict[str, float]
    conventions: dict[str, Measured]


def read_study(folder: Path, result: TrialResult) -> LayerStudy:
    """The study in a trial's folder.

    Args:
        result: the valid result of the same trial.

    Raises:
        ResultError: no such file, not JSON, fields that are missing, ill-typed or contradict each other, or the study
            of another trial.
    """
    path = folder / STUDY_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise _wrong(path, "there is no such file", "nothing", "a study beside the result") from None
    except OSError as error:
        raise _wrong(path, "it cannot be read", error.strerror or str(error), "a readable file") from error
    study, fields = parse_study(content, path)
    _check_trial(study, fields, result, path)
    return study


def parse_study(content: bytes, path: str | Path) -> tuple[LayerStudy, dict[str, Any]]:
    """The study in `content`, and the fields as they stand there; `path` only names it in errors.

    Raises:
        ResultError: as `read_study`, but for what the result has to say.
    """

    def no_constant(name: str) -> Any:
        raise ValueError(f"{name} is no number of a study")

    try:
        fields = json.loads(content.decode(), parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise _wrong(path, "it is not valid JSON", str(error), "an object") from error
    if not isinstance(fields, dict):
        raise _wrong(path, "it is not an object", type(fields).__name__, "an object")
    lacking = [name for name in (*_FIELDS, *_FIELDS_OF_TRIAL) if name not in fields]
    if lacking:
        raise _wrong(path, "fields are missing", ", ".join(lacking), "the fields of a study")
    try:
        study = _study(fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise _wrong(path, "a field is missing or of another type", found, "the fields of a study") from error
    _check_itself(study, fields, path)
    return study, fields


def ranks(values: Sequence[float]) -> list[float]:
    """1 for the largest value; equal values share the mean of their ranks."""
    return [1 + sum(other > value for other in values) + (values.count(value) - 1) / 2 for value in values]


def spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Rank correlation; None for fewer than two values, or where one side is constant."""
    if len(set(left)) < 2 or len(set(right)) < 2:
        return None
    centre = (len(left) + 1) / 2  # the mean rank, shared ranks or not
    one, two = ([rank - centre for rank in ranks(list(side))] for side in (left, right))
    product = math.fsum(a * b for a, b in zip(one, two, strict=True))
    return product / math.sqrt(math.fsum(a * a for a in one) * math.fsum(b * b for b in two))


def _study(fields: Mapping[str, Any]) -> LayerStudy:
    bootstrap = fields["bootstrap"]
    return LayerStudy(
        layers=_texts(fields["layers"]),
        info_score=tuple(_number(value) for value in fields["info_score"]),
        order=_texts(fields["order"]),
        used=_texts(fields["used"]),
        rank_on=_text(fields["rank_on"]),
        rank_images=_count(fields["rank_images"]),
        test_images=_count(fields["test_images"]),
        forwarded_images=_count(fields["forwarded_images"]),
        resamples=_count(bootstrap["resamples"]),
        percent=_count(bootstrap["percent"]),
        over=_text(bootstrap["over"]),
        seconds={_text(name): _number(value) for name, value in dict(fields.get("seconds", {})).items()},
        conventions={name: _measured(fields["conventions"][name]) for name in CONVENTION_RULES},
    )


def _measured(part: Mapping[str, Any]) -> Measured:
    interval = part["interval"]
    if interval is not None:
        low, high = (_number(value) for value in interval)
        if not -1 - _NEAR <= low <= high <= 1 + _NEAR:
            raise ValueError(f"interval {interval}")
    selections = {
        _text(name): Selection(_texts(each["layers"]), _percent(each["miou"]))
        for name, each in part["selections"].items()
    }
    rho = None if part["rho"] is None else _number(part["rho"])
    return Measured(rho, None if interval is None else (low, high), selections)


def _check_itself(study: LayerStudy, fields: Mapping[str, Any], path: str | Path) -> None:
    def must(right: bool, what: str, found: object, expected: object) -> None:
        if not right:
            raise _wrong(path, f"its {what} contradicts the rest", found, expected)

    layers, number = study.layers, len(study.layers)
    must(len(study.info_score) == number, "info_score", f"{len(study.info_score)} values", f"{number}, one a layer")
    must(_near(fields["info_rank"], ranks(study.info_score)), "info_rank", fields["info_rank"], ranks(study.info_score))
    order = tuple(layers[place] for place in sorted(range(number), key=lambda place: -study.info_score[place]))
    must(study.order == order, "order", ", ".join(study.order), ", ".join(order))
    fixed = {name: {name} for name in layers} | {"last": {layers[-1]}, "all": set(layers)}
    fixed |= {f"top-{count}": set(order[:count]) for count in range(1, number + 1)}
    for convention, measured in study.conventions.items():
        have = measured.selections
        lacking = [name for name in (*fixed, "middle") if name not in have]
        must(
            not lacking, f"list of selections ({convention})", f"no {', '.join(lacking)}", "every layer, top-1 to top-L"
        )
        for name, each in have.items():
            expected = fixed.get(name, set(each.layers))
            right = set(each.layers) == expected and expected <= set(layers) and bool(expected)
            must(right, f"selection {name} ({convention})", ", ".join(each.layers), ", ".join(sorted(expected)))
        part, values = fields["conventions"][convention], [have[name].miou for name in layers]
        must(_near(part["single"], values), f"single ({convention})", part["single"], values)
        must(
            _near(part["single_rank"], ranks(values)), f"single_rank ({convention})", part["single_rank"], ranks(values)
        )
        rho = spearman(study.info_score, values)
        must(_near([measured.rho], [rho]), f"rho ({convention})", measured.rho, rho)


def _check_trial(study: LayerStudy, fields: Mapping[str, Any], result: TrialResult, path: Path) -> None:
    """What the result beside the study knows as well."""

    def must(right: bool, what: str, found: object, expected: object) -> None:
        if not right:
            raise _wrong(path, f"it is another trial's: {what} is not that of the result", found, expected)

    def same(what: str, found: object, expected: object) -> None:
        must(found == expected, what, found, expected)

    method = _mapping(result.config.get("method"))
    same("classes", fields["classes"], result.classes)
    same("test_images", study.test_images, result.num_test_images)
    same("rank_on", study.rank_on, method.get("rank_on", study.rank_on))
    same("seed", fields.get("seed", result.seed), result.seed)
    named, top = method.get("layers"), method.get("top")
    best = study.order[:top] if isinstance(top, int) else study.used
    same("used", sorted(study.used), sorted(best if named is None else named))
    pairs = method.get("pairs")
    refined = _mapping(method.get("crf")).get("enabled", True)
    for convention, measured in study.conventions.items():
        if isinstance(pairs, int):
            number = len(measured.pairs())
            must(number <= pairs, f"number of pairs ({convention})", number, f"up to {pairs}")
        alone = [each.miou for each in measured.selections.values() if set(each.layers) == set(study.used)]
        average = average_of(result.conventions[convention]["per_class"], result.classes)
        if alone and average is not None and not refined:
            # The layers may have been added up in another order: a pixel in a million may fall to another class.
            near = abs(alone[0] - 100 * average) < _SAME_MIOU
            must(near, f"mIoU of the layers used ({convention})", f"{alone[0]:.4f}", f"{100 * average:.4f}")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _near(left: Any, right: Any) -> bool:
    if not isinstance(left, list) or len(left) != len(right):
        return False
    return all(
        a is b is None or (_is_number(a) and _is_number(b) and abs(a - b) < _NEAR)
        for a, b in zip(left, right, strict=True)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any) -> float:
    if not _is_number(value):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _percent(value: Any) -> float:
    if not 0 <= _number(value) <= 100 + _NEAR:
        raise ValueError(f"mIoU {value!r}")
    return float(value)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is no number of things")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{value!r} is no text")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or len(set(map(_text, value))) < len(value):
        raise TypeError(f"{value!r} is no list of distinct names")
    return tuple(value)


def _wrong(path: str | Path, what: str, found: object, expected: object) -> ResultError:
    return ResultError(
        f"This is no valid study of layers: {what}.", path=path, found=_short(found), expected=_short(expected),
        remedy=_REMEDY,
    )  # fmt: skip


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:120]}..."

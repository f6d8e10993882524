"""Two finished trials side by side, as one record of plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from slime_bench.errors import ResultError
from slime_bench.report.compare.changes import Change, changes
from slime_bench.report.compare.images import Images, compare_images
from slime_bench.report.compare.learned import Learned, compare_learned
from slime_bench.report.compare.runs import Run
from slime_bench.results.identity import flatten
from slime_bench.results.result import TrialResult

_NAMES: Final = ("method", "backbone", "data", "shots", "seed", "preset", "protocol", "signature")
_COST: Final = ("seconds.", "peak_")
_MOMENT: Final = ("finished", "pid", "fingerprints")
"""Facts of `environment.json` that differ between any two trials, or stand elsewhere in the comparison."""
_TWICE: Final = ("per_preset", "backbone.layer_groups")
"""Settings that stand again where they are used."""


@dataclass(frozen=True)
class Score:
    """IoU of a class, or the average, in 0..1; None where it is undefined."""

    name: str
    a: float | None
    b: float | None

    @property
    def difference(self) -> float | None:
        """b - a."""
        return None if self.a is None or self.b is None else self.b - self.a


@dataclass(frozen=True)
class Comparison:
    """In what two trials differ.

    Attributes:
        names_a, names_b: what identifies each.
        same_series: whether nothing that decides numbers differs but the seed.
        convention, background: under which `scores` and `average` are stated.
        config: settings that decide numbers. other: those that by design do not.
        data: facts of the support set, the preparation and the validation.
        environment: facts of machine and versions that both record. unsaid: keys that one alone does -> `a` or `b`.
        without_environment, without_settings: `a`, `b` where the file is not there or cannot be read.
        cost: seconds and memory of both, whether they differ or not.
        same_numbers: whether all IoU under all conventions, and all counts per image that are known, are equal.
    """

    names_a: dict[str, Any]
    names_b: dict[str, Any]
    same_series: bool
    convention: str
    background: bool
    scores: list[Score]
    average: Score
    config: list[Change]
    other: list[Change]
    data: list[Change]
    fingerprints: list[Change]
    environment: list[Change]
    unsaid: dict[str, str]
    without_environment: list[str]
    without_settings: list[str]
    cost: list[Change]
    learned: Learned
    images: Images
    same_numbers: bool

    @property
    def same_trial(self) -> bool:
        """Whether both have one signature: nothing that decides numbers differs."""
        return bool(self.names_a["signature"] == self.names_b["signature"])


def compare(a: Run, b: Run, convention: str | None = None, background: bool | None = None) -> Comparison:
    """Everything in which two runs differ.

    Args:
        convention, background: of the scores; by default those of `a`.

    Raises:
        ResultError: the two have other classes, or an unknown convention.
    """
    one, other = a.result, b.result
    if set(one.classes) != set(other.classes):
        raise ResultError(
            "The two runs have other classes, so their numbers cannot be put side by side.", path=b.folder,
            found=", ".join(other.classes), expected=f"{', '.join(one.classes)}, as {a.folder}",
            remedy="Compare runs on data sets of one subject.",
        )  # fmt: skip
    convention = convention or one.convention
    background = one.background_in_average if background is None else background
    left, right = (each.under(convention, background) for each in (one, other))
    environment = changes(*(_environment(each.environment) for each in (a, b)))
    decided_a, decided_b = (_flat(each.config) for each in (one, other))
    images = compare_images(a.folder, b.folder)
    return Comparison(
        names_a=_names(a),
        names_b=_names(b),
        same_series=one.series == other.series,
        convention=convention,
        background=background,
        scores=[Score(name, left.per_class[name], right.per_class[name]) for name in one.classes],
        average=Score("average", left.average, right.average),
        config=[each for each in changes(decided_a, decided_b) if not each.key.startswith("metric.")],
        other=_other_settings(a, b, {*decided_a, *decided_b}),
        data=changes(_data(one), _data(other)),
        fingerprints=changes(one.fingerprints, other.fingerprints),
        environment=[each for each in environment if not each.only],
        unsaid={each.key: each.only for each in environment if each.only} if a.environment and b.environment else {},
        without_environment=[name for name, each in (("a", a), ("b", b)) if each.environment is None],
        without_settings=[name for name, each in (("a", a), ("b", b)) if each.settings is None],
        cost=_cost(a.environment, b.environment),
        learned=compare_learned(a.folder, b.folder),
        images=images,
        same_numbers=_tables(one) == _tables(other) and not (images.differ or images.only_a or images.only_b),
    )


def as_json(found: Comparison) -> dict[str, Any]:
    """The record as JSON values: IoU in 0..1, memory in bytes; of a key that one run lacks, only the other's value."""
    names = [field.name for field in dataclasses.fields(found)]
    record: dict[str, Any] = {"a": found.names_a, "b": found.names_b, "same_trial": found.same_trial}
    record |= {name: _plain(getattr(found, name)) for name in names if name not in ("names_a", "names_b")}
    record["learned"]["equal"] = found.learned.equal
    return record


def _plain(value: Any) -> Any:
    if isinstance(value, Change):
        values = {"a": value.a, "b": value.b}
        return {"key": value.key, **{name: each for name, each in values.items() if value.only in ("", name)}}
    if isinstance(value, Score):
        return {**dataclasses.asdict(value), "difference": value.difference}
    if isinstance(value, Images):
        return {**dataclasses.asdict(value), "differ": [{"id": name, "pixels": count} for name, count in value.differ]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _names(run: Run) -> dict[str, Any]:
    return {"folder": str(run.folder), **{name: getattr(run.result, name) for name in _NAMES}}


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(flatten(config))


def _tables(result: TrialResult) -> dict[str, Any]:
    return {name: table["per_class"] for name, table in result.conventions.items()}


def _data(result: TrialResult) -> dict[str, Any]:
    facts = {"classes": result.classes, "support_ids": result.support_ids, "test_images": result.num_test_images}
    return dict(flatten({**facts, "prepared": result.prepared, "validation": result.validation}))


def _other_settings(a: Run, b: Run, decided: set[str]) -> list[Change]:
    if a.settings is None or b.settings is None:
        return []
    skipped = (*(f"{key}." for key in _TWICE), "metric.")
    return [
        each
        for each in changes(a.settings, b.settings)
        if each.key not in decided and each.key not in _TWICE and not each.key.startswith(skipped)
    ]


def _environment(facts: Mapping[str, Any] | None) -> dict[str, Any]:
    return _without(facts, (*_COST, *_MOMENT))


def _without(facts: Mapping[str, Any] | None, beginnings: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in flatten(facts or {}) if not key.startswith(tuple(beginnings))}


def _cost(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> list[Change]:
    """Seconds and peaks, in the order in which the first one has them."""
    left, right = ({key: value for key, value in flatten(each or {}) if key.startswith(_COST)} for each in (a, b))
    keys = list(dict.fromkeys([*left, *right]))
    return [
        Change(key, left.get(key), right.get(key), "" if key in left and key in right else "a" if key in left else "b")
        for key in keys
        if left.get(key) is not None or right.get(key) is not None
    ]

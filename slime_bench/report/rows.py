"""From results to rows: mean and standard deviation over seeds, the published rows, and what is missing."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from slime_bench.report.collect import Defaults, is_default, variants
from slime_bench.report.published import Published, PublishedRow, Stat
from slime_bench.results.result import TrialResult, average_of
from slime_bench.results.status import MISSING

if TYPE_CHECKING:
    from slime_bench.report.statistics import ImageBootstrap, Interval

PAPER_PRESET: Final = "paper"
"""Only this preset runs on the data and weights of the published tables, so only it is compared with them."""
PAPER_CONVENTION: Final = "slime"
NOTHING: Final = Stat(None, None)


@dataclass(frozen=True)
class Row:
    """One row of a table, in percent: trials that differ in their seed alone, or a published row.

    Attributes:
        variant: what sets the row apart from other rows of the same names, e.g. `maps=cross`; empty for the default.
        series: the trials' signature without the seed; empty for a published row.
        classes: class names of the trials, background first.
        seeds, n: seeds behind the mean and their number; `n` is None where a paper does not state it.
        per_class: class name -> mean and sample standard deviation over the seeds that define the class.
        average: mean and sample standard deviation of the per-seed averages.
        prepared: choices with which the data set was prepared, as in `TrialResult`.
        stated: what the caption has to say of the settings. label, order, least_shots, only_shots: what the table calls
            the row, where it stands among rows of the same shots, and the shots that its method can have; see `facts`
            of `TrialResult`.
        notes: reservations that have to stand under the table.
        missing_seeds: expected seeds without a valid result.
        supervised: trained on a whole annotated set.
        other_data: a published row that was not measured on this table's data.
        key: for a published row, the name of our method it compares with.
        default: whether the settings are the default ones, or it is not known what those are.
        interval: over test images, None where nobody asked.
    """

    method: str
    backbone: str
    data: str
    subject: str
    shots: int | None
    preset: str
    protocol: str
    variant: str
    series: str
    convention: str
    background_in_average: bool
    classes: tuple[str, ...]
    seeds: tuple[int, ...]
    n: int | None
    per_class: dict[str, Stat]
    average: Stat
    published: bool
    prepared: dict[str, str] = field(default_factory=dict)
    stated: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    missing_seeds: tuple[int, ...] = ()
    other_data: bool = False
    supervised: bool = False
    source: str = ""
    key: str | None = None
    default: bool = True
    label: str = ""
    order: int = 0
    least_shots: int = 1
    only_shots: tuple[int, ...] | None = None
    interval: Interval | None = None

    @property
    def names(self) -> tuple[str, str, str, str, str]:
        """Of method, backbone, data, preset and protocol."""
        return (self.method, self.backbone, self.data, self.preset, self.protocol)


@dataclass(frozen=True)
class MissingTrial:
    """An expected trial without a valid result; `state` is one of `results.status`."""

    method: str
    backbone: str
    data: str
    preset: str
    protocol: str
    variant: str
    shots: int
    seed: int
    state: str = MISSING

    def __str__(self) -> str:
        variant = f" {self.variant}" if self.variant else ""
        return f"{self.method}{variant} on {self.data}, {self.shots}-shot, seed {self.seed}"


def stat(values: Sequence[float]) -> Stat:
    """Mean and sample standard deviation (ddof 1); None where there are too few values."""
    return Stat(statistics.fmean(values) if values else None, statistics.stdev(values) if len(values) > 1 else None)


def percent(values: Iterable[float | None]) -> list[float]:
    """IoU of 0..1 in percent, without the undefined ones."""
    return [100.0 * value for value in values if value is not None]


def average_percent(trial: TrialResult, convention: str, background: bool) -> list[float]:
    """The trial's average in percent; empty where it is undefined."""
    return percent([average_of(trial.conventions[convention]["per_class"], trial.classes, background)])


def aggregate(
    results: Iterable[TrialResult],
    convention: str = "slime",
    background: bool = True,
    expected_seeds: Sequence[int] = (),
    defaults: Defaults | None = None,
    bootstrap: ImageBootstrap | None = None,
) -> list[Row]:
    """Rows of mean and sample standard deviation (ddof 1) over the seeds of each series, in percent.

    The deviation of the average is taken over per-seed averages; with one seed there is none.

    Args:
        defaults: default settings of the families for which they are known.
        bootstrap: over the test images; without it rows have no interval.
    """
    every = by_series(results)
    labels = variants([trials[0] for trials in every.values()], defaults)
    rows = []
    for name, trials in every.items():
        first, seeds = trials[0], tuple(one.seed for one in trials)
        tables = [one.conventions[convention]["per_class"] for one in trials]
        values = {each: percent(table[each] for table in tables) for each in first.classes}
        notes = tuple(
            f"{each} is defined in {len(found)} of {len(seeds)} seeds"
            for each, found in values.items()
            if len(found) < len(seeds)
        )
        rows.append(
            Row(
                method=first.method, backbone=first.backbone, data=first.data, subject=first.subject,
                shots=first.shots, preset=first.preset, protocol=first.protocol, variant=labels[name], series=name,
                convention=convention, background_in_average=background, classes=tuple(first.classes), seeds=seeds,
                n=len(seeds), per_class={each: stat(found) for each, found in values.items()},
                average=stat([value for one in trials for value in average_percent(one, convention, background)]),
                published=False, prepared=dict(first.prepared), stated=dict(first.facts.get("stated", {})), notes=notes,
                missing_seeds=tuple(seed for seed in expected_seeds if seed not in seeds),
                default=is_default(first, defaults), label=first.facts.get("label", first.method),
                order=first.facts.get("table_order", 0), supervised=first.facts.get("whole_set", False),
                least_shots=first.facts.get("least_shots", 1),
                only_shots=None if (only := first.facts.get("only_shots")) is None else tuple(only),
                interval=bootstrap.interval(trials, convention, background) if bootstrap else None,
            )
        )  # fmt: skip
    key = ("data", "preset", "shots", "order", "label", "variant", "series")
    return sorted(rows, key=lambda row: tuple(getattr(row, name) for name in key))


def by_series(results: Iterable[TrialResult]) -> dict[str, list[TrialResult]]:
    """Series -> its trials by seed."""
    found: dict[str, list[TrialResult]] = defaultdict(list)
    for one in results:
        found[one.series].append(one)
    return {series: sorted(trials, key=lambda one: one.seed) for series, trials in found.items()}


def without_variants(rows: Sequence[Row]) -> list[Row]:
    """The rows without those of other settings, for every method that has rows of its default settings."""
    have = {row.names for row in rows if row.default}
    return [row for row in rows if row.default or row.names not in have]


def possible_shots(rows: Iterable[Row], shots: Sequence[int]) -> tuple[int, ...]:
    """Those of `shots` that a method of the rows can have: one that learns from support images has no 0, one that is
    trained on a whole annotated set none of them. Rows of the default settings decide, where there are some."""
    ours = [row for row in rows if not row.supervised]
    ours = [row for row in ours if row.default] or ours
    return tuple(
        number
        for number in shots
        if any(number in (row.only_shots or (number,)) and number >= row.least_shots for row in ours)
    )


def missing(
    rows: Iterable[Row],
    shots: Sequence[int],
    expected_seeds: Sequence[int],
    state: Callable[[Row, int, int], str] = lambda *_: MISSING,
) -> list[MissingTrial]:
    """Expected trials without a valid result.

    Each of our rows should have every expected seed; each method (with its backbone, data, preset and protocol) should
    have every expected number of shots that it can have, with its default settings where these are known, or on the
    first of the test images. A variant alone, e.g. one line of an ablation, need not have every shot.

    Args:
        state: what became of the trial with a row's settings and these shots and seed.
    """
    methods: dict[tuple[str, str, str, str, str], list[Row]] = defaultdict(list)
    found: list[MissingTrial] = []
    for row in rows:
        methods[row.names].append(row)
        found += [
            MissingTrial(*row.names, row.variant, row.shots, seed, state(row, row.shots, seed))
            for seed in expected_seeds
            if seed not in row.seeds and row.shots is not None
        ]
    for names, members in methods.items():
        have = {row.shots for row in members if row.default or "test images" in row.prepared}
        like = next((row for row in members if row.default), None)
        found += [
            MissingTrial(*names, "", number, seed, state(like, number, seed) if like else MISSING)
            for number in possible_shots(members, shots)
            if number not in have
            for seed in expected_seeds
        ]
    return sorted(found, key=lambda one: (one.data, one.method, one.shots, one.variant, one.seed))


def published_rows(published: Published, comparable: bool) -> list[Row]:
    """The paper's rows in the form of ours; `comparable` says whether they were measured on the same data."""
    return [
        Row(
            method=row.method, backbone=published.backbone if row.key == published.method else "",
            data=published.data, subject=published.subject, shots=row.shots, preset="", protocol="",
            variant=row.setting, series="", convention="", background_in_average=True,
            classes=tuple(published.columns), seeds=(), n=row.n, per_class=dict(row.per_class), average=row.average,
            published=True, other_data=not comparable, supervised=row.supervised, source=row.source, key=row.key,
            label=row.method,
        )
        for row in published.rows
    ]  # fmt: skip


def comparison(row: Row, published: Published | None) -> PublishedRow | None:
    """The published row that may be subtracted from `row`, else None.

    It has the same method, settings, shots, data, backbone and metric.
    """
    same_metric = row.convention == PAPER_CONVENTION and row.background_in_average
    if row.published or published is None or row.preset != PAPER_PRESET or not same_metric:
        return None
    found = None if row.shots is None else published.main_row(row.method, row.shots)
    if found is None or not row.default:
        return None
    theirs, test = published.comparable, row.prepared.get("test")
    same_world = row.data in theirs["data"] and row.backbone in (found.backbones or theirs["backbone"])
    same_world &= test is None or test in theirs["test"]
    # "limit", "test images": a part of the data, to try out or because the method is slow
    return found if same_world and not {"limit", "test images"} & row.prepared.keys() else None


def difference(row: Row, published: Published | None) -> dict[str, Any] | None:
    """Ours minus published in percentage points, per class and for the average; None without a comparison."""
    if (other := comparison(row, published)) is None:
        return None
    per_class = {
        name: minus(stat.mean, other.per_class[name].mean)
        for name, stat in row.per_class.items()
        if name in other.per_class
    }
    return {"per_class": per_class, "average": minus(row.average.mean, other.average.mean)}


def stats_of(row: Row | PublishedRow | None, columns: Iterable[str], average: str = "avg") -> dict[str, Stat]:
    """The numbers of a table's line by column, those of the average under its own name."""
    per_class, mean = (row.per_class, row.average) if row else ({}, NOTHING)
    return {**{name: per_class.get(name, NOTHING) for name in columns}, average: mean}


def choices(prepared: Mapping[str, str]) -> str:
    """`TrialResult.prepared` in words, by name, e.g. "rule paper, test horse_val"."""
    return ", ".join(f"{name} {value}" for name, value in prepared.items())


def column_order(published: Published | None, classes: Sequence[str]) -> list[str]:
    """The paper's column order, then classes it does not have; without a paper the background comes last."""
    columns = list(published.columns) if published else [*classes[1:], *classes[:1]]
    return columns + [name for name in classes if name not in columns]


def row_name(row: Row, rows: Sequence[Row]) -> str:
    """What a row is called outside its table: with the backbone and protocol where `rows` differ in them."""
    name = row.label
    if row.shots and f"{row.shots}-shot" not in name:
        name += f" {row.shots}-shot"
    differ = [key for key in ("backbone", "protocol") if len({getattr(one, key) for one in rows}) > 1]
    about = [text for text in (*(getattr(row, key) for key in differ), row.variant) if text not in ("", "none")]
    return f"{name} ({', '.join(about)})" if about else name


def minus(left: float | None, right: float | None) -> float | None:
    """The difference where both are defined."""
    return None if left is None or right is None else left - right

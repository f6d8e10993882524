"""From result files to rows: mean and standard deviation over seeds, and an honest list of what is missing."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_bench.errors import ResultError
from slime_bench.metrics import CONVENTION_RULES
from slime_bench.report.method_facts import OWN_REPORT, expected_shots, stated
from slime_bench.report.published import Published, PublishedRow, Stat
from slime_bench.results.identity import canonical_json, flatten, parse_trial_folder
from slime_bench.results.result import RESULT_FILE, TrialResult, average_of, read_result

if TYPE_CHECKING:
    from slime_bench.report.intervals import ImageBootstrap, Interval

PAPER_PRESET = "paper"
"""Only this preset runs on the data and weights of the published tables, so only it is compared with them."""
PAPER_CONVENTION = "slime"
_OWN_COLUMNS = ("seed", "shots", "metric")

Family = tuple[str, str, str, str, str, str]
"""Names of method, backbone, data, subject, preset and protocol."""
Usual = Mapping[Family, Mapping[str, str]]
"""Default settings of a family: dotted key -> text, as `settings` gives them."""


@dataclass(frozen=True)
class FailedTrial:
    """A trial folder with `error.json` and no valid result."""

    folder: Path
    data: str
    method: str
    shots: int
    seed: int
    summary: str


@dataclass(frozen=True)
class Collected:
    """What lies under an outputs folder.

    Attributes:
        results: valid results, one per signature, sorted by data, method, shots, series and seed.
        folders: signature -> the trial's folder.
        invalid: files that are no valid result, with the reason.
        failed: trials that ended in an error and have no valid result.
    """

    results: list[TrialResult]
    folders: dict[str, Path]
    invalid: list[tuple[Path, str]]
    failed: list[FailedTrial]


@dataclass(frozen=True)
class Row:
    """One row of a table, in percent: trials that differ in their seed alone, or a published row.

    Attributes:
        variant: what sets the row apart from other rows of the same names, e.g. `maps=cross`; empty for the usual one.
        usual: whether the settings are the default ones, or it is not known what those are.
        series: the trials' signature without the seed; empty for a published row.
        classes: class names of the trials, background first.
        seeds, n: seeds behind the mean and their number; `n` is None where a paper does not state it.
        per_class: class name -> mean and sample standard deviation over the seeds that define the class.
        average: mean and sample standard deviation of the per-seed averages.
        prepared: choices with which the data set was prepared, as in `TrialResult`.
        stated: what the caption has to say of the recorded configuration, as `method_facts.stated`.
        notes: reservations that have to stand under the table.
        missing_seeds: expected seeds without a valid result.
        other_data: a published row that was not measured on this table's data.
        key: for a published row, the name of our method it compares with.
        interval: over test images, see `with_intervals`; None where nobody asked.
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
    usual: bool = True
    interval: Interval | None = None


@dataclass(frozen=True)
class MissingTrial:
    """An expected trial without a valid result."""

    method: str
    backbone: str
    data: str
    preset: str
    protocol: str
    variant: str
    shots: int
    seed: int

    def __str__(self) -> str:
        variant = f" {self.variant}" if self.variant else ""
        return f"{self.method}{variant} on {self.data}, {self.shots}-shot, seed {self.seed}"


def collect(root: Path) -> Collected:
    """Reads `<root>/runs/**/result.json`; what is not valid is listed and does not stop the report."""
    results: dict[str, TrialResult] = {}
    folders: dict[str, Path] = {}
    invalid: list[tuple[Path, str]] = []
    for path in sorted((root / "runs").glob(f"**/{RESULT_FILE}")):
        try:
            result = read_result(path)
        except ResultError as error:
            found = "" if error.found is None else f" ({error.found})"
            invalid.append((path, f"{error.summary}{found}"))
            continue
        trial = parse_trial_folder(path.parent)
        if trial is None or any(trial[name] != getattr(result, name) for name in trial):
            invalid.append((path, "The result does not belong to the folder it lies in."))
        elif result.signature in results:
            invalid.append((path, f"A second result of {folders[result.signature]}; only the first is used."))
        else:
            results[result.signature], folders[result.signature] = result, path.parent
    ordered = sorted(results.values(), key=lambda one: (one.data, one.method, one.shots, one.series, one.seed))
    valid = set(folders.values())
    errors = [path for path in sorted((root / "runs").glob("**/error.json")) if path.parent not in valid]
    failed = [one for path in errors if (one := _failed(path)) is not None]
    return Collected(ordered, folders, invalid, failed)


def without_own_reports(collected: Collected) -> Collected:
    """What the main tables are made of: without the methods that have a report of their own."""
    return dataclasses.replace(
        collected,
        results=[one for one in collected.results if one.method not in OWN_REPORT],
        failed=[one for one in collected.failed if one.method not in OWN_REPORT],
    )


def aggregate(
    results: Iterable[TrialResult],
    convention: str = "slime",
    background: bool = True,
    expected_seeds: Sequence[int] = (),
    usual: Usual | None = None,
) -> list[Row]:
    """Rows of mean and sample standard deviation (ddof 1) over the seeds of each series, in percent.

    The deviation of the average is taken over per-seed averages; with one seed there is none.

    Args:
        usual: default settings of the families for which they are known.

    Raises:
        ResultError: an unknown convention, or two results of one series and seed.
    """
    if convention not in CONVENTION_RULES:
        raise ResultError("Unknown metric convention.", found=convention, expected=" or ".join(CONVENTION_RULES))
    groups: dict[tuple[Any, ...], list[TrialResult]] = defaultdict(list)
    for result in results:
        groups[(*family(result), result.shots, result.series)].append(result)
    labels = variants([trials[0] for trials in groups.values()], usual)
    rows = [
        dataclasses.replace(
            _row(sorted(trials, key=lambda one: one.seed), labels[key[-1]], convention, background, expected_seeds),
            usual=_is_usual(trials[0], usual),
        )
        for key, trials in groups.items()
    ]
    return sorted(rows, key=lambda row: (row.data, row.preset, row.shots, row.method, row.variant, row.series))


def with_intervals(rows: Iterable[Row], results: Sequence[TrialResult], bootstrap: ImageBootstrap) -> list[Row]:
    """Our rows, made of `results`, with their intervals over test images."""
    found = []
    for row in rows:
        trials = [one for one in results if one.series == row.series]
        interval = bootstrap.interval(trials, row.convention, row.background_in_average)
        found.append(dataclasses.replace(row, interval=interval))
    return found


def variants(trials: Sequence[TrialResult], usual: Usual | None = None) -> dict[str, str]:
    """Series -> label, for one trial of every series.

    Among the series of one method, backbone, data, preset, protocol and number of shots, a label lists the settings in
    which a series departs from the default, or where that is not known from the most common value. Where no value is
    the most common, every series states its own.
    """
    families: dict[tuple[Any, ...], list[TrialResult]] = defaultdict(list)
    for trial in trials:
        families[(*family(trial), trial.shots)].append(trial)
    labels: dict[str, str] = {}
    for members in families.values():
        labels |= _labels(members, (usual or {}).get(family(members[0]), {}))
    return labels


def without_variants(rows: Sequence[Row]) -> list[Row]:
    """The rows without those of other settings, for every family that has rows of its default settings."""
    have = {_names(row) for row in rows if row.usual}
    return [row for row in rows if row.usual or _names(row) not in have]


def missing(rows: Iterable[Row], shots: Sequence[int], expected_seeds: Sequence[int]) -> list[MissingTrial]:
    """Expected trials without a valid result.

    Each of our rows should have every expected seed; each method (with its backbone, data, preset and protocol) should
    have every expected number of shots that it can have (see `method_facts.expected_shots`), with its default settings
    where these are known. A variant alone, e.g. one line of an ablation, need not have every shot.
    """
    families: dict[tuple[str, str, str, str, str], set[int]] = defaultdict(set)
    found: list[MissingTrial] = []
    for row in rows:
        if row.published or row.shots is None:
            continue
        names = _names(row)
        families[names] |= {row.shots} if row.usual else set()
        found += [
            MissingTrial(*names, row.variant, row.shots, seed) for seed in expected_seeds if seed not in row.seeds
        ]
    for names, have in families.items():
        for number in expected_shots(names[0], shots):
            if number not in have:
                found += [MissingTrial(*names, "", number, seed) for seed in expected_seeds]
    return sorted(found, key=lambda one: (one.data, one.method, one.shots, one.variant, one.seed))


def published_rows(published: Published, comparable: bool) -> list[Row]:
    """The paper's rows in the form of ours; `comparable` says whether they were measured on the same data."""
    return [
        Row(
            method=row.method,
            backbone=published.backbone if row.key == "slime" else "",
            data=published.data,
            subject=published.subject,
            shots=row.shots,
            preset="",
            protocol="",
            variant=row.setting,
            series="",
            convention="",
            background_in_average=True,
            classes=tuple(published.columns),
            seeds=(),
            n=row.n,
            per_class=dict(row.per_class),
            average=row.average,
            published=True,
            other_data=not comparable,
            supervised=row.supervised,
            source=row.source,
            key=row.key,
        )
        for row in published.rows
    ]


def comparison(row: Row, published: Published | None) -> PublishedRow | None:
    """The published row that may be subtracted from `row`, else None.

    It has the same method, settings, shots, data, backbone and metric.
    """
    same_metric = row.convention == PAPER_CONVENTION and row.background_in_average
    if row.published or published is None or row.preset != PAPER_PRESET or not same_metric:
        return None
    ours = {"data": row.data, "backbone": row.backbone, "test": row.prepared.get("test")}
    same_world = all(value is None or value in published.comparable[name] for name, value in ours.items())
    same_world &= "limit" not in row.prepared  # a part of the data set, for trying out
    return published.main_row(row.method, row.shots) if same_world and row.usual and row.shots is not None else None


def difference(row: Row, other: PublishedRow | None) -> dict[str, Any] | None:
    """Ours minus published in percentage points, per class and for the average; None without a comparison."""
    if other is None:
        return None
    per_class = {
        name: _minus(stat.mean, other.per_class[name].mean)
        for name, stat in row.per_class.items()
        if name in other.per_class
    }
    return {"per_class": per_class, "average": _minus(row.average.mean, other.average.mean)}


def choices(prepared: Mapping[str, str]) -> str:
    """`TrialResult.prepared` in words, by name, e.g. "rule paper, test horse_val"."""
    return ", ".join(f"{name} {value}" for name, value in prepared.items())


def family(result: TrialResult) -> Family:
    """The names under which results stand side by side."""
    return (result.method, result.backbone, result.data, result.subject, result.preset, result.protocol)


def settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Dotted key -> text of what a recorded configuration says, without what has a column of its own."""
    own = {key: value for key, value in config.items() if key not in _OWN_COLUMNS}
    return {key: value if isinstance(value, str) else canonical_json(value) for key, value in flatten(own)}


def shortened(key: str, keys: Sequence[str]) -> str:
    """The shortest tail of a dotted key that names no other key."""
    parts = key.split(".")
    for length in range(2 if parts[-1] == "enabled" else 1, len(parts)):  # of what? says the part before
        tail = ".".join(parts[-length:])
        if sum(other == tail or other.endswith(f".{tail}") for other in keys) == 1 and parts[0] != "fingerprint":
            return tail
    return key


def _names(row: Row) -> tuple[str, str, str, str, str]:
    return (row.method, row.backbone, row.data, row.preset, row.protocol)


def _is_usual(trial: TrialResult, usual: Usual | None) -> bool:
    expected = (usual or {}).get(family(trial), {})
    have = settings(trial.config)
    return all(have.get(key) == text for key, text in expected.items())


def _row(
    trials: list[TrialResult], variant: str, convention: str, background: bool, expected_seeds: Sequence[int]
) -> Row:
    first = trials[0]
    seeds = tuple(trial.seed for trial in trials)
    if len(set(seeds)) < len(seeds):
        raise ResultError(
            "Two results claim to be the same trial.",
            found=f"signatures {[trial.signature for trial in trials]}, seeds {list(seeds)}",
            expected=f"one result per seed of series {first.series}",
            remedy="Delete the folder of the one that does not belong.",
        )
    tables = [trial.conventions[convention]["per_class"] for trial in trials]
    per_class, notes = {}, []
    for name in first.classes:
        values = [value for table in tables if (value := table[name]) is not None]
        per_class[name] = _stat(values)
        if len(values) < len(trials):
            notes.append(f"{name} is defined in {len(values)} of {len(trials)} seeds")
    averages = [average_of(table, first.classes, background) for table in tables]
    return Row(
        method=first.method,
        backbone=first.backbone,
        data=first.data,
        subject=first.subject,
        shots=first.shots,
        preset=first.preset,
        protocol=first.protocol,
        variant=variant,
        series=first.series,
        convention=convention,
        background_in_average=background,
        classes=tuple(first.classes),
        seeds=seeds,
        n=len(trials),
        per_class=per_class,
        average=_stat([value for value in averages if value is not None]),
        published=False,
        prepared=dict(first.prepared),
        stated=stated(first.config),
        notes=tuple(notes),
        missing_seeds=tuple(seed for seed in expected_seeds if seed not in seeds),
    )


def _stat(fractions: Sequence[float]) -> Stat:
    """Mean and sample standard deviation of IoUs in 0..1, in percent."""
    percent = [100.0 * value for value in fractions]
    mean = math.fsum(percent) / len(percent) if percent else None
    return Stat(mean, statistics.stdev(percent) if len(percent) > 1 else None)


def _labels(members: Sequence[TrialResult], usual: Mapping[str, str]) -> dict[str, str]:
    every = {member.series: _distinguishing(member) for member in members}
    keys = sorted({key for values in every.values() for key in values})
    shown: dict[str, list[str]] = {series: [] for series in every}
    for key in keys:
        texts = {series: values.get(key, "-") for series, values in every.items()}
        common = Counter(texts.values()).most_common(2)
        if key in usual:
            reference: str | None = usual[key]
        elif len(common) == 1:
            continue
        else:
            reference = common[0][0] if common[0][1] > common[1][1] else None
        for series, text in texts.items():
            if text != reference:
                shown[series].append(f"{shortened(key, keys)}={text}")
    labels = {series: ", ".join(parts) for series, parts in shown.items()}
    # Redacted values can be all that sets two series apart: then only the hash can tell them apart.
    twice = Counter(labels.values())
    return {
        series: label if twice[label] == 1 else f"{label + ', ' if label else ''}series={series[:8]}"
        for series, label in labels.items()
    }


def _distinguishing(trial: TrialResult) -> dict[str, str]:
    prepared = {f"prepared.{name}": value for name, value in trial.prepared.items()}
    fingerprints = {f"fingerprint.{name}": value[:12] for name, value in trial.fingerprints.items()}
    return settings(trial.config) | prepared | fingerprints


def _failed(path: Path) -> FailedTrial | None:
    trial = parse_trial_folder(path.parent)
    if trial is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {}
    fields: Mapping[str, Any] = content if isinstance(content, dict) else {}
    texts = [str(fields[name]) for name in ("type", "summary", "message") if fields.get(name)]
    summary = ": ".join(texts[:2]).splitlines()[0] if texts else "error.json does not say why"
    return FailedTrial(path.parent, trial["data"], trial["method"], trial["shots"], trial["seed"], summary)


def _minus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right

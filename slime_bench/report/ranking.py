"""The ranking experiment over seeds: does InfoScore's order of the layers follow that of their mIoU?

Read is `layer_study.json`, what each of its trials records beside its result.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from slime_bench.errors import ResultError
from slime_bench.paths import config_dir
from slime_bench.report.collect import (
    FOLDERS,
    Collected,
    FailedTrial,
    Provenance,
    collect,
    default_outputs,
    default_settings,
    family,
    match,
    multirun,
    planned_configs,
    provenance,
    variants,
)
from slime_bench.report.published import Stat
from slime_bench.report.rows import by_series, stat
from slime_bench.results.identity import canonical_json
from slime_bench.results.result import TrialResult

REPORT: Final = "ranking"
"""Name of this report in the `facts` of results; trials of a method that has it keep a study of their layers."""
STUDY_FILE: Final = "layer_study.json"
_NOT_A_SETTING = ("seed", "metric")
_COUNTS = ("rank_images", "test_images", "forwarded_images")
_FIELDS = ("layers", "info_score", "order", "rank_on", *_COUNTS, "bootstrap", "conventions")
Study = Mapping[str, Any]
"""The content of `layer_study.json`."""


@dataclass(frozen=True)
class Spoilt:
    """A finished trial whose study cannot be used."""

    path: Path
    seed: int
    reason: str


@dataclass(frozen=True)
class Layer:
    """One layer alone: means and sample deviations over seeds, and the ranks of the means (1 = best).

    Attributes:
        rank_difference: how much better mIoU ranks the layer than InfoScore does; 0 where they agree.
    """

    name: str
    info_score: Stat
    info_rank: float
    miou: Stat
    miou_rank: float
    rank_difference: float


@dataclass(frozen=True)
class Ensemble:
    """Layers used together; `layers` is None where they are not the same for every seed."""

    name: str
    layers: tuple[str, ...] | None
    miou: Stat


@dataclass(frozen=True)
class SeedStudy:
    """One seed.

    Attributes:
        rho, interval: Spearman's rank correlation with the interval of its bootstrap.
        best_by_info, best_by_miou: names of layers. first_two: by InfoScore.
        top1_is_best: no layer alone has a higher mIoU than InfoScore's first; None for one layer.
        top2_are_best: no other layer has a higher mIoU alone than either of InfoScore's first two; None below three.
        top2: mIoU of these two together; None for one layer.
        pairs_above: random pairs with a higher mIoU than that, of `pairs`.
        above_pairs, above_interval: that mIoU less the mean of the random pairs', and the interval of its bootstrap.
        entropy_ratio_rho, cov_rho: as `rho`, of each factor of InfoScore by itself.
        seconds: of ranking and test.
    """

    seed: int
    rho: float | None
    interval: tuple[float, float] | None
    best_by_info: str
    first_two: tuple[str, ...]
    best_by_miou: str
    top1_is_best: bool | None
    top2_are_best: bool | None
    top2: float | None
    pairs: int
    pairs_mean: float | None
    pairs_above: int
    above_pairs: float | None
    above_interval: tuple[float, float] | None
    entropy_ratio_rho: float | None
    cov_rho: float | None
    rank_images: int
    test_images: int
    forwarded_images: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Group:
    """Trials that differ in their seed alone.

    Attributes:
        facts: name -> value: data, backbone, preset, protocol, method.
        prompts: the words of the classes, as the caption says them.
        bootstrap: `resamples`, `percent` inside its intervals, and what it was `over`.
        layers: in running order. ensembles: top-1 to top-L, last, middle, all.
        pairs: over seeds, `mean`, `best` and sample `deviation` of each seed's random pairs; empty without any.
        rho: mean and sample deviation of the seeds' rho.
        missing: expected seeds without a study that can be used; `spoilt` and `failed` say why, where it is known.
        left_out: results of the same trials on another device, with other weights, data or prompts.
    """

    facts: dict[str, str]
    variant: str
    series: str
    subject: str
    prepared: dict[str, str]
    prompts: str
    rank_on: str
    bootstrap: dict[str, Any]
    layers: list[Layer]
    ensembles: list[Ensemble]
    pairs: dict[str, Stat]
    seeds: list[SeedStudy]
    rho: Stat
    missing: list[int]
    spoilt: list[Spoilt]
    failed: list[FailedTrial]
    provenance: Provenance
    left_out: int


@dataclass(frozen=True)
class RankingReport:
    """Everything that is said of one data set.

    Attributes:
        groups: series by series. spoilt: finished trials of series that have no study which can be used.
        absent: settings that were asked for and have no study; these two are told in the report of every data set.
        command: that runs what is missing, without the folders of one machine; empty where nothing was asked for.
    """

    subject: str
    data: str
    convention: str
    groups: list[Group]
    spoilt: list[Spoilt]
    absent: list[str]
    command: str


@dataclass
class _Series:
    """Finished trials that differ in their seed alone, the expected seeds, and `left_out` of `Matched`; their studies
    by seed, and those that cannot be used."""

    trials: list[TrialResult]
    expected: Sequence[int]
    left_out: int = 0
    studies: dict[int, Study] = field(default_factory=dict)
    spoilt: list[Spoilt] = field(default_factory=list)


def ranking_reports(
    overrides: Sequence[str],
    outputs: Path | None,
    *,
    subject: str,
    seeds: Sequence[int],
    convention: str | None,
    extra_dir: str | None,
) -> tuple[list[RankingReport], Path]:
    """The reports of the ranking experiment, one for each data set, and the outputs folder.

    Args:
        overrides: as they were given to the sweep: its trials alone are reported, and those that are missing are known.
            Without any, every finished trial is reported.
        outputs: folder with runs/; that of the configuration by default.
        subject, seeds: without overrides: of this subject alone; expected seeds of every series.
        convention: that of the configuration by default, `slime` without overrides.

    Raises:
        ConfigError: overrides that cannot be composed.
        ResultError: no finished trial has a study that can be used.
    """
    absent, command = list[str](), ""
    if overrides:
        planned = planned_configs(overrides, extra_dir)
        outputs = outputs or Path(planned[0]["output_root"])
        convention = convention or planned[0]["metric"]["convention"]
        command = multirun(overrides, (*FOLDERS, "data.root", "backbone.weights"))
    outputs, convention = outputs or default_outputs(), convention or "slime"
    collected = collect(outputs).of_report(REPORT)
    if overrides:
        every, absent = _matching(planned, collected)
    else:
        mine = by_series(one for one in collected.results if subject in ("all", one.subject))
        every = [_Series(trials, seeds) for trials in mine.values()]
    for each in every:
        _read_studies(each, collected)
    groups = _groups([each for each in every if each.studies], collected, convention, extra_dir)
    rest = [one for each in every if not each.studies for one in each.spoilt]
    if not groups:
        number = sum(len(each.trials) for each in every)
        about = [f"{number} finished trial(s) of the experiment, {len(collected.failed)} failed"]
        about += [f"{len(collected.results) - number} of other settings or subjects"]
        raise ResultError(
            "There is no study of layers to report" + ("." if subject == "all" else f" for subject {subject}."),
            path=outputs / "runs", found="; ".join([*about, *(f"{one.path}: {one.reason}" for one in rest)]),
            expected=f"at least one finished trial with its {STUDY_FILE}",
            remedy=f"Run its sweep, `{experiment()}` among the overrides, or name another folder with --outputs.",
        )  # fmt: skip
    of_data: dict[tuple[str, str], list[Group]] = defaultdict(list)
    for group in groups:
        of_data[group.subject, group.facts["data"]].append(group)
    return [RankingReport(*key, convention, own, rest, absent, command) for key, own in of_data.items()], outputs


def experiment() -> str:
    """The override that asks for the experiment: the file of conf/experiment that is named after it."""
    names = sorted(path.stem for path in (config_dir() / "experiment").glob(f"*{REPORT}*.yaml"))
    return f"experiment={names[0] if names else REPORT}"


def _matching(planned: Sequence[Mapping[str, Any]], collected: Collected) -> tuple[list[_Series], list[str]]:
    """The results of planned trials by series, and the settings without a finished trial."""
    found, absent = list[_Series](), list[str]()
    settings: dict[str, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for trial in planned:
        values = {key: value for key, value in trial["decided"].items() if key not in _NOT_A_SETTING}
        settings[canonical_json(values)][trial["seed"]] = trial
    for trials in settings.values():
        matched = match(trials, collected, lambda one: one.series)
        results = sorted(matched.results.values(), key=lambda one: one.seed)
        if results:
            found.append(_Series(results, sorted(trials), matched.left_out))
        else:
            first = next(iter(trials.values()))
            label = ", ".join(f"{name} {first[name]['name']}" for name in ("data", "backbone", "protocol"))
            absent.append(f"{label}, preset {first['preset']}")
    return found, absent


def _read_studies(series: _Series, collected: Collected) -> None:
    """A study that cannot be used is listed and does not stop the report."""
    for one in series.trials:
        path, why = collected.folders[one.signature] / STUDY_FILE, ""
        try:
            study = json.loads(path.read_text(encoding="utf-8"))
            if lacking := [name for name in _FIELDS if name not in study]:
                why = f"fields are missing. ({', '.join(lacking)})"
            else:
                series.studies[one.seed] = study
        except OSError as error:
            why = f"there is no such file. ({error.strerror})"
        except (ValueError, TypeError) as error:
            why = f"it is not valid JSON. ({error})"
        if why:
            series.spoilt.append(Spoilt(path, one.seed, f"This is no valid study of layers: {why}"))


def _groups(every: Sequence[_Series], collected: Collected, convention: str, extra_dir: str | None) -> list[Group]:
    """One group for each series with a study, sorted by data, backbone, preset, protocol and settings."""
    some = [next(one for one in each.trials if one.seed in each.studies) for each in every]
    labels = variants(some, default_settings(((family(one), one.config) for one in some), extra_dir))
    groups = []
    for first, series in zip(some, every, strict=True):
        found = list(series.studies.values())
        measured = [each["conventions"][convention] for each in found]
        each_seed = [_seed(*each) for each in zip(series.studies, found, measured, strict=True)]
        groups.append(
            Group(
                facts={name: getattr(first, name) for name in ("data", "backbone", "preset", "protocol", "method")},
                variant=labels[first.series], series=first.series, subject=first.subject, prepared=dict(first.prepared),
                prompts=first.facts.get("stated", {}).get("prompts", ""), rank_on=found[0]["rank_on"],
                bootstrap={name: found[0]["bootstrap"][name] for name in ("resamples", "percent", "over")},
                layers=_layers(found, measured), ensembles=_ensembles(found[0]["layers"], measured),
                pairs=_pairs([_random_pairs(each) for each in measured]), seeds=each_seed,
                rho=stat([one.rho for one in each_seed if one.rho is not None]),
                missing=[seed for seed in series.expected if seed not in series.studies], spoilt=series.spoilt,
                failed=[one for one in collected.failed if (one.method, one.data) == (first.method, first.data)],
                provenance=provenance(
                    collected.folders[one.signature] for one in series.trials if one.seed in series.studies
                ),
                left_out=series.left_out,
            )
        )  # fmt: skip
    return sorted(groups, key=lambda group: (*group.facts.values(), group.variant, group.series))


def _layers(found: Sequence[Study], measured: Sequence[Study]) -> list[Layer]:
    from scipy.stats import rankdata

    names = found[0]["layers"]
    scores = [stat([study["info_score"][place] for study in found]) for place in range(len(names))]
    mious = [stat([each["selections"][name]["miou"] for each in measured]) for name in names]
    ranks = [rankdata([-(each.mean or 0) for each in side]).tolist() for side in (scores, mious)]
    return [
        Layer(name, score, by_score, miou, by_miou, rank_difference=by_score - by_miou)
        for name, score, by_score, miou, by_miou in zip(names, scores, ranks[0], mious, ranks[1], strict=True)
    ]


def _ensembles(layers: Sequence[str], measured: Sequence[Study]) -> list[Ensemble]:
    made = []
    for name in [*(f"top-{count}" for count in range(1, len(layers) + 1)), "last", "middle", "all"]:
        chosen = [each["selections"][name] for each in measured]
        running = {tuple(layer for layer in layers if layer in one["layers"]) for one in chosen}
        same = next(iter(running)) if len(running) == 1 else None
        made.append(Ensemble(name, same, stat([one["miou"] for one in chosen])))
    return made


def _random_pairs(measured: Study) -> list[float]:
    return [each["miou"] for name, each in measured["selections"].items() if name.startswith("pair-")]


def _pairs(drawn: Sequence[Sequence[float]]) -> dict[str, Stat]:
    some = [values for values in drawn if values]
    found = {
        "mean": [statistics.fmean(values) for values in some],
        "best": [max(values) for values in some],
        "deviation": [statistics.stdev(values) for values in some if len(values) > 1],
    }
    return {name: stat(values) for name, values in found.items()} if some else {}


def _seed(seed: int, study: Study, measured: Study) -> SeedStudy:
    alone = {name: measured["selections"][name]["miou"] for name in study["layers"]}
    number, order = len(alone), study["order"]
    rest = [alone[name] for name in order[2:]]
    top2 = measured["selections"]["top-2"]["miou"] if number > 1 else None
    pairs, interval = _random_pairs(measured), measured["interval"]
    # Studies of before 2026-11-30 have neither.
    above, factors = measured.get("above_pairs") or {}, measured.get("factors", {})
    return SeedStudy(
        seed=seed, rho=measured["rho"], interval=interval and (interval[0], interval[1]), best_by_info=order[0],
        first_two=tuple(order[:2]),
        best_by_miou=max(study["layers"], key=alone.__getitem__),
        top1_is_best=alone[order[0]] == max(alone.values()) if number > 1 else None,
        top2_are_best=min(alone[name] for name in order[:2]) >= max(rest) if rest else None,
        top2=top2, pairs=len(pairs), pairs_mean=statistics.fmean(pairs) if pairs else None,
        pairs_above=sum(value > top2 for value in pairs) if top2 is not None else 0,
        above_pairs=above.get("difference"), above_interval=above.get("interval") and tuple(above["interval"]),
        entropy_ratio_rho=factors.get("entropy_ratio"), cov_rho=factors.get("cov"),
        seconds=dict(study.get("seconds", {})), **{name: study[name] for name in _COUNTS},
    )  # fmt: skip

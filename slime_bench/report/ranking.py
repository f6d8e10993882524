"""The ranking experiment over seeds: does InfoScore's order of the layers follow that of their mIoU?"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from slime_bench.errors import ResultError
from slime_bench.report.aggregate import Collected, FailedTrial, Usual, family, variants
from slime_bench.report.layer_study import LayerStudy, ranks, read_study
from slime_bench.report.method_facts import RANKING, stated
from slime_bench.report.provenance import Provenance, provenance
from slime_bench.report.published import Stat
from slime_bench.results.result import TrialResult


@dataclass(frozen=True)
class Spoilt:
    """A finished trial whose study cannot be used."""

    path: Path
    data: str
    series: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Layer:
    """One layer alone: means and sample deviations over seeds, and the ranks of the means (1 = best)."""

    name: str
    info_score: Stat
    info_rank: float
    miou: Stat
    miou_rank: float

    @property
    def rank_difference(self) -> float:
        """How much better mIoU ranks the layer than InfoScore does; 0 where they agree."""
        return self.info_rank - self.miou_rank


@dataclass(frozen=True)
class Ensemble:
    """Layers used together; `layers` is None where they are not the same for every seed."""

    name: str
    layers: tuple[str, ...] | None
    miou: Stat


@dataclass(frozen=True)
class Pairs:
    """Random pairs: over seeds, of each seed's mean, sample deviation and best; `numbers` of pairs, seed by seed."""

    numbers: tuple[int, ...]
    mean: Stat
    deviation: Stat
    best: Stat


@dataclass(frozen=True)
class SeedStudy:
    """One seed.

    Attributes:
        rho, interval: Spearman's rank correlation with the interval of its bootstrap.
        best_by_info, best_by_miou: names of layers.
        top1_is_best: no layer alone has a higher mIoU than InfoScore's first; None for one layer.
        top2_are_best: no other layer has a higher mIoU alone than either of InfoScore's first two; None below three.
        top2: mIoU of these two together; None for one layer.
        pairs_above: random pairs with a higher mIoU than that, of `pairs`.
        seconds: of ranking and test.
    """

    seed: int
    rho: float | None
    interval: tuple[float, float] | None
    best_by_info: str
    best_by_miou: str
    top1_is_best: bool | None
    top2_are_best: bool | None
    top2: float | None
    pairs: int
    pairs_mean: float | None
    pairs_above: int
    rank_images: int
    test_images: int
    forwarded_images: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Group:
    """Trials that differ in their seed alone.

    Attributes:
        facts: name -> value: data, backbone, preset, protocol, method.
        stated: what the recorded configuration says, as `method_facts.stated`.
        layers: in running order. ensembles: top-1 to top-L, last, middle, all.
        rho: mean and sample deviation of the seeds' rho.
        missing: expected seeds without a study that can be used; `spoilt` and `failed` say why, where it is known.
        left_out: results of the same trials on another device, with other weights, data or prompts.
    """

    facts: dict[str, str]
    variant: str
    series: str
    subject: str
    prepared: dict[str, str]
    stated: dict[str, str]
    rank_on: str
    resamples: int
    percent: int
    over: str
    layers: list[Layer]
    ensembles: list[Ensemble]
    pairs: Pairs | None
    seeds: list[SeedStudy]
    rho: Stat
    missing: list[int]
    spoilt: list[Spoilt]
    failed: list[FailedTrial]
    provenance: Provenance
    left_out: int


@dataclass(frozen=True)
class Studies:
    """What the finished trials of the ranking experiment hold.

    Attributes:
        found: signature -> study. results: their results. spoilt: the other trials.
    """

    results: list[TrialResult]
    found: dict[str, LayerStudy]
    spoilt: list[Spoilt]


def read_studies(collected: Collected, results: Iterable[TrialResult]) -> Studies:
    """The studies beside `results`; one that cannot be used is listed and does not stop the report."""
    kept: list[TrialResult] = []
    found: dict[str, LayerStudy] = {}
    spoilt: list[Spoilt] = []
    layers: dict[str, tuple[str, ...]] = {}
    for result in sorted(results, key=lambda one: (one.data, one.series, one.seed)):
        folder = collected.folders[result.signature]
        try:
            study = read_study(folder, result)
            if study.layers != layers.setdefault(result.series, study.layers):
                raise ResultError("Its layers are not those of the series' first seed.", path=folder)
        except ResultError as error:
            reason = f"{error.summary}" + (f" ({error.found})" if error.found is not None else "")
            spoilt.append(Spoilt(Path(error.path or folder), result.data, result.series, result.seed, reason))
        else:
            kept.append(result)
            found[result.signature] = study
    return Studies(kept, found, spoilt)


def ranking_results(collected: Collected) -> list[TrialResult]:
    """The finished trials of the ranking experiment."""
    return [result for result in collected.results if result.method == RANKING]


def groups(
    studies: Studies,
    collected: Collected,
    convention: str,
    expected: dict[str, Sequence[int]],
    usual: Usual | None = None,
    left_out: dict[str, int] | None = None,
) -> list[Group]:
    """One group for each series with a study, sorted by data, backbone, preset, protocol and settings.

    Args:
        expected: series -> seeds that it should have. usual: see `aggregate`. left_out: series -> see `Group`.
    """
    members: dict[str, list[TrialResult]] = defaultdict(list)
    for result in studies.results:
        members[result.series].append(result)
    labels = variants([trials[0] for trials in members.values()], usual)
    made = [
        _group(
            sorted(trials, key=lambda one: one.seed),
            studies,
            collected,
            convention,
            expected.get(series, ()),
            labels[series],
            (left_out or {}).get(series, 0),
        )
        for series, trials in members.items()
    ]
    return sorted(made, key=lambda group: (*group.facts.values(), group.variant, group.series))


def stat(values: Sequence[float]) -> Stat:
    """Mean and sample standard deviation (ddof 1); None where there are too few values."""
    return Stat(
        statistics.fmean(values) if values else None,
        statistics.stdev(values) if len(values) > 1 else None,
    )


def _group(
    trials: Sequence[TrialResult],
    studies: Studies,
    collected: Collected,
    convention: str,
    expected: Sequence[int],
    variant: str,
    left_out: int,
) -> Group:
    first = trials[0]
    twice = [one.seed for one in trials if sum(one.seed == other.seed for other in trials) > 1]
    if twice:
        raise ResultError(
            "Two results claim to be the same trial.", found=f"seed {twice[0]} of series {first.series}",
            expected="one result per seed", remedy="Delete the folder of the one that does not belong.",
        )  # fmt: skip
    found = [studies.found[trial.signature] for trial in trials]
    spoilt = [one for one in studies.spoilt if one.series == first.series]
    seeds = [_seed(trial.seed, study, convention) for trial, study in zip(trials, found, strict=True)]
    have = {trial.seed for trial in trials}
    _, backbone, data, subject, preset, protocol = family(first)
    return Group(
        facts={
            "data": data, "backbone": backbone, "preset": preset, "protocol": protocol, "method": first.method
        },
        variant=variant,
        series=first.series,
        subject=subject,
        prepared=dict(first.prepared),
        stated=stated(first.config),
        rank_on=found[0].rank_on,
        resamples=found[0].resamples,
        percent=found[0].percent,
        over=found[0].over,
        layers=_layers(found, convention),
        ensembles=_ensembles(found, convention),
        pairs=_pairs(found, convention),
        seeds=seeds,
        rho=stat([one.rho for one in seeds if one.rho is not None]),
        missing=[seed for seed in expected if seed not in have],
        spoilt=spoilt,
        failed=[one for one in collected.failed if (one.method, one.data) == (first.method, data)],
        provenance=provenance(collected.folders[trial.signature] for trial in trials),
        left_out=left_out,
    )  # fmt: skip


def _layers(found: Sequence[LayerStudy], convention: str) -> list[Layer]:
    names = found[0].layers
    scores = [stat([study.info_score[place] for study in found]) for place in range(len(names))]
    mious = [stat([study.conventions[convention].selections[name].miou for study in found]) for name in names]
    info_ranks, miou_ranks = (ranks([float(each.mean or 0) for each in side]) for side in (scores, mious))
    return [Layer(*row) for row in zip(names, scores, info_ranks, mious, miou_ranks, strict=True)]


def _ensembles(found: Sequence[LayerStudy], convention: str) -> list[Ensemble]:
    names = [*(f"top-{count}" for count in range(1, len(found[0].layers) + 1)), "last", "middle", "all"]
    made = []
    for name in names:
        each = [study.conventions[convention].selections[name] for study in found]
        running = {tuple(layer for layer in found[0].layers if layer in one.layers) for one in each}
        same = next(iter(running)) if len(running) == 1 else None
        made.append(Ensemble(name, same, stat([one.miou for one in each])))
    return made


def _pairs(found: Sequence[LayerStudy], convention: str) -> Pairs | None:
    drawn = [study.conventions[convention].pairs() for study in found]
    some = [values for values in drawn if values]
    if not some:
        return None
    return Pairs(
        numbers=tuple(map(len, drawn)),
        mean=stat([statistics.fmean(values) for values in some]),
        deviation=stat([statistics.stdev(values) for values in some if len(values) > 1]),
        best=stat([max(values) for values in some]),
    )


def _seed(seed: int, study: LayerStudy, convention: str) -> SeedStudy:
    measured = study.conventions[convention]
    alone = {name: measured.selections[name].miou for name in study.layers}
    number, order = len(alone), study.order
    rest = [alone[name] for name in order[2:]]
    top2 = measured.selections["top-2"].miou if number > 1 else None
    pairs = measured.pairs()
    return SeedStudy(
        seed=seed,
        rho=measured.rho,
        interval=measured.interval,
        best_by_info=order[0],
        best_by_miou=max(study.layers, key=alone.__getitem__),
        top1_is_best=alone[order[0]] == max(alone.values()) if number > 1 else None,
        top2_are_best=min(alone[name] for name in order[:2]) >= max(rest) if rest else None,
        top2=top2,
        pairs=len(pairs),
        pairs_mean=statistics.fmean(pairs) if pairs else None,
        pairs_above=sum(value > top2 for value in pairs) if top2 is not None else 0,
        rank_images=study.rank_images,
        test_images=study.test_images,
        forwarded_images=study.forwarded_images,
        seconds=study.seconds,
    )

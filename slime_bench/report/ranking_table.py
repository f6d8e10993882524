"""Tables of the ranking experiment as cells, each with its caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slime_bench.report.grid import DASH, Grid, Line, numbers, stat_text
from slime_bench.report.interval_tables import claim_lines
from slime_bench.report.method_facts import listed, ranked_on
from slime_bench.report.published import Stat
from slime_bench.report.ranking import Group, SeedStudy, Spoilt
from slime_bench.report.tables import metric_lines, prepared_lines


@dataclass(frozen=True)
class RankingReport:
    """Everything that is said of one data set.

    Attributes:
        groups: series by series. spoilt: finished trials of series that have no study which can be used.
        absent: settings that were asked for and have no study.
        command: that runs what is missing, without the folders of one machine; empty where nothing was asked for.
    """

    subject: str
    data: str
    convention: str
    groups: list[Group]
    spoilt: list[Spoilt]
    absent: list[str]
    command: str


def ranking_grids(report: RankingReport, group: Group) -> list[Grid]:
    """The layers with the caption of the whole, the ensembles, and the seeds."""
    return [_layers(report, group), _ensembles(group), _seeds(group)]


def place(group: Group) -> str:
    """Preset, data, backbone, protocol and settings of a group, for titles."""
    facts = group.facts
    names = (
        f"preset {facts['preset']}, data {facts['data']}, backbone {facts['backbone']}, protocol {facts['protocol']}"
    )
    return f"{names}{', ' + group.variant if group.variant else ''}"


def caption(report: RankingReport, group: Group) -> list[str]:
    """What has to be known of a group's numbers."""
    facts, seeds = group.facts, group.seeds
    rank_images = _range([one.rank_images for one in seeds])
    lines = [
        f"preset {facts['preset']}; data {facts['data']}; backbone {facts['backbone']}; protocol {facts['protocol']}; "
        f"{facts['method']}, 0-shot{'; ' + group.variant if group.variant else ''}",
        *prepared_lines([group.prepared]),
        *metric_lines(report.convention, True, [len(seeds)]),
        *claim_lines([("", len(seeds), min(one.test_images for one in seeds))]),
        f"seeds {numbers([one.seed for one in seeds])}; layers ranked with single prompts on "
        + (f"the {rank_images} " if group.rank_on == "test" else "")
        + f"{ranked_on(group.rank_on, rank_images)}; tested on {_range([one.test_images for one in seeds])} images",
        f"study without CRF; prompts: {group.stated.get('prompts', 'not recorded')}",
        _forwarded(seeds),
        "rank 1 = best; Δ rank: rank by InfoScore minus rank by mIoU, both of the means over seeds",
    ]
    if len(seeds) > 1 and all(layer.miou.std == 0 for layer in group.layers):
        lines.append(
            "nothing is learned: mIoU of a layer is the same for every seed; what seeds draw is the random pairs, the "
            "bootstrap" + ("" if group.rank_on == "test" else " and the images ranked on")
        )
    return [*lines, *_gaps(report, group), group.provenance.line()]


def _gaps(report: RankingReport, group: Group) -> list[str]:
    again = f"; to run them: {report.command}" if report.command else ""
    expected = sorted({*group.missing, *(one.seed for one in group.seeds)})
    lines = [
        f"MISSING TRIALS (of seeds {numbers(expected)}): seed {numbers(group.missing)}{again}"
        if group.missing
        else f"missing trials: none (of seeds {numbers(expected)})"
    ]
    lines += [f"NOT USED: seed {one.seed}: {one.reason}" for one in group.spoilt]
    lines += [f"failed: seed {one.seed} ({one.summary})" for one in group.failed]
    if group.left_out:
        lines.append(
            f"{group.left_out} result(s) of these trials on another device, with other weights, data or prompts, are "
            "left out"
        )
    return lines


def _forwarded(seeds: Sequence[SeedStudy]) -> str:
    ratios = sorted({f"{one.forwarded_images / one.test_images:.2f}" for one in seeds if one.test_images})
    return (
        f"images forwarded through the model: {_range([one.forwarded_images for one in seeds])}, "
        f"{' to '.join(dict.fromkeys((ratios[0], ratios[-1]))) if ratios else DASH} for each test image, ranking "
        "included"
    )


def _layers(report: RankingReport, group: Group) -> Grid:
    header = ["layer", "InfoScore", "rank", "mIoU alone", "rank by mIoU", "Δ rank"]
    lines = [
        Line(
            [
                layer.name,
                _score(layer.info_score),
                _rank(layer.info_rank),
                stat_text(layer.miou),
                _rank(layer.miou_rank),
                "0" if layer.rank_difference == 0 else f"{layer.rank_difference:+g}",
            ],
            ours=True,
        )
        for layer in group.layers
    ]
    title = f"{group.subject}: InfoScore and mIoU in percent of every layer ({place(group)})"
    return Grid(title, header, lines, caption(report, group))


def _ensembles(group: Group) -> Grid:
    lines = [
        Line([one.name, stat_text(one.miou), listed(one.layers) if one.layers else "not the same for every seed"], True)
        for one in group.ensembles
    ]
    drawn = ""
    if group.pairs is not None:
        pairs = group.pairs
        about = f"{_range(list(pairs.numbers))} pairs a seed"
        for name, value in (("mean", pairs.mean), ("best", pairs.best), ("deviation", pairs.deviation)):
            lines.append(Line([f"random pairs, {name}", stat_text(value), about], True))
        drawn = "; random pairs: other pairs than the two best; mean, best and sample standard deviation of each seed's"
    notes = [
        "top-k: the k best layers by InfoScore together; last, middle: one layer of the running order" + drawn,
        f"n = {len(group.seeds)}; what the caption of the first table says holds here too",
    ]
    return Grid(f"{group.subject}: mIoU in percent of ensembles ({place(group)})", _ENSEMBLES, lines, notes)


def _seeds(group: Group) -> Grid:
    header = ["seed", "rho", f"{group.percent} % interval", "first by InfoScore", "best by mIoU", "top-1 is best"]
    header += ["top-2 are best", "top-2 mIoU", "pairs above top-2"]
    lines = [
        Line(
            [
                str(one.seed),
                _rho(one.rho),
                DASH if one.interval is None else f"{one.interval[0]:.2f} to {one.interval[1]:.2f}",
                one.best_by_info,
                one.best_by_miou,
                _yes(one.top1_is_best),
                _yes(one.top2_are_best),
                stat_text(Stat(one.top2, None)),
                f"{one.pairs_above} of {one.pairs}",
            ],
            ours=True,
        )
        for one in group.seeds
    ]
    top2 = stat_text(next((one.miou for one in group.ensembles if one.name == "top-2"), Stat(None, None)))
    above = f"{sum(one.pairs_above for one in group.seeds)} of {sum(one.pairs for one in group.seeds)}"
    mean = DASH if group.rho.mean is None else _rho(group.rho.mean)
    mean += "" if group.rho.std is None else f"±{group.rho.std:.2f}"
    best = [_tally([getattr(one, name) for one in group.seeds]) for name in ("top1_is_best", "top2_are_best")]
    lines.append(Line(["all seeds", mean, DASH, DASH, DASH, *best, top2, above], True))
    drawn = "no bootstrap" if not group.resamples else f"bootstrap of {group.resamples} resamples over {group.over}"
    notes = [
        f"rho: Spearman's rank correlation of InfoScore and mIoU of the {len(group.layers)} single layers; {drawn}",
        "top-1 is, top-2 are best: no other layer has a higher mIoU alone than the first by InfoScore (than either of "
        "the first two)",
        "what the caption of the first table says holds here too",
    ]
    return Grid(f"{group.subject}: rank correlation ({place(group)})", header, lines, notes)


_ENSEMBLES = ["ensemble", "mIoU", "layers"]


def tally_of(values: Sequence[bool | None]) -> dict[str, int]:
    """In how many seeds it holds, of those in which it is defined."""
    defined = [value for value in values if value is not None]
    return {"yes": sum(defined), "of": len(defined)}


def _tally(values: Sequence[bool | None]) -> str:
    found = tally_of(values)
    return f"{found['yes']} of {found['of']}" if found["of"] else DASH


def _yes(value: bool | None) -> str:
    return DASH if value is None else "yes" if value else "no"


def _rho(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}"


def _score(value: Stat) -> str:
    if value.mean is None:
        return DASH
    return f"{value.mean:.4g}" + ("" if value.std is None else f"±{value.std:.2g}")


def _rank(value: float) -> str:
    return f"{value:g}"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"

"""Tables and files of the ranking experiment: console, Markdown, CSV, JSON and LaTeX, all with the same facts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slime_bench.report.collect import relative
from slime_bench.report.published import Stat
from slime_bench.report.ranking import REPORT, Group, RankingReport, SeedStudy
from slime_bench.report.rows import NOTHING
from slime_bench.report.table import (
    DASH,
    UNIT,
    Grid,
    Line,
    csv_of,
    json_of,
    latex,
    listed,
    markdown,
    metric_lines,
    numbers,
    prepared_lines,
    stat_text,
    write_files,
)
from slime_bench.report.uncertainty import claim_lines

_SEED_COLUMNS = (
    *("seed", "rho", "rho_std", "interval_low", "interval_high", "best_by_info", "best_by_miou", "top1_is_best"),
    *("top2_are_best", "top2", "pairs", "pairs_mean", "pairs_above", "rank_images", "test_images", "forwarded_images"),
)


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
        + f"{_ranked_on(group.rank_on, rank_images)}; tested on {_range([one.test_images for one in seeds])} images",
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


def _ranked_on(rank_on: str, number: str) -> str:
    """The images that layers were ranked on, in words."""
    return "TEST IMAGES (transductive)" if rank_on == "test" else f"{number} unlabelled images of the training side"


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
        )
        for layer in group.layers
    ]
    title = f"{group.subject}: InfoScore and mIoU in percent of every layer ({place(group)})"
    return Grid(title, header, lines, caption(report, group))


def _ensembles(group: Group) -> Grid:
    lines = [
        Line([one.name, stat_text(one.miou), listed(one.layers) if one.layers else "not the same for every seed"])
        for one in group.ensembles
    ]
    drawn = ""
    if group.pairs is not None:
        pairs = group.pairs
        about = f"{_range(list(pairs.numbers))} pairs a seed"
        for name, value in (("mean", pairs.mean), ("best", pairs.best), ("deviation", pairs.deviation)):
            lines.append(Line([f"random pairs, {name}", stat_text(value), about]))
        drawn = "; random pairs: other pairs than the two best; mean, best and sample standard deviation of each seed's"
    notes = [
        "top-k: the k best layers by InfoScore together; last, middle: one layer of the running order" + drawn,
        f"n = {len(group.seeds)}; what the caption of the first table says holds here too",
    ]
    return Grid(
        f"{group.subject}: mIoU in percent of ensembles ({place(group)})", ["ensemble", "mIoU", "layers"], lines, notes
    )


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
        )
        for one in group.seeds
    ]
    top2 = stat_text(next((one.miou for one in group.ensembles if one.name == "top-2"), NOTHING))
    above = f"{sum(one.pairs_above for one in group.seeds)} of {sum(one.pairs for one in group.seeds)}"
    mean = DASH if group.rho.mean is None else _rho(group.rho.mean)
    mean += "" if group.rho.std is None else f"±{group.rho.std:.2f}"
    best = [_tally([getattr(one, name) for one in group.seeds]) for name in ("top1_is_best", "top2_are_best")]
    lines.append(Line(["all seeds", mean, DASH, DASH, DASH, *best, top2, above]))
    drawn = "no bootstrap" if not group.resamples else f"bootstrap of {group.resamples} resamples over {group.over}"
    notes = [
        f"rho: Spearman's rank correlation of InfoScore and mIoU of the {len(group.layers)} single layers; {drawn}",
        "top-1 is, top-2 are best: no other layer has a higher mIoU alone than the first by InfoScore (than either of "
        "the first two)",
        "what the caption of the first table says holds here too",
    ]
    return Grid(f"{group.subject}: rank correlation ({place(group)})", header, lines, notes)


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


def report_lines(report: RankingReport, root: Path) -> list[str]:
    """What belongs to no group: settings without a study, and files that cannot be used; paths relative to `root`."""
    again = f"; to run it: {report.command}" if report.command else ""
    lines = [f"no finished trial: {label}{again}" for label in report.absent]
    return lines + [f"NOT USED: {relative(one.path, root)}: {one.reason}" for one in report.spoilt]


def stems(report: RankingReport) -> dict[str, str]:
    """Series -> beginning of the names of its figures."""
    names = {
        group.series: "-".join(
            re.sub(r"[^A-Za-z0-9_.+]", "_", group.facts[name]) for name in ("backbone", "preset", "protocol")
        )
        for group in report.groups
    }
    count = Counter(names.values())
    return {
        series: f"{report.data}-ranking-{name}{'-' + series[:8] if count[name] > 1 else ''}"
        for series, name in names.items()
    }


def write_ranking(report: RankingReport, folder: Path, root: Path, figures: Mapping[str, Sequence[str]]) -> list[Path]:
    """Writes `<data>-ranking.{md,csv,json,tex}` into `folder`; paths inside are relative to `root`.

    Args:
        figures: series -> names of files beside them.

    Raises:
        StorageError: a file cannot be written.
    """
    parts = [f"# {report.data}: InfoScore and the layers' mIoU"]
    for group in report.groups:
        parts += [block for grid in ranking_grids(report, group) for block in markdown(grid)]
        parts += [f"![{name}]({name})" for name in figures.get(group.series, [])]
    if rest := report_lines(report, root):
        parts += ["## What is not here", "\n".join(f"- {line}" for line in rest)]
    contents = {
        "md": "\n\n".join(parts) + "\n",
        "csv": _csv(report),
        "json": _json(report, root, figures),
        "tex": latex(grid for group in report.groups for grid in ranking_grids(report, group)),
    }
    return write_files({folder / f"{report.data}-ranking.{kind}": text for kind, text in contents.items()})


def _csv(report: RankingReport) -> str:
    """A line for each layer, ensemble and seed of each group, with full precision."""
    facts = ["data", "backbone", "preset", "protocol", "method", "variant", "series", "subject", "prepared"]
    facts += ["convention", "background_in_average", "crf", "prompts", "rank_on", "unit", "seeds", "missing_seeds"]
    columns = ["part", "name", "layers", "info_score_mean", "info_score_std", "info_rank", "miou_mean", "miou_std"]
    columns += ["miou_rank", "rank_difference", *_SEED_COLUMNS]
    lines = []
    for group in report.groups:
        entry = _entry(report, group)
        shared = {name: entry[name] for name in facts if name in entry}
        shared |= {
            "prepared": "; ".join(f"{name} {value}" for name, value in group.prepared.items()),
            "seeds": " ".join(str(one.seed) for one in group.seeds),
            "missing_seeds": " ".join(map(str, group.missing)),
        }
        lines += [shared | line for line in _lines(group)]
    return csv_of(lines, [*facts, *columns])


def _json(report: RankingReport, root: Path, figures: Mapping[str, Sequence[str]]) -> str:
    """The whole report as one JSON object; mIoU and its deviations in percent, InfoScore as it is."""
    not_used = [*report.spoilt, *(each for group in report.groups for each in group.spoilt)]
    return json_of(
        {
            "report": REPORT,
            "subject": report.subject,
            "data": report.data,
            "convention": report.convention,
            "unit": UNIT,
            "groups": [
                {**_entry(report, group), "figures": list(figures.get(group.series, []))} for group in report.groups
            ],
            "absent": report.absent,
            "not_used": [
                {"path": relative(one.path, root), "seed": one.seed, "reason": one.reason} for one in not_used
            ],
            "command": report.command,
        }
    )


def _lines(group: Group) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [
        {
            "part": "layer",
            "name": layer.name,
            "info_score_mean": layer.info_score.mean,
            "info_score_std": layer.info_score.std,
            "info_rank": layer.info_rank,
            "miou_mean": layer.miou.mean,
            "miou_std": layer.miou.std,
            "miou_rank": layer.miou_rank,
            "rank_difference": layer.rank_difference,
        }
        for layer in group.layers
    ]
    each = [(one.name, " ".join(one.layers or ()), one.miou) for one in group.ensembles]
    if group.pairs is not None:
        pairs = (("mean", group.pairs.mean), ("best", group.pairs.best), ("deviation", group.pairs.deviation))
        each += [(f"random pairs, {name}", "", value) for name, value in pairs]
    lines += [
        {"part": "ensemble", "name": name, "layers": layers, "miou_mean": value.mean, "miou_std": value.std}
        for name, layers, value in each
    ]
    for one in group.seeds:
        low, high = one.interval or (None, None)
        own = {name: getattr(one, name) for name in _SEED_COLUMNS if hasattr(one, name)}
        lines.append({"part": "seed", "name": f"seed {one.seed}", **own, "interval_low": low, "interval_high": high})
    whole = [sum(getattr(one, name) for one in group.seeds) for name in ("pairs", "pairs_above")]
    about = {"rho": group.rho.mean, "rho_std": group.rho.std, "pairs": whole[0], "pairs_above": whole[1]}
    return [*lines, {"part": "all seeds", "name": "all seeds", **about}]


def _entry(report: RankingReport, group: Group) -> dict[str, Any]:
    return {
        **group.facts,
        "variant": group.variant,
        "series": group.series,
        "subject": group.subject,
        "prepared": group.prepared,
        "convention": report.convention,
        "background_in_average": True,
        "crf": "off",
        "prompts": group.stated.get("prompts", ""),
        "rank_on": group.rank_on,
        "unit": UNIT,
        "seeds": [asdict(one) for one in group.seeds],
        "missing_seeds": group.missing,
        "bootstrap": {"resamples": group.resamples, "percent": group.percent, "over": group.over},
        "layers": [asdict(layer) | {"rank_difference": layer.rank_difference} for layer in group.layers],
        "ensembles": [asdict(one) for one in group.ensembles],
        "pairs": None if group.pairs is None else asdict(group.pairs),
        "rho": asdict(group.rho),
        "top1_is_best": tally_of([one.top1_is_best for one in group.seeds]),
        "top2_are_best": tally_of([one.top2_are_best for one in group.seeds]),
        "failed": [{"seed": one.seed, "summary": one.summary} for one in group.failed],
        "left_out": group.left_out,
        "provenance": asdict(group.provenance),
        "caption": caption(report, group),
    }

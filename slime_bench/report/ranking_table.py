"""Tables and files of the ranking experiment: console, Markdown, CSV, JSON and LaTeX, all with the same facts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from slime_bench.report import table
from slime_bench.report.collect import relative
from slime_bench.report.published import Stat, load_layers
from slime_bench.report.ranking import REPORT, Ensemble, Group, Layer, RankingReport, SeedStudy
from slime_bench.report.rows import NOTHING, stat
from slime_bench.report.statistics import claim_lines
from slime_bench.report.table import DASH, UNIT, Grid, Line, listed, stat_text


def ranking_grids(report: RankingReport, group: Group) -> list[Grid]:
    """The layers with the caption of the whole, the ensembles, and the seeds."""
    return [_layers(report, group), _ensembles(group), _seeds(group)]


def place(group: Group) -> str:
    """Preset, data, backbone, protocol and settings of a group, for titles."""
    names = ", ".join(f"{name} {group.facts[name]}" for name in ("preset", "data", "backbone", "protocol"))
    return f"{names}{', ' + group.variant if group.variant else ''}"


def _caption(report: RankingReport, group: Group) -> list[str]:
    """What has to be known of a group's numbers."""
    facts, seeds = group.facts, group.seeds
    rank_images = _range([one.rank_images for one in seeds])
    ranked = f"{rank_images} unlabelled images of the training side"
    ratios = sorted({f"{one.forwarded_images / one.test_images:.2f}" for one in seeds})
    lines = [
        f"preset {facts['preset']}; data {facts['data']}; backbone {facts['backbone']}; protocol {facts['protocol']}; "
        f"{facts['method']}, 0-shot{'; ' + group.variant if group.variant else ''}",
        *table.prepared_lines([group.prepared]),
        *table.metric_lines(report.convention, True, [len(seeds)]),
        *claim_lines([("", len(seeds), min(one.test_images for one in seeds))]),
        f"seeds {listed([one.seed for one in seeds])}; layers ranked with single prompts on "
        f"{f'the {rank_images} TEST IMAGES (transductive)' if group.rank_on == 'test' else ranked}; "
        f"tested on {_range([one.test_images for one in seeds])} images",
        f"study without CRF; prompts: {group.prompts or 'not recorded'}",
        f"images forwarded through the model: {_range([one.forwarded_images for one in seeds])}, "
        f"{' to '.join(dict.fromkeys((ratios[0], ratios[-1])))} for each test image, ranking included",
        "rank 1 = best; Δ rank: rank by InfoScore minus rank by mIoU, both of the means over seeds",
    ]
    if len(seeds) > 1 and all(layer.miou.std == 0 for layer in group.layers):
        lines.append(
            "nothing is learned: mIoU of a layer is the same for every seed; what seeds draw is the random pairs, the "
            "bootstrap" + ("" if group.rank_on == "test" else " and the images ranked on")
        )
    again = f"; to run them: {report.command}" if report.command else ""
    expected = listed(sorted({*group.missing, *(one.seed for one in seeds)}))
    lines.append(f"missing trials: none (of seeds {expected})")
    if group.missing:
        lines[-1] = f"MISSING TRIALS (of seeds {expected}): seed {listed(group.missing)}{again}"
    lines += [f"NOT USED: seed {one.seed}: {one.reason}" for one in group.spoilt]
    lines += [f"failed: seed {one.seed} ({one.summary})" for one in group.failed]
    if group.left_out:
        lines.append(
            f"{group.left_out} result(s) of these trials on another device, with other weights, data or prompts, are "
            "left out"
        )
    return [*lines, group.provenance.line()]


def _layers(report: RankingReport, group: Group) -> Grid:
    header = ["layer", "InfoScore", "rank", "mIoU alone", "rank by mIoU", "Δ rank"]
    lines = []
    for layer in group.layers:
        ranks = [f"{layer.info_rank:g}", f"{layer.miou_rank:g}"]
        gap = f"{layer.rank_difference:+g}" if layer.rank_difference else "0"
        lines.append(
            Line(
                [layer.name, stat_text(layer.info_score, ".4g", ".2g"), ranks[0], stat_text(layer.miou), ranks[1], gap]
            )
        )
    title = f"{group.subject}: InfoScore and mIoU in percent of every layer ({place(group)})"
    return Grid(title, header, lines, _caption(report, group))


def _ensembles(group: Group) -> Grid:
    lines = [
        Line([one.name, stat_text(one.miou), listed(one.layers) if one.layers else "not the same for every seed"])
        for one in group.ensembles
    ]
    about = f"{_range([one.pairs for one in group.seeds])} pairs a seed"
    lines += [Line([f"random pairs, {name}", stat_text(value), about]) for name, value in group.pairs.items()]
    note = "top-k: the k best layers by InfoScore together; last, middle: one layer of the running order"
    if group.pairs:
        note += "; random pairs: other pairs than the two best; mean, best and sample standard deviation of each seed's"
    notes = [note, f"n = {len(group.seeds)}; what the caption of the first table says holds here too"]
    title = f"{group.subject}: mIoU in percent of ensembles ({place(group)})"
    return Grid(title, ["ensemble", "mIoU", "layers"], lines, notes)


def _seeds(group: Group) -> Grid:
    header = ["seed", "rho", f"{group.bootstrap['percent']} % interval", "first by InfoScore", "best by mIoU"]
    header += ["top-1 is best", "top-2 are best", "top-2 mIoU", "pairs above top-2", "top-2 less the pairs' mean"]
    header += ["rho, entropy ratio", "rho, variation"]
    words = {None: DASH, True: "yes", False: "no"}
    lines = []
    for one in group.seeds:
        interval = DASH if one.interval is None else f"{one.interval[0]:.2f} to {one.interval[1]:.2f}"
        cells = [str(one.seed), _rho(one.rho), interval, one.best_by_info, one.best_by_miou, words[one.top1_is_best]]
        cells += [words[one.top2_are_best], stat_text(Stat(one.top2, None)), f"{one.pairs_above} of {one.pairs}"]
        lines.append(Line([*cells, _above(one), _rho(one.entropy_ratio_rho), _rho(one.cov_rho)]))
    top2 = stat_text(next((one.miou for one in group.ensembles if one.name == "top-2"), NOTHING))
    above = f"{sum(one.pairs_above for one in group.seeds)} of {sum(one.pairs for one in group.seeds)}"
    seeds = group.seeds
    above_pairs = stat([one.above_pairs for one in seeds if one.above_pairs is not None])
    tallies = [_tally(group, name) for name in ("top1_is_best", "top2_are_best")]
    best = [f"{found['yes']} of {found['of']}" if found["of"] else DASH for found in tallies]
    rho, *factors = (_rho(*(getattr(one, name) for one in seeds)) for name in ("rho", "entropy_ratio_rho", "cov_rho"))
    lines.append(Line(["all seeds", rho, DASH, DASH, DASH, *best, top2, above, stat_text(above_pairs), *factors]))
    resamples = group.bootstrap["resamples"]
    drawn = f"bootstrap of {resamples} resamples over {group.bootstrap['over']}" if resamples else "no bootstrap"
    notes = [
        f"rho: Spearman's rank correlation of InfoScore and mIoU of the {len(group.layers)} single layers; {drawn}",
        "top-1 is, top-2 are best: no other layer has a higher mIoU alone than the first by InfoScore (than either of "
        "the first two)",
        "top-2 less the pairs' mean: with the interval over resampled test images; rho of the entropy ratio and of the "
        "coefficient of variation: the two factors of InfoScore, each by itself",
        *_published(group),
        "what the caption of the first table says holds here too",
    ]
    return Grid(f"{group.subject}: rank correlation ({place(group)})", header, lines, notes)


def _published(group: Group) -> list[str]:
    """Whether the first two layers are those that are published for this backbone and data, if any are."""
    known = load_layers(group.facts["backbone"], group.facts["data"])
    if known is None:
        return []
    same = [one.seed for one in group.seeds if set(one.first_two) == set(known["layers"])]
    others = [f"{' and '.join(one.first_two)} in seed {one.seed}" for one in group.seeds if one.seed not in same]
    ours = [f"the same here in seed {listed(same)}"] if same else []
    return [f"published: {' and '.join(known['layers'])} first ({known['source']}); {'; '.join(ours + others)}"]


def _above(one: SeedStudy) -> str:
    if one.above_pairs is None:
        return DASH
    return f"{one.above_pairs:+.1f}" + (
        "" if one.above_interval is None else " [{:+.1f}, {:+.1f}]".format(*one.above_interval)
    )


def _rho(*values: float | None) -> str:
    """Mean and sample deviation of those that are defined."""
    return stat_text(stat([value for value in values if value is not None]), ".2f")


def _tally(group: Group, name: str) -> dict[str, int]:
    """In how many seeds it holds, of those in which it is defined."""
    defined = [value for one in group.seeds if (value := getattr(one, name)) is not None]
    return {"yes": sum(defined), "of": len(defined)}


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


# --------------------------------------------------------------------------------------------------------------- files


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
    twice = {name for name, count in Counter(names.values()).items() if count > 1}
    return {key: f"{report.data}-ranking-{name}{f'-{key[:8]}' if name in twice else ''}" for key, name in names.items()}


def write_ranking(report: RankingReport, folder: Path, root: Path, figures: Mapping[str, Sequence[str]]) -> list[Path]:
    """Writes `<data>-ranking.{md,csv,json,tex}` into `folder`; paths inside are relative to `root`.

    Args:
        figures: series -> names of files beside them.
    """
    blocks: list[str | Grid] = [f"# {report.data}: InfoScore and the layers' mIoU"]
    for group in report.groups:
        blocks += ranking_grids(report, group)
        blocks += [f"![{name}]({name})" for name in figures.get(group.series, [])]
    if rest := report_lines(report, root):
        blocks += ["## What is not here", "\n".join(f"- {line}" for line in rest)]
    not_used = [*report.spoilt, *(each for group in report.groups for each in group.spoilt)]
    content = {
        "report": REPORT, "subject": report.subject, "data": report.data, "convention": report.convention, "unit": UNIT,
        "groups": [{**_entry(report, each), "figures": list(figures.get(each.series, []))} for each in report.groups],
        "absent": report.absent,
        "not_used": [{"path": relative(one.path, root), "seed": one.seed, "reason": one.reason} for one in not_used],
        "command": report.command,
    }  # fmt: skip
    return table.write_report(folder / f"{report.data}-ranking", blocks, _csv(report), content)


def _entry(report: RankingReport, group: Group) -> dict[str, Any]:
    """A group in the JSON file; mIoU and its deviations in percent, InfoScore as it is."""

    def own(*names: str) -> dict[str, Any]:
        return {name: getattr(group, name) for name in names}

    return {
        **group.facts, **own("variant", "series", "subject", "prepared"), "convention": report.convention,
        "background_in_average": True, "crf": "off", **own("prompts", "rank_on"), "unit": UNIT,
        "seeds": group.seeds, "missing_seeds": group.missing, **own("bootstrap", "layers", "ensembles"),
        "pairs": {"numbers": [one.pairs for one in group.seeds], **group.pairs} if group.pairs else None,
        "rho": group.rho, **{name: _tally(group, name) for name in ("top1_is_best", "top2_are_best")},
        "failed": [{"seed": one.seed, "summary": one.summary} for one in group.failed],
        **own("left_out", "provenance"), "caption": _caption(report, group),
    }  # fmt: skip


def _csv(report: RankingReport) -> list[dict[str, Any]]:
    """A line for each layer, ensemble and seed of each group, in full precision."""
    facts = ["data", "backbone", "preset", "protocol", "method", "variant", "series", "subject", "prepared"]
    facts += ["convention", "background_in_average", "crf", "prompts", "rank_on", "unit", "seeds", "missing_seeds"]
    lines = []
    for group in report.groups:
        entry = _entry(report, group)
        shared = {name: entry[name] for name in facts}
        shared["prepared"] = "; ".join(f"{name} {value}" for name, value in group.prepared.items())
        shared |= {"seeds": table.spaced(one.seed for one in group.seeds), "missing_seeds": table.spaced(group.missing)}
        pairs = {name: sum(getattr(one, name) for one in group.seeds) for name in ("pairs", "pairs_above")}
        whole = {"part": "all seeds", "name": "all seeds", "rho": group.rho.mean, "rho_std": group.rho.std, **pairs}
        lines += [
            shared | {"part": "layer", "name": layer.name, "layers": None, **_flat(layer)} for layer in group.layers
        ]
        drawn = [Ensemble(f"random pairs, {name}", None, value) for name, value in group.pairs.items()]
        lines += [shared | {"part": "ensemble", **_flat(one)} for one in (*group.ensembles, *drawn)]
        lines += [shared | {"part": "seed", "name": f"seed {one.seed}", **_flat(one)} for one in group.seeds]
        lines.append(shared | whole)
    return lines


def _flat(record: Layer | Ensemble | SeedStudy) -> dict[str, Any]:
    """The fields as cells of a CSV line: `<name>_mean` and `<name>_std`, `<name>_low` and `<name>_high`."""
    cells: dict[str, Any] = {}
    for name in (each.name for each in fields(record) if each.name not in ("first_two", "seconds")):
        value = getattr(record, name)
        if isinstance(value, Stat):
            cells |= {f"{name}_mean": value.mean, f"{name}_std": value.std}
        elif name.endswith("interval"):
            stem, (low, high) = name.removesuffix("_interval"), value or (None, None)
            cells |= {f"{stem}_low": low, f"{stem}_high": high}
        else:
            cells[name] = " ".join(value) if isinstance(value, tuple) else value
        cells |= {"rho_std": None} if name == "rho" else {}
    return cells

"""Files of the ranking experiment: Markdown, CSV and JSON, all with the same facts as the printed tables."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slime_bench.report.grid import markdown as grid_markdown
from slime_bench.report.latex import latex
from slime_bench.report.ranking import Group
from slime_bench.report.ranking_table import RankingReport, caption, ranking_grids, tally_of
from slime_bench.report.tables import UNIT
from slime_bench.storage import write_atomic

_SEED_COLUMNS = [
    "seed",
    "rho",
    "rho_std",
    "interval_low",
    "interval_high",
    "best_by_info",
    "best_by_miou",
    "top1_is_best",
]
_SEED_COLUMNS += ["top2_are_best", "top2", "pairs", "pairs_mean", "pairs_above", "rank_images", "test_images"]
_SEED_COLUMNS += ["forwarded_images"]


def markdown(report: RankingReport, root: Path, figures: dict[str, list[str]]) -> str:
    """All groups as Markdown; `figures`: series -> names of files beside the Markdown file."""
    parts = [f"# {report.data}: InfoScore and the layers' mIoU"]
    for group in report.groups:
        for grid in ranking_grids(report, group):
            parts += grid_markdown(grid)
        parts += [f"![{name}]({name})" for name in figures.get(group.series, [])]
    rest = report_lines(report, root)
    if rest:
        parts += ["## What is not here", "\n".join(f"- {line}" for line in rest)]
    return "\n\n".join(parts) + "\n"


def report_lines(report: RankingReport, root: Path) -> list[str]:
    """What belongs to no group: settings without a study, and files that cannot be used; paths relative to `root`."""
    again = f"; to run it: {report.command}" if report.command else ""
    lines = [f"no finished trial: {label}{again}" for label in report.absent]
    return lines + [f"NOT USED: {_relative(one.path, root)}: {one.reason}" for one in report.spoilt]


def csv_text(report: RankingReport) -> str:
    """A line for each layer, ensemble and seed of each group, with full precision."""
    facts = ["data", "backbone", "preset", "protocol", "method", "variant", "series", "subject", "prepared"]
    facts += ["convention", "background_in_average", "crf", "prompts", "rank_on", "unit", "seeds", "missing_seeds"]
    columns = ["part", "name", "layers", "info_score_mean", "info_score_std", "info_rank", "miou_mean", "miou_std"]
    columns += ["miou_rank", "rank_difference", *_SEED_COLUMNS]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*facts, *columns], lineterminator="\n")
    writer.writeheader()
    for group in report.groups:
        entry = _entry(report, group)
        shared = {name: entry[name] for name in facts if name in entry}
        shared |= {
            "prepared": "; ".join(f"{name} {value}" for name, value in group.prepared.items()),
            "seeds": " ".join(str(one.seed) for one in group.seeds),
            "missing_seeds": " ".join(map(str, group.missing)),
        }
        for line in _lines(group):
            writer.writerow(shared | line)
    return buffer.getvalue()


def json_text(report: RankingReport, root: Path, figures: dict[str, list[str]]) -> str:
    """The whole report as one JSON object; mIoU and its deviations in percent, InfoScore as it is."""
    content = {
        "report": "ranking",
        "subject": report.subject,
        "data": report.data,
        "convention": report.convention,
        "unit": UNIT,
        "groups": [
            {**_entry(report, group), "figures": figures.get(group.series, [])} for group in report.groups
        ],
        "absent": report.absent,
        "not_used": [
            {"path": _relative(one.path, root), "seed": one.seed, "reason": one.reason}
            for one in [*report.spoilt, *(each for group in report.groups for each in group.spoilt)]
        ],
        "command": report.command,
    }  # fmt: skip
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_ranking(report: RankingReport, folder: Path, root: Path, figures: dict[str, list[str]]) -> list[Path]:
    """Writes `<data>-ranking.{md,csv,json,tex}` into `folder`; paths inside are relative to `root`.

    Raises:
        StorageError: a file cannot be written.
    """
    contents = {
        "md": markdown(report, root, figures),
        "csv": csv_text(report),
        "json": json_text(report, root, figures),
        "tex": latex(grid for group in report.groups for grid in ranking_grids(report, group)),
    }
    paths = {kind: folder / f"{report.data}-ranking.{kind}" for kind in contents}
    for kind, text in contents.items():
        write_atomic(paths[kind], text.encode())
    return list(paths.values())


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


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()

"""What a built data set holds, as tables for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.build_types import SPLITS, BuildReport
from slime_bench.data.class_table import class_table, stdout_console

_SHOWN = 20


def report_of(manifest: Mapping[str, Any], folder: Path, **run: Any) -> BuildReport:
    """The report of a data set from its manifest.

    Args:
        run: `made`, `resumed`, `seconds` and `note` of this run.
    """
    classes = tuple(manifest["classes"])
    kept = dict.fromkeys(SPLITS, 0)
    images = {split: [0] * len(classes) for split in SPLITS}
    pixels = {split: [0] * len(classes) for split in SPLITS}
    for name, facts in manifest["samples"].items():
        split = name.split("/", 1)[0]
        kept[split] += 1
        for index, count in enumerate(facts["pixels"]):
            images[split][index] += count > 0
            pixels[split][index] += count
    return BuildReport(
        name=manifest["name"],
        folder=str(folder),
        classes=classes,
        kept=kept,
        dropped=dict(Counter(manifest["dropped"]).most_common()),
        faulty=[f"{each['source']}: {each['what']}" for each in manifest.get("faulty", [])],
        images=images,
        pixels=pixels,
        **run,
    )


def print_report(report: BuildReport) -> None:
    """Print kept and dropped samples, images and pixels per class to stdout."""
    from rich.table import Table

    console = stdout_console()
    console.print(f"{report.name}  {report.folder}")
    splits = {name: (report.kept[name], report.images[name], report.pixels[name]) for name in SPLITS}
    console.print(class_table(report.classes, {name: each for name, each in splits.items() if each[0]}))
    if report.dropped:
        table = Table("left out because", title_justify="left")
        table.add_column("samples", justify="right")
        for reason, count in report.dropped.items():
            table.add_row(reason, f"{count:,}")
        console.print(table)
    if report.faulty:
        console.print(f"{len(report.faulty)} faulty source(s) left out:")
        for line in report.faulty[:_SHOWN]:
            console.print(f"  {line}")
        if len(report.faulty) > _SHOWN:
            console.print(f"  and {len(report.faulty) - _SHOWN} more, see `faulty` in the manifest")
    if report.note:
        console.print(report.note)
    if report.made:
        earlier = f", {report.resumed} were ready" if report.resumed else ""
        rate = f"{report.made} source pictures in {report.seconds:.1f} s, {report.images_per_second:.1f} per second"
        console.print(f"{rate}{earlier}")

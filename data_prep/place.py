"""The place of a data set: what may stand there, what may be replaced, and what the data set there holds."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from data_prep.processes import SHOWN
from slime_bench.data.class_table import class_table, stdout_console
from slime_bench.data.manifest import MANIFEST, read_manifest
from slime_bench.errors import DataError

SPLITS: Final = ("support", "val", "test")
KINDS: Final = ("images", "labels")
RECORDS: Final = ".records"
"""In the folder that is being built: the recipe, and a JSON file for each finished job."""

_OWN: Final = {*SPLITS, "splits", MANIFEST}


@dataclass(frozen=True)
class BuildReport:
    """A built data set.

    Attributes:
        made: source pictures that this run went through; 0 when the data set was there already.
        resumed: source pictures that an earlier run had finished.
    """

    folder: Path
    manifest: dict[str, Any]
    made: int = 0
    resumed: int = 0
    seconds: float = 0.0

    @property
    def kept(self) -> dict[str, int]:
        """Samples per split."""
        counts = Counter(name.split("/", 1)[0] for name in self.manifest["samples"])
        return {split: counts[split] for split in SPLITS}


def print_report(report: BuildReport) -> None:
    """Print kept and dropped samples, images and pixels per class to stdout."""
    from rich.table import Table

    console, manifest = stdout_console(), report.manifest
    console.print(f"{manifest['name']}  {report.folder}")
    counts = {
        split: np.array([each["pixels"] for name, each in manifest["samples"].items() if name.startswith(f"{split}/")])
        for split in SPLITS
    }
    shown = {split: (len(n), (n > 0).sum(0).tolist(), n.sum(0).tolist()) for split, n in counts.items() if len(n)}
    console.print(class_table(manifest["classes"], shown))
    if manifest["dropped"]:
        table = Table("left out because", title_justify="left")
        table.add_column("samples", justify="right")
        for reason, count in Counter(manifest["dropped"]).most_common():
            table.add_row(reason, f"{count:,}")
        console.print(table)
    if manifest["faulty"]:
        console.print(f"{len(manifest['faulty'])} faulty source(s) left out (`faulty` in the manifest):")
        for each in manifest["faulty"][:SHOWN]:
            console.print(f"  {each['source']}: {each['what']}")
    if report.made:
        rate = f"{report.made} source pictures in {report.seconds:.1f} s, {report.made / report.seconds:.1f} per second"
        console.print(f"{rate}, {report.resumed} were ready")
    else:
        console.print("The data set is there already; nothing was done. --force makes it again.")


def finished(out: Path, head: Mapping[str, Any], force: bool) -> BuildReport | None:
    """The report of the data set at `out` when it is this very one; None when it is to be built.

    Raises:
        DataError: something else is there: another data set (unless `force`), or what no manifest vouches for.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    names = {each.name for each in out.iterdir() if not each.name.startswith(".")} if out.is_dir() else set()
    if MANIFEST not in names or names - _OWN:
        raise DataError(
            "this is no data set that was prepared here, or more than that, and is not touched", path=out,
            found=", ".join(sorted(names - _OWN)[:5]) or f"no {MANIFEST}", expected=", ".join(sorted(_OWN)),
            remedy="choose another --out, or move this away",
        )  # fmt: skip
    manifest = read_manifest(out)
    tidy(out)
    if force:
        return None
    there, wanted = _identity(manifest), _identity(head)
    differing = [key for key in there | wanted if there.get(key) != wanted.get(key)]
    if differing:
        raise DataError(
            "another data set is there already", path=out,
            found=", ".join(f"{key} {there.get(key)}" for key in differing),
            expected=", ".join(f"{key} {wanted.get(key)}" for key in differing),
            remedy="choose another --out, or replace this data set with --force",
        )  # fmt: skip
    return BuildReport(out, manifest)


def _identity(head: Mapping[str, Any]) -> dict[str, Any]:
    """What tells one data set from another: everything but the names of the sources."""
    facts = {key: head.get(key) for key in ("version", "name", "subject", "classes")}
    return {**facts, **head.get("settings", {}), "source pictures": head.get("inputs")}


def replaced(out: Path) -> Path:
    return out.with_name(f".{out.name}.replaced")


def tidy(out: Path) -> None:
    """Remove what is of no use once the data set has its place; also what an interruption in this moment has left."""
    shutil.rmtree(replaced(out), ignore_errors=True)
    shutil.rmtree(out / RECORDS, ignore_errors=True)

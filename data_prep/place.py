"""The place of a data set: what may stand there, what may be replaced, and what the data set there holds."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from slime_bench.data.class_table import class_table, stdout_console
from slime_bench.data.manifest import MANIFEST, read_manifest
from slime_bench.errors import DataError

SPLITS: Final = ("support", "val", "test")
KINDS: Final = ("images", "labels")
RECORDS: Final = ".records"
"""In the folder that is being built: the recipe, and a JSON file for each finished job."""

_OWN: Final = {*SPLITS, "splits", MANIFEST}
_SHOWN: Final = 20


@dataclass(frozen=True)
class BuildReport:
    """A built data set: its folder and manifest.

    Attributes:
        made: source pictures that this run went through; 0 when the data set was there already.
        resumed: source pictures that an earlier run had finished.
        seconds: what this run took.
        note: what else the user should know, or empty.
    """

    folder: Path
    manifest: dict[str, Any]
    made: int = 0
    resumed: int = 0
    seconds: float = 0.0
    note: str = ""

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
        console.print(f"{len(manifest['faulty'])} faulty source(s) left out:")
        for each in manifest["faulty"][:_SHOWN]:
            console.print(f"  {each['source']}: {each['what']}")
        if len(manifest["faulty"]) > _SHOWN:
            console.print(f"  and {len(manifest['faulty']) - _SHOWN} more, see `faulty` in the manifest")
    if report.note:
        console.print(report.note)
    if report.made:
        earlier = f", {report.resumed} were ready" if report.resumed else ""
        rate = f"{report.made} source pictures in {report.seconds:.1f} s, {report.made / report.seconds:.1f} per second"
        console.print(f"{rate}{earlier}")


def finished(out: Path, head: Mapping[str, Any], force: bool) -> BuildReport | None:
    """The report of the data set at `out` when it is this very one; None when it is to be built.

    Raises:
        DataError: something else is there: another data set (unless `force`), or what no manifest vouches for.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    manifest = _vouched(out)
    tidy(out)
    if force:
        return None
    differing = [key for key in head if key != "sources" and manifest.get(key) != head[key]]
    if differing:
        raise DataError(
            "another data set is there already",
            path=out,
            found=_described(manifest, head, differing),
            expected=_described(head, manifest, differing),
            remedy="choose another --out, or replace this data set with --force",
        )
    missing = sorted(manifest["files"].keys() - sizes(out).keys())
    if missing:
        raise DataError(
            "files of the data set are missing",
            path=out,
            found=f"{len(missing)} of {len(manifest['files'])} are not there, the first {missing[0]}",
            expected=f"the files of {MANIFEST}",
            remedy="make it again with --force",
        )
    notes = ["The data set is there already; nothing was done."]
    if manifest["faulty"]:
        notes.append("Once the faulty sources are restored, --force makes it again with them.")
    if out.with_name(f".{out.name}.building").exists():
        notes.append("An interrupted --force lies beside it: repeat it with --force, or remove the folder.")
    if manifest["sources"] != head["sources"]:
        notes.append(f"It was made from {_pairs(manifest['sources'])}; --force makes it again.")
    return BuildReport(out, manifest, note=" ".join(notes))


def _vouched(out: Path) -> dict[str, Any]:
    """The manifest of a folder that the builder made, and that holds nothing else."""
    if not (out / MANIFEST).is_file():
        raise DataError(
            "this is no data set that was prepared here, and is not touched",
            path=out,
            found=f"a folder without {MANIFEST}" if out.is_dir() else "a file",
            expected="nothing, or a data set that was prepared here",
            remedy="choose another --out, or move this away",
        )
    manifest = read_manifest(out)
    foreign = sorted(each.name for each in out.iterdir() if each.name not in _OWN and not each.name.startswith("."))
    if "samples" not in manifest or foreign:
        raise DataError(
            "this folder holds more than a data set that was prepared here, and is not touched",
            path=out,
            found=", ".join(foreign[:5]) or f"a {MANIFEST} of another kind",
            expected=", ".join(sorted(_OWN)),
            remedy="choose another --out, or move this away",
        )
    return manifest


def _described(values: Mapping[str, Any], other: Mapping[str, Any], keys: list[str]) -> str:
    """`values` in words; of settings only those that `other` has not, too."""
    parts = []
    for key in keys:
        if key == "settings":
            parts.append(_pairs({k: each for k, each in values[key].items() if other[key].get(k) != each}))
        else:
            parts.append(f"{values[key]['count']} source pictures" if key == "inputs" else f"{key} {values.get(key)}")
    return "; ".join(parts)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def replaced(out: Path) -> Path:
    return out.with_name(f".{out.name}.replaced")


def tidy(out: Path) -> None:
    """Remove what is of no use once the data set has its place; also what an interruption in this moment has left."""
    remove(replaced(out))
    remove(out / RECORDS)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; nothing when it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sizes(root: Path) -> dict[str, int]:
    """Every file of the splits below `root`, as "support/images/<id>.png" -> bytes; hidden files too."""
    found: dict[str, int] = {}
    for split in SPLITS:
        for kind in KINDS:
            with suppress(FileNotFoundError), os.scandir(root / split / kind) as entries:
                found |= {f"{split}/{kind}/{each.name}": each.stat(follow_symlinks=False).st_size for each in entries}
    return found

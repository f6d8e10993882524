"""The place of a data set: what may stand there, what may be replaced, and how a finished one gets there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from data_prep.build_files import JOURNAL, remove, sizes, writing
from data_prep.build_types import SPLITS
from slime_bench.data.manifest import MANIFEST, read_manifest
from slime_bench.errors import DataError

_OWN: Final = {*SPLITS, "splits", MANIFEST}
_SHOWN = 5


def finished(
    out: Path, identity: Mapping[str, Any], inputs: Mapping[str, Any], *, force: bool
) -> tuple[dict[str, Any] | None, str]:
    """The manifest of the data set at `out` when it is this very one, and a note; None when it is to be built.

    Raises:
        DataError: something else is there: another data set (unless `force`), or what no manifest vouches for.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None, ""
    manifest = _vouched(out)
    with writing(out):
        remove(_replaced(out))  # left over where a replacement was interrupted after its last step
    if force:
        return None, ""
    wanted = {**identity, "inputs": dict(inputs)}
    differing = [key for key in wanted if key != "sources" and manifest.get(key) != wanted[key]]
    if differing:
        raise DataError(
            "another data set is there already",
            path=out,
            found=_described(manifest, wanted, differing),
            expected=_described(wanted, manifest, differing),
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
    same = manifest.get("sources") == identity["sources"]
    notes = ["The data set is there already; nothing was done."]
    if manifest.get("faulty"):
        notes.append("Once the faulty sources are restored, --force makes it again with them.")
    if out.with_name(f".{out.name}.building").exists():
        notes.append("An interrupted --force lies beside it: repeat it with --force, or remove the folder.")
    if not same:
        notes.append(f"It was made from {_pairs(manifest.get('sources'))}; --force makes it again.")
    return manifest, " ".join(notes)


def place(building: Path, out: Path, *, force: bool) -> None:
    """Rename a finished building folder to `out`, in the stead of what may be replaced.

    Raises:
        DataError: something that may not be replaced has come to stand there. StorageError: it cannot be renamed.
    """
    old = _replaced(out)
    with writing(out):
        (building / JOURNAL).unlink(missing_ok=True)
        if out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        if out.exists():
            _vouched(out)
            if not force:
                raise DataError(
                    "another data set is there already",
                    path=out,
                    remedy="choose another --out, or replace this data set with --force",
                )
            remove(old)
            out.rename(old)
        building.rename(out)
        remove(old)


def _replaced(out: Path) -> Path:
    return out.with_name(f".{out.name}.replaced")


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
    if "name" not in manifest or "samples" not in manifest or foreign:
        raise DataError(
            "this folder holds more than a data set that was prepared here, and is not touched",
            path=out,
            found=", ".join(foreign[:_SHOWN]) or f"a {MANIFEST} of another kind",
            expected=", ".join(sorted(_OWN)),
            remedy="choose another --out, or move this away",
        )
    return manifest


def _described(values: Mapping[str, Any], other: Mapping[str, Any], keys: list[str]) -> str:
    """`values` in words; of settings only those that `other` has not, too."""
    parts = []
    for key in keys:
        value, beside = values.get(key), other.get(key)
        if key == "settings" and isinstance(value, dict) and isinstance(beside, dict):
            parts.append(_pairs({name: each for name, each in value.items() if beside.get(name) != each}))
        elif key == "inputs" and isinstance(value, dict):
            parts.append(f"{value.get('count')} source pictures")
        else:
            parts.append(f"{key} {value}")
    return "; ".join(parts)


def _pairs(values: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items()) if isinstance(values, dict) else str(values)

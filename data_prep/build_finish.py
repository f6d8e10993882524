"""The last steps of a build: samples take their final splits, lists and manifest are written."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.build_files import KINDS, manifest_text, remove, sizes, sweep, writing
from data_prep.build_types import SPLITS, Assign, Recipe, Sample
from data_prep.build_worker import is_file_stem
from slime_bench.data.manifest import MANIFEST, read_manifest
from slime_bench.errors import DataError
from slime_bench.storage import write_atomic

_SHOWN = 5


def complete(
    building: Path,
    recipe: Recipe,
    head: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    assign: Assign | None,
) -> dict[str, Any]:
    """Move samples between splits, write the split lists, check that every file is there, write the manifest.

    Args:
        head: what the manifest begins with. records: those of all jobs, in their order.

    Returns:
        the manifest.

    Raises:
        DataError: nothing was kept, or files are gone. ValueError: `assign` or the lists name what is not there.
        StorageError: a file cannot be written.
    """
    samples = [Sample(each["split"], each["id"], each["facts"]) for record in records for each in record["samples"]]
    dropped = [each for record in records for each in record["dropped"]]
    faulty = [{"source": each["key"], "what": "".join(each["faulty"])} for each in records if "faulty" in each]
    reasons = Counter(reason for _, _, reason in dropped)
    reasons.update(f"unreadable: {each['faulty'][0]}" for each in records if "faulty" in each)
    if not samples:
        raise DataError(
            f"no sample of {recipe.name} was kept",
            found=", ".join(f"{reason}: {count}" for reason, count in reasons.most_common()) or "no object",
            expected="at least one",
            remedy="check that the sources are those of this data set, and the rules that drop samples",
        )
    files = {name: tuple(each) for record in records for name, each in record["files"].items()}
    samples = _move(building, samples, assign(samples) if assign else {}, files)
    sweep(building, files)
    if {name: size for name, (_, size) in files.items()} != sizes(building):
        raise DataError(
            "the files changed while the data set was built",
            path=building,
            expected="no other process in this folder",
            remedy="repeat the command, which makes the missing ones again",
        )
    _write_lists(building, recipe, samples)
    listed: dict[str, list[str]] = {}
    for split, what, reason in dropped:
        listed.setdefault(reason, []).append(f"{split}/{what}")
    manifest = {
        **head,
        "dropped": dict(sorted(reasons.items())),
        "dropped_samples": dict(sorted(listed.items())),
        "faulty": faulty,
        "files": {name: sha256 for name, (sha256, _) in sorted(files.items())},
        "samples": {f"{each.split}/{each.id}": each.facts for each in samples},
    }
    if hasattr(os, "sync"):
        os.sync()  # the manifest must not outlive a power cut that its files do not
    write_atomic(building / MANIFEST, manifest_text(manifest).encode())
    return manifest


def _move(
    building: Path, samples: list[Sample], wanted: Mapping[str, str], files: dict[str, tuple[str, int]]
) -> list[Sample]:
    """Bring samples to the splits that are `wanted` of them; `files` is changed in place."""
    unknown = set(wanted) - {each.id for each in samples} or set(wanted.values()) - set(SPLITS)
    if unknown:
        raise ValueError(f"assign names what is not there: {', '.join(sorted(unknown)[:_SHOWN])}")
    moved = []
    for sample in samples:
        split = wanted.get(sample.id, sample.split)
        if split != sample.split:
            for kind in KINDS:
                old, new = (f"{each}/{kind}/{sample.id}.png" for each in (sample.split, split))
                with writing(building / new):
                    (building / new).parent.mkdir(parents=True, exist_ok=True)
                    (building / old).replace(building / new)
                files[new] = files.pop(old)
        moved.append(Sample(split, sample.id, sample.facts))
    return moved


def _write_lists(building: Path, recipe: Recipe, samples: list[Sample]) -> None:
    folder = building / "splits"
    with writing(folder):
        remove(folder)
    known = {each.id for each in samples}
    for name, ids in recipe.splits(samples).items():
        unknown = [each for each in ids if each not in known]
        if unknown or not is_file_stem(name):
            raise ValueError(f"the split list {name!r} names samples that are not there: {unknown[:_SHOWN]}")
        text = "\n".join([f"# {name}: {len(ids)} of the samples of {recipe.name}", *ids])
        write_atomic(folder / f"{name}.txt", f"{text}\n".encode())


def whole(building: Path, identity: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest of a building folder that only lacks its renaming; one of other contents is removed."""
    try:
        manifest = read_manifest(building)
    except DataError:
        manifest = {}
    expected = {**identity, "inputs": inputs}
    if {key: manifest.get(key) for key in expected} == expected and manifest["files"].keys() == sizes(building).keys():
        return manifest
    with writing(building):
        (building / MANIFEST).unlink()
    return None

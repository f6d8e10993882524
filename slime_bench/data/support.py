"""Which images a trial learns from and validates on: drawn with the seed, in order, or by a list of ids.

Lists lie in `splits/` of the data set's root, one id per line; what follows a `#` at the start of a line or after a
space is a comment.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from slime_bench.data.config import DRAWN, EACH, FIRST, IN_ORDER, DataConfig
from slime_bench.data.counts import class_pixels
from slime_bench.data.folder import FolderDataset
from slime_bench.data.labels import nearest
from slime_bench.data.layouts import listing
from slime_bench.errors import DataError
from slime_bench.seeding import generator

LISTS = "splits"
LISTED_BY = (EACH, 12)
"""`require_all_classes` and `min_pixels` that the builders draw the lists `drawn-...` by (data_prep.split_lists)."""

Shown = Callable[[int], int]
"""Index of a sample -> the number of its foreground classes."""


def permuted(count: int, seed: int, purpose: str = "support") -> list[int]:
    """A permutation of 0..count-1 by the generator (seed, purpose)."""
    return torch.randperm(count, generator=generator(seed, purpose)).tolist()


def draw(ids: Sequence[str], shown: Sequence[int], seed: int, purpose: str = "support") -> list[str]:
    """All `ids` in the order of the draw: those that show the most classes first, and within each number as permuted.

    The permutation is of the sorted ids, so that the order in which they come does not matter. The first k are the set
    of k shots: sets are nested.

    Args:
        ids: the samples.
        shown: number of classes that each of them shows.
        seed: of the trial.
        purpose: of the generator.
    """
    by_id = dict(zip(ids, shown, strict=True))
    names = sorted(by_id)
    order = permuted(len(names), seed, purpose)
    return [names[index] for index in sorted(order, key=lambda index: -by_id[names[index]])]


def first_choices(order: Sequence[int], shots: int, rule: str, shown: Shown, complete: int) -> list[int]:
    """The first `shots` of a permuted pool, after the rule of `DataConfig.require_all_classes`; sets are nested.

    With `each` this is `draw`, but no more images are looked at than it takes to find `shots` complete ones.

    Args:
        order: permutation of the pool.
        shots: at most its length.
        rule: `each`, `first` or `none`.
        shown: foreground classes of a sample.
        complete: number of foreground classes there are.
    """
    if rule == EACH:
        counts: dict[int, int] = {}
        found = 0
        for index in order:
            counts[index] = shown(index)
            found += counts[index] == complete
            if found == shots:
                break
        return sorted(counts, key=lambda index: -counts[index])[:shots]
    if rule == FIRST:
        best, most = order[0], -1
        for index in order:
            count = shown(index)
            if count > most:
                best, most = index, count
            if most == complete:
                break
        order = [best, *(index for index in order if index != best)]
    return list(order[:shots])


def foreground_counter(pool: FolderDataset, min_pixels: int, known: dict[str, Sequence[int]]) -> Shown:
    """Counts the foreground classes of a sample with at least `min_pixels` pixels.

    Args:
        pool: the samples; a label map is decoded where `known` does not have it.
        known: id -> pixels per class, in label order, as a manifest has them.
    """
    ids, classes = pool.ids, len(pool.classes)

    def shown(index: int) -> int:
        pixels = known.get(ids[index])
        if pixels is None or len(pixels) != classes:
            pixels = class_pixels(pool.label(index), classes).tolist()
        return sum(count >= min_pixels for count in pixels[1:])

    return shown


def choose_support(
    pool: FolderDataset,
    shots: int,
    seed: int,
    config: DataConfig,
    *,
    listed: Path | None = None,
    known: dict[str, Sequence[int]] | None = None,
) -> list[str]:
    """The support ids of a trial.

    Args:
        pool: what may be chosen.
        shots, seed: of the trial.
        config: see `DataConfig.support`, `support_ids` and `require_all_classes`.
        listed: the list to follow, as `list_file` names it.
        known: see `foreground_counter`.

    Raises:
        DataError: `shots` is larger than the pool or than `support_ids`, a list of another length, or an unknown id.
    """
    ids = pool.ids
    if config.support_ids is not None:
        _check_known(
            config.support_ids, ids, pool.folder, "correct `data.support_ids`; an id is a file name without its suffix"
        )
    available = ids if config.support_ids is None else config.support_ids
    if shots > len(available):
        raise DataError(
            "more shots than support images",
            path=pool.folder if config.support_ids is None else "data.support_ids",
            found=f"shots={shots}",
            expected=f"at most {len(available)}",
            remedy="lower `shots`, or add images to the support pool",
        )
    if config.support_ids is not None:
        return list(config.support_ids[:shots])
    if listed is not None:
        names = read_list(listed, ids)
        if len(names) != shots:
            raise DataError(
                "a list of support images has another length than its name says",
                path=listed,
                found=f"{len(names)} ids",
                expected=f"{shots}, one for each shot",
                remedy="mend the list, or choose another `data.support`",
            )
        return names
    if config.support == IN_ORDER:
        return ids[:shots]
    shown = foreground_counter(pool, config.min_pixels, known or {})
    order = permuted(len(ids), seed)
    return [
        ids[index] for index in first_choices(order, shots, config.require_all_classes, shown, len(pool.classes) - 1)
    ]


def choose_val(ids: Sequence[str], size: int | None, seed: int, folder: Path) -> list[str]:
    """`size` of the validation `ids`, drawn by the generator (seed, "val"), in their own order; all of them for None.

    Raises:
        DataError: there are fewer, or none at all.
    """
    if len(ids) < (size or 1):
        raise DataError(
            "too few validation images",
            path=folder,
            found=f"{len(ids)} that are not support images",
            expected=f"at least {size or 1}",
            remedy="lower `data.val_size`, or choose data.validation=support",
        )
    chosen = set(permuted(len(ids), seed, "val")[: size or len(ids)])
    return [key for index, key in enumerate(ids) if index in chosen]


def list_file(root: Path, config: DataConfig, shots: int, seed: int) -> Path | None:
    """The file of support ids that a trial follows; None where they are fixed, taken in order or drawn afresh.

    Raises:
        DataError: the list that `config.support` names is not there.
    """
    if config.support_ids is not None or config.support == IN_ORDER:
        return None
    folder = root / LISTS
    if config.support == DRAWN:
        # The lists were drawn from the root's own pool by this rule; with another they do not hold.
        other = config.splits["support"] != "support" or (config.require_all_classes, config.min_pixels) != LISTED_BY
        path = folder / f"{DRAWN}-{shots}-seed{seed}.txt"
        return path if path.is_file() and not other else None
    path = folder / f"{config.support}-{shots}.txt"
    if not path.is_file():
        there = sorted(each.stem for each in folder.glob("*.txt") if not each.name.startswith((".", f"{DRAWN}-")))
        raise DataError(
            f"there is no list `{config.support}` of {shots} support image(s)",
            path=path,
            found=f"the lists {listing(there)}" if there else "no list with a name",
            expected=f"one id per line in {LISTS}/<name>-<shots>.txt",
            remedy=f"choose another `data.support` (data.support={DRAWN} draws with the seed) or other `shots`",
        )
    return path


def val_list_file(root: Path, config: DataConfig) -> Path | None:
    """The file of validation ids that belongs to the list `config.support` names, where there is one."""
    if config.support_ids is not None or config.support in (DRAWN, IN_ORDER):
        return None
    path = root / LISTS / f"{config.support}-val.txt"
    return path if path.is_file() else None


def list_files(root: Path, config: DataConfig) -> list[Path]:
    """The lists, of all shots and all seeds, that `config.support` chooses among, and its validation list."""
    if config.support_ids is not None or config.support == IN_ORDER:
        return []
    return sorted(path for path in (root / LISTS).glob(f"{config.support}-*.txt") if path.is_file())


def read_list(path: Path, known: Iterable[str]) -> list[str]:
    """The ids of a list, in its order.

    Args:
        path: the file.
        known: the ids there are.

    Raises:
        DataError: unreadable, empty, an id twice, or one that is not `known`.
    """
    remedy = "mend the list, or prepare the data again"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError("cannot read a list of ids", path=path, found=str(error), remedy=remedy) from error
    stripped = (f" {line}".split(" #", 1)[0].strip() for line in lines)
    names = [unicodedata.normalize("NFC", name) for name in stripped if name]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or not names:
        raise DataError(
            "a list of ids is empty or names an id twice",
            path=path,
            found=listing(repeated) or "no id",
            expected="one id per line, each of them once",
            remedy=remedy,
        )
    _check_known(names, list(known), path, remedy)
    return names


def _check_known(names: Sequence[str], ids: Sequence[str], path: Path, remedy: str) -> None:
    known = set(ids)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(
            "unknown support id",
            path=path,
            found=listing(unknown),
            expected=f"ids of the pool, the nearest being {listing(nearest(unknown[0], ids) or ids)}",
            remedy=remedy,
        )

"""Which images a trial learns from and validates on: drawn with the seed, in order, or by a list of ids.

Lists lie in `splits/` of the data set's root, one id per line; what follows a `#` at the start of a line or after a
space is a comment. For data sets of whole scenes one shot is one image of each class (VOC's one-shot support set has 20
images, COCO's 80), and k shots are k images of each class, whoever chooses them.
"""

from __future__ import annotations

import logging
import random
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slime_bench.config.read import nearest
from slime_bench.data.config import EACH, FIRST, IN_ORDER, DataConfig
from slime_bench.data.label_maps import class_pixels, listing
from slime_bench.data.reading import FolderDataset, Sample
from slime_bench.errors import DataError
from slime_bench.seeding import generator

AUTHORS_SEED = 1

Counts = NDArray[np.int64]
"""Pixels of each class, [K] or [N,K]."""

_log = logging.getLogger(__name__)


def permuted(count: int, seed: int, purpose: str = "support") -> list[int]:
    """A permutation of 0..count-1 by the generator (seed, purpose)."""
    import torch  # seconds to import, which a finished trial that is only looked at need not wait for

    return torch.randperm(count, generator=generator(seed, purpose)).tolist()


def first_choices(order: Sequence[int], shots: int, rule: str, shown: Callable[[int], int], complete: int) -> list[int]:
    """The first `shots` of a permuted pool, after the rule of `DataConfig.require_all_classes`; sets are nested.

    No more images are looked at than it takes to find complete ones. `shown`: sample -> its number of foreground
    classes, of which there are `complete`.
    """
    wanted = {EACH: shots, FIRST: 1}.get(rule, 0)
    counts: dict[int, int] = {}
    found = 0
    for index in order:
        if found == wanted:
            break
        counts[index] = shown(index)
        found += counts[index] == complete
    best = dict.fromkeys(sorted(counts, key=lambda index: -counts[index])[:wanted])
    return [*best, *(index for index in order if index not in best)][:shots]


def choose_support(
    pool: FolderDataset,
    shots: int,
    seed: int,
    config: DataConfig,
    *,
    listed: Path | None = None,
    counted: Mapping[str, Sequence[int]] | None = None,
) -> list[str]:
    """The support ids of a trial, by `DataConfig.support`, `support_ids` and `require_all_classes`.

    Args:
        pool: what may be chosen.
        listed: the list to follow.
        counted: id -> pixels per class, in label order, as a manifest has them; other label maps are decoded.

    Raises:
        DataError: `shots` is larger than the pool or than `support_ids`, a list of another length, or an unknown id.
    """
    ids, fixed, classes = pool.ids, config.support_ids, len(pool.classes)
    if fixed is not None:
        check_ids(fixed, ids, pool.folder, "correct `data.support_ids`; an id is a file name without its suffix")
    available = len(ids if fixed is None else fixed)
    if shots > available:
        raise DataError(
            "more shots than support images", path=pool.folder if fixed is None else "data.support_ids",
            found=f"shots={shots}", expected=f"at most {available}",
            remedy="lower `shots`, or add images to the support pool",
        )  # fmt: skip
    if fixed is not None:
        return list(fixed[:shots])
    if listed is not None:
        names = read_list(listed, ids)
        if len(names) != shots:
            raise DataError(
                "a list of support images has another length than its name says", path=listed,
                found=f"{len(names)} ids", expected=f"{shots}, one for each shot",
                remedy="mend the list, or choose another `data.support`",
            )  # fmt: skip
        return names
    if config.support == IN_ORDER:
        return ids[:shots]

    def shown(index: int) -> int:
        pixels = (counted or {}).get(ids[index])
        if pixels is None or len(pixels) != classes:
            pixels = class_pixels(pool.label(index), classes).tolist()
        return sum(count >= config.min_pixels for count in pixels[1:])

    order = permuted(len(ids), seed)
    return [ids[index] for index in first_choices(order, shots, config.require_all_classes, shown, classes - 1)]


def choose_val(ids: Sequence[str], size: int | None, seed: int, folder: Path) -> list[str]:
    """`size` of the validation `ids`, drawn by the generator (seed, "val"), in their own order; all of them for None.
    DataError where there are fewer, or none at all."""
    if len(ids) < (size or 1):
        raise DataError(
            "too few validation images", path=folder, found=f"{len(ids)} that are not support images",
            expected=f"at least {size or 1}", remedy="lower `data.val_size`, or choose data.validation=support",
        )  # fmt: skip
    chosen = set(permuted(len(ids), seed, "val")[: size or len(ids)])
    return [key for index, key in enumerate(ids) if index in chosen]


def check_support(samples: Sequence[Sample], classes: Sequence[str]) -> list[str]:
    """Refuse (DataError) a support set without a foreground pixel; the classes that it does not show, in label order,
    which a warning names."""
    total, names = np.zeros(len(classes), np.int64), list[str]()
    for sample in samples:
        total += class_pixels(sample.label, len(classes))
        names.append(sample.id)
    ids = listing(names) or "no image"
    if not total[1:].any():
        raise DataError(
            "the support set has no foreground", path="data.support_ids",
            found=f"only background or ignored pixels in {ids}",
            expected=f"pixels of at least one of {', '.join(classes[1:])}",
            remedy="choose other support images, another seed, or mend the label maps",
        )  # fmt: skip
    missing = [name for name, count in zip(classes, total, strict=True) if count == 0]
    if missing:
        _log.warning("the support set (%s) shows no %s: nothing can be learnt about it", ids, ", ".join(missing))
    return missing


# --- lists of ids


def read_list(
    path: Path, ids: Sequence[str] | None = None, remedy: str = "mend the list, or prepare the data again"
) -> list[str]:
    """The ids of a list, in its order and in Unicode's composed form.

    Raises:
        DataError: unreadable, empty, an id twice, or one that is none of `ids`, where these are given.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(
            "cannot read a list of ids", path=path, found=str(error), expected="one id per line", remedy=remedy
        ) from error
    stripped = [f" {line}".split(" #", 1)[0].strip() for line in lines]
    names = [unicodedata.normalize("NFC", name) for name in stripped if name]
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated or not names:
        raise DataError(
            "a list of ids is empty or names an id twice", path=path, found=listing(repeated) or "no id",
            expected="one id per line, each of them once", remedy=remedy,
        )  # fmt: skip
    if ids is not None:
        check_ids(names, ids, path, remedy)
    return names


def check_ids(names: Sequence[str], ids: Sequence[str], path: Path, remedy: str) -> None:
    """Refuse `names` that are none of the `ids`, with a DataError that names the nearest."""
    known = set(ids)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(
            "unknown support id", path=path, found=listing(unknown), remedy=remedy,
            expected=f"ids of the pool, the nearest being {listing(nearest(unknown[0], ids) or ids)}",
        )  # fmt: skip


# --- k images of each class


@dataclass(frozen=True)
class Example:
    """A support image: the index of its sample, and where one foreground class alone counts, the `only` one that is not
    background."""

    index: int
    only: int | None = None


def draw_per_class(
    candidates: Sequence[Sequence[int]],
    counts: Callable[[int], Counts],
    shots: int,
    min_pixels: int,
    order: Callable[[int], Sequence[int]],
) -> list[list[int]]:
    """`shots` samples of each class, class by class.

    Of each class's samples in their `order`, those come first that show at least `min_pixels` of it and no other
    foreground class, then those that show as much of it beside others, then all that show it. No more samples are
    looked at than it takes. The sets of fewer shots are the beginnings of those of more.

    Args:
        candidates: for each foreground class the samples that may show it; those that do not are passed over.
        counts: pixels per class of a sample, [K].
        order: count -> permutation of 0..count-1, for the samples of one class.

    Returns:
        for each foreground class its samples; fewer than `shots` where there are no more.
    """
    chosen = []
    for label, samples in enumerate(candidates, start=1):
        tiers: tuple[list[int], list[int], list[int]] = ([], [], [])
        for place in order(len(samples)):
            found = counts(samples[place])
            if found[label] == 0:
                continue
            alone = np.count_nonzero(found[1:]) == 1
            tiers[2 if found[label] < min_pixels else 0 if alone else 1].append(samples[place])
            if len(tiers[0]) == shots:
                break
        chosen.append([each for tier in tiers for each in tier][:shots])
    return chosen


def authors_support(
    counts: Counts, shots: int, run: int, min_pixels: int, classes: Sequence[str] = (), path: str = ""
) -> list[Example]:
    """The support set of run number `run` of the second paper's code, class by class; its runs are a sequence.

    Candidates of a class are the samples with at least `min_pixels` (16384 there) of it. Each run shuffles them, class
    after class, by one stream of python's `random`, seeded 1 before the first run, and takes the first `shots` that
    show no other foreground class. Where there are too few, candidates are taken at random, also twice, and their other
    classes become background; such an image stays among the queries, as in the code.

    Args:
        counts: pixels [N,K] of the samples, in the order of the list. run: from 0. classes, path: for the message.

    Raises:
        DataError: no sample has so many pixels of a class. (The code stops with an IndexError.)
    """
    alone = (counts[:, 1:] > 0).sum(1) == 1
    candidates = [np.flatnonzero(counts[:, label] >= min_pixels).tolist() for label in range(1, counts.shape[1])]
    stream = random.Random(AUTHORS_SEED)
    found: list[Example] = []
    for _ in range(run + 1):
        found = []
        for label, samples in enumerate(candidates, start=1):
            if not samples:
                raise DataError(
                    f"no image can be a support of the class `{classes[label] if classes else label}`", path=path,
                    found=f"none of {len(counts)} images has {min_pixels} pixels of it",
                    expected="an image for every class",
                    remedy="lower `data.min_pixels`, or choose data.support=drawn",
                )  # fmt: skip
            places = list(range(len(samples)))
            stream.shuffle(places)
            own = [Example(samples[place]) for place in places if alone[samples[place]]][:shots]
            own += [Example(samples[int(stream.random() * len(samples))], only=label) for _ in range(shots - len(own))]
            found += own
    return found

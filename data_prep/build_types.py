"""What a builder of a data set hands to `data_prep.build.build`, and what it gets back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

SUPPORT, VAL, TEST = "support", "val", "test"
SPLITS: Final = (SUPPORT, VAL, TEST)
IGNORE: Final = 255


@dataclass(frozen=True)
class Job:
    """One source picture.

    Attributes:
        key: unique among the jobs, the same in every run; it names the job in messages and in the record of finished
            jobs.
        payload: what the work needs to know; picklable. A finished job counts, when a build is resumed, only if its
            payload reads (`repr`) as it did then: put in a `stamp` of each source file.
    """

    key: str
    payload: Any = None


@dataclass(frozen=True)
class Made:
    """One sample of the data set.

    Attributes:
        split: `support`, `val` or `test`; `assign` may still change it.
        id: unique over all splits; the stem of its two files.
        image: uint8 [H,W,3] RGB.
        label: uint8 [H,W], class indices in label order, 255 = ignore.
        facts: what the manifest says about it: source, object, box, ... (JSON; NumPy numbers are taken too). `size`
            [H, W] and `pixels` per class are added.
    """

    split: str
    id: str
    image: np.ndarray
    label: np.ndarray
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Dropped:
    """What the rules of the data set leave out.

    Attributes:
        split: `support`, `val` or `test`.
        what: e.g. "2008_000008 object 1".
        reason: short, the same words for the same reason, e.g. "overlaps another box".
    """

    split: str
    what: str
    reason: str


@dataclass(frozen=True)
class Sample:
    """A sample that is written: `facts` as in `Made`, with `size` [H, W] and `pixels`, the count of each class."""

    split: str
    id: str
    facts: dict[str, Any]


Stamp = tuple[int, int] | None
"""Size and time of change (ns) of a source file; None where there is none."""


def stamp(path: Path) -> Stamp:
    """What tells whether a source file has come, gone or changed since; for the payload of a job."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


Work = Callable[[Job], "Sequence[Made | Dropped]"]
"""A function of a module, or `functools.partial` of one: it is pickled to worker processes. It reads files and raises a
`SlimeBenchError` where one is faulty; the arrays that it makes are written where they are made."""

Assign = Callable[[list[Sample]], Mapping[str, str]]
"""All samples in order of the jobs -> {id: split} of those that change their split."""


@dataclass(frozen=True)
class Recipe:
    """What decides the content of a data set, but for the source files themselves.

    Attributes:
        name: e.g. "pascal_part_car".
        subject: e.g. "car".
        classes: names in label order.
        settings: everything that decides the content (JSON), e.g. {"rule": "paper"}.
        sources: the inputs' names as they were given, for the manifest.
        splits: the lists under `splits/`: all samples, after `assign`, in order of the jobs -> {name of the list: ids}.
    """

    name: str
    subject: str
    classes: tuple[str, ...]
    settings: dict[str, Any]
    sources: dict[str, str]
    splits: Callable[[list[Sample]], Mapping[str, Sequence[str]]] = lambda samples: {}


@dataclass(frozen=True)
class BuildReport:
    """What a built data set holds.

    Attributes:
        name: of the data set. folder: where it lies. classes: in label order.
        kept: samples per split.
        dropped: samples per reason, the most frequent first.
        faulty: "key: what is wrong" of the source pictures that could not be used.
        images: split -> number of images that show each class, in label order.
        pixels: split -> pixels of each class.
        made: source pictures that this run went through; 0 when the data set was there already.
        resumed: source pictures that an earlier run had finished.
        seconds: what this run took.
        note: what else the user should know, or empty.
    """

    name: str
    folder: str
    classes: tuple[str, ...]
    kept: dict[str, int]
    dropped: dict[str, int]
    faulty: list[str]
    images: dict[str, list[int]]
    pixels: dict[str, list[int]]
    made: int = 0
    resumed: int = 0
    seconds: float = 0.0
    note: str = ""

    @property
    def images_per_second(self) -> float:
        """Source pictures per second of this run; 0 when nothing was to be done."""
        return self.made / self.seconds if self.made and self.seconds > 0 else 0.0

"""The settings of a folder data set, checked as far as that is possible without the files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from slime_bench.config.parts import NO_NUMBERS, located
from slime_bench.data.augment import Augmentation
from slime_bench.data.fit import FITS, RESIZES
from slime_bench.data.labels import validate_classes, validate_colours
from slime_bench.data.layouts import listing
from slime_bench.errors import ConfigError

SUPPORT, VAL, TEST = "support", "val", "test"
SPLITS = (SUPPORT, VAL, TEST)
SHOTS = "{shots}"
"""In the name of a split's folder: the number of shots."""
VALIDATIONS = ("auto", "paper", "support", "val", "none")
DRAWN, IN_ORDER = "drawn", "in_order"
EACH, FIRST, NONE = "each", "first", "none"

_LIST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_REMEDY = "correct it in the data set's YAML or on the command line"


@dataclass
class DataConfig:
    """Settings of a folder data set.

    Args:
        name: the data set's name in tables and folder names.
        root: folder that holds the splits.
        classes: class names in label order, `background` first.
        classes_file: a YAML file that names them instead: a list, or a mapping of names to labels. It is read at once,
            and `classes` then holds what it says; no path stays in the configuration.
        subject: what the pictures show; chooses the table's columns.
        splits: folder of `support`, `val` and `test`, relative to `root` or absolute, where it is not called so.
            `{shots}` in it becomes the number of shots. See `slime_bench.data.layouts` for what a folder may hold.
        colours: class name, or `ignore`, -> [red, green, blue] of label maps that are colour pictures. Any other colour
            is background, unless the background's own is given.
        image_size: side S; images of another size are brought to S x S.
        fit: how: `squash` (stretched, as in the first paper), `pad` (the longer side becomes S, the rest is black and
            ignored) or `pad_floor8` (the second paper's, whose sides are multiples of 8); see `slime_bench.data.fit`.
        resize: `antialias` (PIL's bilinear, which averages when it shrinks), `opencv` (the reference's INTER_LINEAR
            for images and INTER_NEAREST for label maps) or `opencv_float` (the same on float32 images, whose values are
            then not rounded to grey levels: the second paper's).
        batch_size: images per validation and test batch.
        train_batch_size: images per training step; the paper's is 1.
        num_workers: loader processes, null for two where there is a GPU and none elsewhere; does not change any number.
        passes_per_epoch: passes over the support set per Lightning epoch; does not change any training item.
        augment: how training images are varied.
        support: where the support set comes from. `drawn`: the list splits/drawn-<shots>-seed<seed>.txt of the root
            where there is one, otherwise drawn from the pool with the seed. `in_order`: the first ids of the pool.
            Another name: splits/<name>-<shots>.txt, whose ids may lie in `val` as well; splits/<name>-val.txt, where
            there is one, is then the validation split.
        support_ids: fixes the support set: its first `shots` ids are taken, whatever `support` says.
        require_all_classes: which of the drawn images show as many foreground classes as any image of the pool does, as
            a class that is never seen cannot be learnt: `each` (as long as there are such images), `first` (the
            support image of a 1-shot trial) or `none`.
        min_pixels: pixels a class needs to count as shown.
        validation: `support` (the unaugmented support images), `val` (the validation split), `none`,
            or one that depends on the shots: `auto`: `support` for one shot as in the reference, `val` otherwise;
            `paper`: `none` for one shot, whose last embeddings are used, `val` otherwise.
        val_size: images of the validation split that are used, drawn with the seed; null = all. A list of `support`
            that has its own validation images is taken whole.

    Raises:
        ConfigError: a value outside its range, a bad class list or colour, or a class file that cannot be read.
    """

    name: str
    root: str = field(metadata=located("data"))
    classes: list[str] = field(default_factory=list)
    classes_file: str | None = None
    subject: str = "any"
    splits: dict[str, str] = field(default_factory=dict, metadata=located("data"))
    colours: dict[str, list[int]] = field(default_factory=dict)
    image_size: int = 512
    fit: str = "squash"
    resize: str = "antialias"
    batch_size: int = field(default=10, metadata=NO_NUMBERS)
    train_batch_size: int = 1
    num_workers: int | None = field(default=None, metadata=NO_NUMBERS)
    passes_per_epoch: int = 1
    augment: Augmentation = field(default_factory=Augmentation)
    support: str = DRAWN
    support_ids: list[str] | None = None
    require_all_classes: str = field(default=FIRST, metadata={"choices": (EACH, FIRST, NONE)})
    min_pixels: int = 12
    validation: str = "auto"
    val_size: int | None = None

    def __post_init__(self) -> None:
        self._settle_classes()
        validate_classes(self.classes)
        validate_colours(self.colours, self.classes)
        for name, least in (
            ("image_size", 8),
            ("batch_size", 1),
            ("train_batch_size", 1),
            ("num_workers", 0),
            ("passes_per_epoch", 1),
            ("min_pixels", 1),
            ("val_size", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise _bad(name, value, f"a whole number of at least {least}")
        for name, options in (
            ("fit", FITS),
            ("resize", RESIZES),
            ("validation", VALIDATIONS),
            ("require_all_classes", (EACH, FIRST, NONE)),
        ):
            if getattr(self, name) not in options:
                raise _bad(name, getattr(self, name), " or ".join(options))
        unknown = [name for name in self.splits if name not in SPLITS]
        if unknown:
            raise _bad("splits", listing(unknown), f"the keys {', '.join(SPLITS)}")
        if any(SHOTS in str(Path(folder).parent) for folder in self.splits.values()):
            raise _bad("splits", self.splits, f"{SHOTS} in the last part of a path only")
        self.splits = {name: self.splits.get(name) or name for name in SPLITS}
        if not _LIST_NAME.fullmatch(self.support):
            raise _bad("support", self.support, f"{DRAWN}, {IN_ORDER} or the name of a list, without its folder")
        repeated = sorted({key for key in self.support_ids or [] if (self.support_ids or []).count(key) > 1})
        if repeated:
            raise _bad("support_ids", f"twice: {listing(repeated)}", "every id once")

    def _settle_classes(self) -> None:
        if self.classes_file is not None:
            if self.classes:
                raise ConfigError(
                    "the classes are given twice",
                    path="data.classes_file",
                    found=f"`data.classes` and {self.classes_file}",
                    expected="one of the two",
                    remedy="leave `data.classes_file` out, or set data.classes=[]",
                )
            self.classes, self.classes_file = read_classes(Path(self.classes_file)), None
        if not self.classes:
            raise ConfigError(
                "the classes are not given",
                path="data.classes",
                found="neither `data.classes` nor `data.classes_file`",
                expected="the names of the label maps' classes, `background` first",
                remedy="e.g. data.classes=[background,leaf,stem], or data.classes_file=<a YAML list of names>",
            )


def read_classes(path: Path) -> list[str]:
    """Class names in label order from a YAML file: a list of names, or a mapping of names to 0..K-1.

    Raises:
        ConfigError: missing, not YAML, neither a list nor such a mapping; or as `validate_classes`.
    """
    expected = "a list of names, e.g. `[background, leaf]`, or a mapping of names to labels, e.g. `background: 0`"
    remedy = "correct the file, or name another one in `data.classes_file`"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        found = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ConfigError(
            "cannot read the class file", path=path, found=found, expected=expected, remedy=remedy
        ) from error
    names = content
    if isinstance(content, Mapping):
        labels = list(content.values())
        if any(type(label) is not int for label in labels) or sorted(labels) != list(range(len(labels))):
            raise ConfigError(
                "the labels of the class file are not 0, 1, 2, ...",
                path=path,
                found=", ".join(f"{name}: {label}" for name, label in content.items()),
                expected=f"every whole number from 0 to {len(labels) - 1} once",
                remedy=remedy,
            )
        names = sorted(content, key=lambda name: int(content[name]))
    if not isinstance(names, list):
        raise ConfigError(
            "the class file does not list classes",
            path=path,
            found=type(content).__name__,
            expected=expected,
            remedy=remedy,
        )
    return list(validate_classes(names, path=str(path)))


def _bad(name: str, found: object, expected: str) -> ConfigError:
    return ConfigError(
        f"bad data setting `{name}`", path=f"data.{name}", found=found, expected=expected, remedy=_REMEDY
    )

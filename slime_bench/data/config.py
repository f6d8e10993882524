"""The settings of data sets, checked as far as that is possible without the files. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

import yaml
from pydantic import Field

from slime_bench.config.parts import NO_NUMBERS, located
from slime_bench.data.label_maps import listing, validate_classes, validate_colours
from slime_bench.errors import ConfigError

SUPPORT, VAL, TEST = SPLITS = ("support", "val", "test")
SHOTS = "{shots}"
"""In the name of a split's folder: the number of shots."""
DRAWN, IN_ORDER = "drawn", "in_order"
AUTHORS_EVAL, AUTHORS_TRAIN, NO_SUPPORT = "authors_eval", "authors_train", "none"
EACH, FIRST = "each", "first"
Fit = Literal["squash", "pad", "pad_floor8"]
SQUASH, PAD, PAD_FLOOR8 = FITS = get_args(Fit)
Resize = Literal["antialias", "opencv", "opencv_float"]
ANTIALIAS, OPENCV, OPENCV_FLOAT = RESIZES = get_args(Resize)
Share = Annotated[float, Field(ge=0, le=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]

_LIST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_REMEDY = "correct it in the data set's YAML or on the command line"


@dataclass
class Augmentation:
    """How support samples are varied; `crop_ratio: [1, 1]` and zero probabilities switch everything off.

    Args:
        flip_p: probability of a horizontal flip.
        blur_p: probability of a Gaussian blur.
        blur_kernels: odd kernel widths, drawn evenly. albumentations draws 1..5 and rounds even widths up, so that
            3 and 5 are twice as likely as 1; repeating them here says the same.
        rotation_p: probability of a rotation.
        rotation_degrees: the angle is drawn evenly from plus and minus this.
        crop_ratio: [lowest, highest] side of the square crop, as a part of the shorter side.
        crop_keep: what a crop must keep more than `crop_keep_fraction` of, of the pixels that were there: `every_class`
            (each class of the image), `background` (what the reference's rule comes to, see `choose_crop`), `nothing`.
        crop_keep_fraction: 0..1.

    Raises:
        ConfigError: a value outside its range.
    """

    flip_p: Share = 0.5
    blur_p: Share = 0.5
    blur_kernels: list[int] = field(default_factory=lambda: [1, 3, 3, 5, 5])
    rotation_p: Share = 0.5
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 30.0
    crop_ratio: list[float] = field(default_factory=lambda: [0.6, 1.0])
    crop_keep: Literal["every_class", "background", "nothing"] = "every_class"
    crop_keep_fraction: Share = 0.3

    def __post_init__(self) -> None:
        odd = bool(self.blur_kernels) and all(width > 0 and width % 2 == 1 for width in self.blur_kernels)
        self._require(odd, "blur_kernels", "odd widths, e.g. [1, 3, 5]")
        pair = len(self.crop_ratio) == 2 and 0 < self.crop_ratio[0] <= self.crop_ratio[1] <= 1
        self._require(pair, "crop_ratio", "[lowest, highest] with 0 < lowest <= highest <= 1")

    def _require(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise ConfigError(
                f"bad augmentation setting `{name}`", path=f"data.augment.{name}", found=getattr(self, name),
                expected=expected, remedy=_REMEDY,
            )  # fmt: skip


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
        fit: how, see `slime_bench.data.transforms`: `squash` (stretched, as in the first paper), `pad` (the longer side
            becomes S, the rest is black and ignored) or `pad_floor8` (the second paper's: multiples of 8).
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
    image_size: Annotated[int, Field(ge=8)] = 512
    fit: Fit = "squash"
    resize: Resize = "antialias"
    batch_size: Positive = field(default=10, metadata=NO_NUMBERS)
    train_batch_size: Positive = 1
    num_workers: Natural | None = field(default=None, metadata=NO_NUMBERS)
    passes_per_epoch: Positive = 1
    augment: Augmentation = field(default_factory=Augmentation)
    support: str = DRAWN
    support_ids: list[str] | None = None
    require_all_classes: Literal["each", "first", "none"] = "first"
    min_pixels: Positive = 12
    validation: Literal["auto", "paper", "support", "val", "none"] = "auto"
    val_size: Positive | None = None

    def __post_init__(self) -> None:
        self._settle_classes()
        validate_classes(self.classes)
        validate_colours(self.colours, self.classes)
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
                    "the classes are given twice", path="data.classes_file", expected="one of the two",
                    found=f"`data.classes` and {self.classes_file}",
                    remedy="leave `data.classes_file` out, or set data.classes=[]",
                )  # fmt: skip
            self.classes, self.classes_file = read_classes(Path(self.classes_file)), None
        if not self.classes:
            raise ConfigError(
                "the classes are not given", path="data.classes",
                found="neither `data.classes` nor `data.classes_file`",
                expected="the names of the label maps' classes, `background` first",
                remedy="e.g. data.classes=[background,leaf,stem], or data.classes_file=<a YAML list of names>",
            )  # fmt: skip


@dataclass
class SceneConfig(DataConfig):
    """Settings of a data set of scenes.

    `shots` is the number of support images **of each class**, as in the second paper, whose one shot is 20 images of
    VOC. `support` is `drawn` (from the support split, with the seed), `in_order` (the same without a seed), the name of
    a list as elsewhere, `none` (no support images, for methods that learn nothing), or one of

    - `authors_eval`: as the second paper's code: from the images of the *test* split, which then lose them; images
      without any object are no queries then. (With shots=0 all images of the list are, as in its training-free script.)
      The seed s stands for the code's run number s, whose first draw is seeded
      with 1.
    - `authors_train`: the same choice from the support split; nothing is taken from the test split.

    `drawn` and `in_order` prefer images that show one class only, and at least `min_pixels` of it (the files' own
    pixels; 16384 in the code); an image may stand for two classes, and is in the set once. `support_ids` and lists are
    taken whole, whatever `shots` says; `require_all_classes` means nothing here.

    Args:
        max_pool_images: the first so many images of the support split are its pool; null = all.
        max_test_images: the first so many images of the test split are tested, after `authors_eval` has taken its own;
            null = all. The second paper's code stops after 10000 images of COCO.
    """

    max_pool_images: Positive | None = None
    max_test_images: Positive | None = None


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
                "the labels of the class file are not 0, 1, 2, ...", path=path, remedy=remedy,
                found=", ".join(f"{name}: {label}" for name, label in content.items()),
                expected=f"every whole number from 0 to {len(labels) - 1} once",
            )  # fmt: skip
        names = sorted(content, key=lambda name: int(content[name]))
    if not isinstance(names, list):
        raise ConfigError(
            "the class file does not list classes", path=path, found=type(content).__name__, expected=expected,
            remedy=remedy,
        )  # fmt: skip
    return list(validate_classes(names, path=str(path)))


def _bad(name: str, found: object, expected: str) -> ConfigError:
    return ConfigError(
        f"bad data setting `{name}`", path=f"data.{name}", found=found, expected=expected, remedy=_REMEDY
    )

"""The settings of data sets, checked as far as that is possible without the files. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from pydantic import Field

from slime_bench.config.parts import NO_NUMBERS, located
from slime_bench.data.class_files import read_classes
from slime_bench.data.label_maps import listing, validate_classes, validate_colours
from slime_bench.errors import ConfigError

IN_MEMORY: Final = 1000
"""Support images that are kept decoded; more are read when they are needed."""
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
        if not odd:
            raise _bad("augment.blur_kernels", self.blur_kernels, "odd widths, e.g. [1, 3, 5]")
        if len(self.crop_ratio) != 2 or not 0 < self.crop_ratio[0] <= self.crop_ratio[1] <= 1:
            raise _bad("augment.crop_ratio", self.crop_ratio, "[lowest, highest] with 0 < lowest <= highest <= 1")


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
        support: where the support set comes from. `drawn`: from the pool, with the seed. `in_order`: the first ids of
            the pool. Another name: splits/<name>-<shots>.txt of the root, whose ids may lie in `val` as well;
            splits/<name>-val.txt, where there is one, is then the validation split.
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
        test_limit: only the first so many test images are tested, in order of the id, or of a list of scenes; null =
            all. For methods that take minutes for an image; tables say so.

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
    test_limit: Positive | None = None

    def __post_init__(self) -> None:
        if (self.classes_file is None) != bool(self.classes):
            raise _bad(
                "classes", f"{self.classes} and classes_file: {self.classes_file}",
                "the names of the label maps' classes, either here or in the YAML file `data.classes_file`",
            )  # fmt: skip
        if self.classes_file is not None:
            self.classes, self.classes_file = _labels_of(Path(self.classes_file)), None
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
    taken whole, whatever `shots` says; `require_all_classes` means nothing here. `test_limit` counts what is left after
    `authors_eval` has taken its own; the second paper's code stops after 10000 images of COCO.

    Args:
        max_pool_images: the first so many images of the support split are its pool; null = all.
    """

    max_pool_images: Positive | None = None


def _labels_of(path: Path) -> list[str]:
    """Class names in label order, of a file as `read_classes` reads it."""
    spec = read_classes(path)
    names = sorted(spec.values, key=lambda name: spec.values[name])
    if spec.coloured or sorted(spec.values.values()) != list(range(len(names))):
        raise ConfigError(
            "the labels of the class file are not 0, 1, 2, ...", path=path, found=listing(names),
            expected="names in label order, or every whole number from 0 on once",
            remedy="correct the file, or name another one in `data.classes_file`",
        )  # fmt: skip
    return list(validate_classes(names, path=str(path)))


def _bad(name: str, found: object, expected: str) -> ConfigError:
    return ConfigError(
        f"bad data setting `{name}`", path=f"data.{name}", found=found, expected=expected,
        remedy="correct it in the data set's YAML or on the command line",
    )  # fmt: skip

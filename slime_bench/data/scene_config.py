"""The settings of a data set of whole scenes, checked as far as that is possible without the files."""

from __future__ import annotations

from dataclasses import dataclass

from slime_bench.data.config import DataConfig
from slime_bench.errors import ConfigError

AUTHORS_EVAL, AUTHORS_TRAIN = "authors_eval", "authors_train"
NO_SUPPORT = "none"


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

    max_pool_images: int | None = None
    max_test_images: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_pool_images", "max_test_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(
                    f"bad data setting `{name}`", path=f"data.{name}", found=value,
                    expected="a whole number of at least 1, or null for all", remedy="correct it",
                )  # fmt: skip

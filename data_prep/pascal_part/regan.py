"""ReGAN's car test set, `Car_TestSet/{image_bg,image_no_bg,gt_mask}`: pictures beside RGB ground truth.

Pairs are files of one stem. The authors of SLiMe compare colours exactly (SLiMe-lab `paper_test_sample_dataset.py`),
and so do we: white, black and the few colours of anything else are background, counted as `unknown_pixels`. A ground
truth with more than `MOST_STRANGERS` unknown colours is refused: it was resized or saved as JPEG, and its true labels
are gone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from data_prep.pascal_part.files import read_picture
from data_prep.pascal_part.merge import class_names
from slime_bench.errors import DataError, LabelError

WITH_BACKGROUND, WITHOUT_BACKGROUND, TRUTH = "image_bg", "image_no_bg", "gt_mask"
COLOURS: Final = {
    "body": (255, 52, 255),
    "light": (255, 74, 70),
    "plate": (0, 137, 65),
    "wheel": (255, 255, 0),
    "window": (28, 230, 255),
}
MOST_STRANGERS: Final = 16
_BACKGROUND: Final = ((0, 0, 0), (255, 255, 255))
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


def find_pairs(root: Path, background: bool = True) -> list[tuple[str, Path, Path]]:
    """(stem, picture, ground truth) of each sample, in order of the stem.

    Raises:
        DataError: a folder is missing or empty, two files of one stem, or a file without its partner.
    """
    images = _by_stem(root / (WITH_BACKGROUND if background else WITHOUT_BACKGROUND))
    truths = _by_stem(root / TRUTH)
    alone = [
        str(path.relative_to(root))
        for stem, path in {**truths, **images}.items()
        if (stem in images) != (stem in truths)
    ]
    if alone or not images:
        raise DataError(
            "pictures and ground truth do not pair up" if alone else "no picture",
            path=root,
            found=", ".join(sorted(alone)[:5]) + (" without a partner" if alone else "no file with a known suffix"),
            expected=f"files of the same stem in {WITH_BACKGROUND} or {WITHOUT_BACKGROUND}, and {TRUTH}",
            remedy="restore the missing files of Car_TestSet",
        )
    return [(stem, images[stem], truths[stem]) for stem in sorted(images)]


def read_pair(image: Path, truth: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """(picture uint8 [H,W,3], label map uint8 [H,W], pixels of unknown colour).

    Raises:
        DataError, LabelError: an unreadable file, two sizes, or a ground truth that lost its colours.
    """
    colours = read_picture(truth)
    label, strangers = labels_of(colours, truth)
    return read_picture(image, label.shape), label, strangers


def labels_of(colours: np.ndarray, path: Path) -> tuple[np.ndarray, int]:
    """Label map uint8 [H,W] of a colour picture uint8 [H,W,3], and the number of pixels whose colour is unknown.

    Raises:
        LabelError: more than `MOST_STRANGERS` unknown colours; `path` is for the message.
    """
    packed = colours.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    label = np.zeros(packed.shape, dtype=np.uint8)
    unknown = np.ones(packed.shape, dtype=bool)
    for index, name in enumerate(class_names("car")):
        for colour in (COLOURS[name],) if name in COLOURS else _BACKGROUND:
            there = packed == _packed(colour)
            label[there] = index
            unknown &= ~there
    values, counts = np.unique(packed[unknown], return_counts=True)
    if len(values) > MOST_STRANGERS:
        first = ", ".join(
            f"{value >> 16},{value >> 8 & 255},{value & 255}" for value in values[np.argsort(-counts)][:3]
        )
        raise LabelError(
            "the ground truth holds colours of no class",
            path=path,
            found=f"{len(values)} unknown colours on {int(counts.sum())} pixels, most of them {first}",
            expected=", ".join(f"{name} {','.join(map(str, colour))}" for name, colour in COLOURS.items()),
            remedy="take the original PNG files: resized or JPEG copies have lost their labels",
        )
    return label, int(unknown.sum())


def _packed(colour: tuple[int, int, int]) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(
            "folder not found",
            path=folder,
            found="a file" if folder.exists() else "nothing",
            expected=f"a folder, beside {TRUTH}",
            remedy="name the folder Car_TestSet with --car-test",
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in _SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in found:
            raise DataError(
                "two files share one stem", path=folder, found=f"{found[path.stem].name}, {path.name}",
                expected="one file per stem", remedy="remove or rename one of the two",
            )  # fmt: skip
        found[path.stem] = path
    return found

"""Which files of a folder make one sample: image and label map are paired by their stems, in four layouts.

1. `images/` and `labels/`: `.png`, `.jpg` or `.jpeg` in the one, `.png` or `.npy` in the other (as `data_prep` writes).
2. flat, `<stem>.png` or `.jpg` beside `<stem>.npy` (the zip of SLiMe's authors).
3. flat, `<stem>.jpg` beside `<stem>.png`, where the JPEG is the image and the PNG the label map.
4. `image_bg/` or `image_no_bg/` beside `gt_mask/` (ReGAN's `Car_TestSet`, whose label maps are colour pictures).
"""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from slime_bench.data.label_maps import listing
from slime_bench.errors import DataError

JPEG_SUFFIXES = (".jpg", ".jpeg")
IMAGE_SUFFIXES = (".png", *JPEG_SUFFIXES)
LABEL_SUFFIXES = (".png", ".npy")
IMAGES = "images"
LABELS = "labels"
REGAN_LABELS = "gt_mask"
REGAN_IMAGES = ("image_bg", "image_no_bg")
"""With the background, as SLiMe-lab reads it by default, and with it blacked out."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """The two files of one sample."""

    id: str
    image: Path
    label: Path


def files_by_stem(folder: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """The files in `folder` with one of the `suffixes` (any case), keyed by stem, in order of the stem.

    Hidden files (`.DS_Store`, `._photo.png`) are not data and are passed over. Stems are compared in Unicode's composed
    form (NFC): a folder that went through macOS may hold `é` as two characters in one name and as one in the other.

    Raises:
        DataError: the folder is missing or cannot be listed, or two files share a stem, so that a label would have two
            images.
    """
    wanted = tuple(suffixes)
    found: dict[str, Path] = {}
    for file in _files(folder):
        if file.suffix.lower() not in wanted:
            continue
        stem = unicodedata.normalize("NFC", file.stem)
        if stem in found:
            raise DataError(
                "two files share one stem", path=folder, found=f"{found[stem].name}, {file.name}",
                expected="one file per stem", remedy="remove or rename one of the two",
            )  # fmt: skip
        found[stem] = file
    return dict(sorted(found.items()))


def find_pairs(folder: Path) -> list[Pair]:
    """The samples of a folder in whichever of the layouts above it has, in order of the id.

    A path that ends in `image_bg` or `image_no_bg` names one of ReGAN's two; their parent folder stands for `image_bg`.

    Raises:
        DataError: the folder is missing, has none of the layouts or is empty, or a file has no partner.
    """
    images, labels = folder / IMAGES, folder / LABELS
    if images.is_dir() or labels.is_dir():
        return _paired(images, files_by_stem(images, IMAGE_SUFFIXES), labels, files_by_stem(labels, LABEL_SUFFIXES))
    if folder.name in REGAN_IMAGES and (folder.parent / REGAN_LABELS).is_dir():
        return _pair_regan(folder, folder.parent / REGAN_LABELS)
    if (folder / REGAN_LABELS).is_dir():
        named = [folder / name for name in REGAN_IMAGES if (folder / name).is_dir()]
        return _pair_regan(named[0] if named else folder / REGAN_IMAGES[0], folder / REGAN_LABELS)
    suffixes = {file.suffix.lower() for file in _files(folder)}
    if ".npy" in suffixes:
        return _paired(folder, files_by_stem(folder, IMAGE_SUFFIXES), folder, files_by_stem(folder, (".npy",)))
    if ".png" in suffixes and suffixes & set(JPEG_SUFFIXES):
        return _paired(folder, files_by_stem(folder, JPEG_SUFFIXES), folder, files_by_stem(folder, (".png",)))
    raise DataError(
        "no images with label maps", path=folder, found=_contents(folder),
        expected=f"{IMAGES}/ and {LABELS}/; or, side by side, <id>.png or <id>.jpg with <id>.npy, or <id>.jpg with "
        f"<id>.png; or {REGAN_IMAGES[0]}/ and {REGAN_LABELS}/",
        remedy="lay the files out in one of these ways, or name another folder in `data.root` or `data.splits`",
    )  # fmt: skip


def _pair_regan(images: Path, labels: Path) -> list[Pair]:
    image_files, label_files = files_by_stem(images, IMAGE_SUFFIXES), files_by_stem(labels, (".png",))
    if len(image_files) == len(label_files) and image_files and not set(image_files) & set(label_files):
        # SLiMe-lab's reader sorts both folders and pairs them by position, so that their names need not agree.
        both = zip(image_files.items(), label_files.values(), strict=True)
        pairs = [Pair(stem, image, label) for (stem, image), label in both]
        first = f"{pairs[0].image.name} with {pairs[0].label.name}"
        _log.warning("%s: no stem is shared with %s/; paired by order, %s", images, labels.name, first)
        return pairs
    return _paired(images, image_files, labels, label_files)


def _paired(images: Path, image_files: Mapping[str, Path], labels: Path, label_files: Mapping[str, Path]) -> list[Pair]:
    without_label = [file.name for stem, file in image_files.items() if stem not in label_files]
    without_image = [file.name for stem, file in label_files.items() if stem not in image_files]
    if without_label:
        raise DataError(
            f"{len(without_label)} image(s) without a label map", path=images, found=listing(without_label),
            expected=f"a file of the same stem ({' or '.join(LABEL_SUFFIXES)}) in {labels}",
            remedy="add the missing label maps, or move these images away",
        )  # fmt: skip
    if without_image:
        raise DataError(
            f"{len(without_image)} label map(s) without an image", path=labels, found=listing(without_image),
            expected=f"a file of the same stem ({', '.join(IMAGE_SUFFIXES)}) in {images}",
            remedy="add the missing images, or move these label maps away",
        )  # fmt: skip
    if not image_files:
        raise DataError(
            "no images", path=images, found="no file with a known suffix", expected=", ".join(IMAGE_SUFFIXES),
            remedy="put the images here, or prepare the data again",
        )  # fmt: skip
    return [Pair(stem, file, label_files[stem]) for stem, file in image_files.items()]


def _files(folder: Path) -> list[Path]:
    """The plain files of a folder, sorted by name, without hidden ones."""
    if not folder.is_dir():
        raise DataError(
            "folder not found", path=folder, found="a file" if folder.exists() else "nothing", expected="a folder",
            remedy="check `data_root` (or the variable SLIME_BENCH_DATA), `data.root` and `data.splits`, "
            "or prepare the data",
        )  # fmt: skip
    try:
        with os.scandir(folder) as entries:  # 24,000 faces: one call instead of one per file
            names = sorted(each.name for each in entries if not each.name.startswith(".") and each.is_file())
    except OSError as error:
        raise DataError(
            "cannot list the folder", path=folder, found=error.strerror, remedy="change the folder's permissions"
        ) from error
    return [folder / name for name in names]


def _contents(folder: Path) -> str:
    names = sorted(f"{each.name}/" if each.is_dir() else each.name for each in folder.iterdir())
    return listing([name for name in names if not name.startswith(".")]) or "an empty folder"

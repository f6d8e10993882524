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
from collections.abc import Sequence
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


def files_by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The files in `folder` with one of the `suffixes` (any case), keyed by stem, in order of the stem.

    Hidden files (`.DS_Store`, `._photo.png`) are not data and are passed over. Stems are compared in Unicode's composed
    form (NFC): a folder that went through macOS may hold `é` as two characters in one name and as one in the other.

    Raises:
        DataError: the folder is missing or cannot be listed, or two files share a stem, so that a label would have two
            images.
    """
    found: dict[str, Path] = {}
    for file in _files(folder):
        if file.suffix.lower() not in suffixes:
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
        return _paired(images, IMAGE_SUFFIXES, labels, LABEL_SUFFIXES)
    regan = folder
    if folder.name not in REGAN_IMAGES:
        regan = next((each for name in REGAN_IMAGES if (each := folder / name).is_dir()), folder / REGAN_IMAGES[0])
    if (regan.parent / REGAN_LABELS).is_dir():
        return _paired(regan, IMAGE_SUFFIXES, regan.parent / REGAN_LABELS, (".png",))
    suffixes = {file.suffix.lower() for file in _files(folder)}
    if ".npy" in suffixes:
        return _paired(folder, IMAGE_SUFFIXES, folder, (".npy",))
    if ".png" in suffixes and suffixes & set(JPEG_SUFFIXES):
        return _paired(folder, JPEG_SUFFIXES, folder, (".png",))
    names = sorted(f"{each.name}/" if each.is_dir() else each.name for each in folder.iterdir())
    raise DataError(
        "no images with label maps", path=folder,
        found=listing([name for name in names if not name.startswith(".")]) or "an empty folder",
        expected=f"{IMAGES}/ and {LABELS}/; or, side by side, <id>.png or <id>.jpg with <id>.npy, or <id>.jpg with "
        f"<id>.png; or {REGAN_IMAGES[0]}/ and {REGAN_LABELS}/",
        remedy="lay the files out in one of these ways, or name another folder",
    )  # fmt: skip


def _paired(images: Path, image_kinds: Sequence[str], labels: Path, label_kinds: Sequence[str]) -> list[Pair]:
    image_files, label_files = files_by_stem(images, image_kinds), files_by_stem(labels, label_kinds)
    apart = image_files and not image_files.keys() & label_files.keys()
    if apart and labels.name == REGAN_LABELS and len(image_files) == len(label_files):
        # SLiMe-lab's reader sorts both folders and pairs them by position, so that their names need not agree.
        _log.warning(
            "%s: no stem is shared with %s/; paired by order, %s with %s", images, labels.name,
            *(next(iter(files.values())).name for files in (image_files, label_files)),
        )  # fmt: skip
        label_files = dict(zip(image_files, label_files.values(), strict=True))
    for kind, other, folder, files, partners in (
        ("image", "a label map", images, image_files, label_files),
        ("label map", "an image", labels, label_files, image_files),
    ):
        alone = [file.name for stem, file in files.items() if stem not in partners]
        if alone or not files:
            raise DataError(
                f"{len(alone)} {kind}(s) without {other}" if alone else f"no {kind}s", path=folder,
                found=listing(alone) or "no file with a known suffix",
                expected=f"images ({', '.join(image_kinds)}) in {images} and label maps of the same stems "
                f"({', '.join(label_kinds)}) in {labels}",
                remedy="add what is missing, or move these files away",
            )  # fmt: skip
    return [Pair(stem, file, label_files[stem]) for stem, file in image_files.items()]


def _files(folder: Path) -> list[Path]:
    """The plain files of a folder, sorted by name, without hidden ones."""
    try:
        with os.scandir(folder) as entries:  # 24,000 faces: one call instead of one per file
            names = sorted(each.name for each in entries if not each.name.startswith(".") and each.is_file())
    except OSError as error:
        raise DataError(
            "cannot list the folder", path=folder, found=error.strerror, expected="a folder that may be read",
            remedy="correct the folder's name, or mend its permissions",
        ) from error  # fmt: skip
    return [folder / name for name in names]

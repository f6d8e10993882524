"""Folders of images, with or without label maps of the same stem beside them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from slime_bench.data.labels import IGNORE, validate_classes
from slime_bench.errors import DataError, LabelError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
LABEL_SUFFIXES = (".png", ".npy")
IMAGES = "images"
LABELS = "labels"

_LABEL_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
# What PIL and NumPy raise on files that are cut short, overwritten or of another kind.
_DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
_SHOWN = 5


@dataclass(frozen=True)
class Picture:
    """One image: its file's stem and uint8 [3,H,W] RGB in 0..255, in the size of the file."""

    id: str
    image: Tensor


@dataclass(frozen=True)
class Sample(Picture):
    """An image with its label map, int64 [H,W] of the same H and W: 0 = background, 255 = ignore."""

    label: Tensor


@dataclass(frozen=True)
class Pair:
    """The two files of one sample."""

    id: str
    image: Path
    label: Path


def listing(names: Sequence[str]) -> str:
    """The first few of `names`, and how many there are in all."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def files_by_stem(folder: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """The files in `folder` with one of the `suffixes` (any case), keyed by stem, in order of the stem.

    Hidden files (`.DS_Store`, `._photo.png`) are not data and are passed over.

    Raises:
        DataError: the folder is missing, or two files share a stem, so that a label would have two images.
    """
    if not folder.is_dir():
        raise DataError(
            "folder not found",
            path=folder,
            found="a file" if folder.exists() else "nothing",
            expected="a folder",
            remedy="check `data_root` (or the variable SLIME_BENCH_DATA) and `data.root`, or prepare the data",
        )
    wanted = tuple(suffixes)
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in wanted or file.name.startswith(".") or not file.is_file():
            continue
        if file.stem in found:
            raise DataError(
                "two files share one stem",
                path=folder,
                found=f"{found[file.stem].name}, {file.name}",
                expected="one file per stem",
                remedy="remove or rename one of the two",
            )
        found[file.stem] = file
    return dict(sorted(found.items()))


def pair_files(images: Path, labels: Path) -> list[Pair]:
    """Images and label maps of the same stem, in order of the stem.

    Args:
        images: folder of `.png`, `.jpg` or `.jpeg`.
        labels: folder of `.png` (label maps) or `.npy` ([H,W] integers).

    Raises:
        DataError: a folder is missing or empty, or a file has no partner.
    """
    image_files = files_by_stem(images, IMAGE_SUFFIXES)
    label_files = files_by_stem(labels, LABEL_SUFFIXES)
    without_label = [file.name for stem, file in image_files.items() if stem not in label_files]
    without_image = [file.name for stem, file in label_files.items() if stem not in image_files]
    if without_label:
        raise DataError(
            f"{len(without_label)} image(s) without a label map",
            path=images,
            found=listing(without_label),
            expected=f"a file of the same stem ({' or '.join(LABEL_SUFFIXES)}) in {labels}",
            remedy="add the missing label maps, or move these images away",
        )
    if without_image:
        raise DataError(
            f"{len(without_image)} label map(s) without an image",
            path=labels,
            found=listing(without_image),
            expected=f"a file of the same stem ({', '.join(IMAGE_SUFFIXES)}) in {images}",
            remedy="add the missing images, or move these label maps away",
        )
    if not image_files:
        raise DataError(
            "no images",
            path=images,
            found="no file with a known suffix",
            expected=", ".join(IMAGE_SUFFIXES),
            remedy="put the images here, or prepare the data again",
        )
    return [Pair(stem, file, label_files[stem]) for stem, file in image_files.items()]


def read_image(path: Path) -> Tensor:
    """One image as uint8 [3,H,W] RGB.

    Grey images get three equal channels, transparency is dropped, and the camera's orientation is applied, as image
    viewers and OpenCV do.

    Raises:
        DataError: missing, unreadable, cut short, or with more than 8 bits in a single channel.
    """
    try:
        with Image.open(path) as file:
            mode = file.mode
            if mode.startswith(("I", "F")):
                raise DataError(
                    "image with more than 8 bits per pixel",
                    path=path,
                    found=f"mode {mode}",
                    expected="8-bit RGB or grey",
                    remedy="convert the image to 8 bits; only you know which range of values matters",
                )
            pixels = np.array(ImageOps.exif_transpose(file).convert("RGB"))
    except DataError:
        raise
    except _DECODING_ERRORS as error:
        raise _unreadable("image", path, error, "a complete PNG or JPEG file") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_label(path: Path) -> Tensor:
    """One label map as int64 [H,W], from a PNG (grey or palette index) or a `.npy` array.

    Raises:
        DataError: missing, unreadable or cut short.
        LabelError: not one whole number per pixel.
    """
    array = _read_array(path) if path.suffix.lower() == ".npy" else _read_indices(path)
    if array.ndim != 2 or not (np.issubdtype(array.dtype, np.integer) or array.dtype == np.bool_):
        raise LabelError(
            "not a label map",
            path=path,
            found=f"an array {list(array.shape)} of {array.dtype}",
            expected="[H,W] integers, one class index per pixel",
            remedy="save class indices, e.g. `np.save(file, label.astype(np.uint8))`",
        )
    return torch.from_numpy(array.astype(np.int64))


def check_label(label: Tensor, classes: Sequence[str], path: Path) -> None:
    """Refuse labels that are no class: every value must lie in 0..K-1 or be 255 (ignore).

    Args:
        label: int64 [H,W].
        classes: the K class names.
        path: the file, for the message.

    Raises:
        LabelError: names the values, and how many pixels carry each.
    """
    strangers = (label < 0) | ((label >= len(classes)) & (label != IGNORE))
    if not bool(strangers.any()):
        return
    values, counts = label[strangers].unique(return_counts=True)
    counted = [f"{value} ({count} pixels)" for value, count in zip(values.tolist(), counts.tolist(), strict=True)]
    raise LabelError(
        "label outside the classes",
        path=path,
        found=listing(counted),
        expected=f"0..{len(classes) - 1} ({', '.join(classes)}) or {IGNORE} (ignore)",
        remedy="name the missing classes in `data.classes`, or map these labels to a class or to 255",
    )


def read_sample(pair: Pair, classes: Sequence[str]) -> Sample:
    """Decode and check one sample.

    Raises:
        DataError, LabelError: an unreadable file, sizes that differ, or labels outside `classes`.
    """
    image = read_image(pair.image)
    label = read_label(pair.label)
    if image.shape[-2:] != label.shape:
        raise LabelError(
            "image and label map differ in size",
            path=pair.label,
            found=f"{label.shape[1]}x{label.shape[0]}",
            expected=f"{image.shape[2]}x{image.shape[1]} (width x height) as {pair.image}",
            remedy="export the label map in the size of its image, without interpolation",
        )
    check_label(label, classes, pair.label)
    return Sample(pair.id, image, label)


class FolderDataset(Dataset[Sample]):
    """`<folder>/images/<id>.png|jpg|jpeg` with `<folder>/labels/<id>.png|npy`, in order of the id.

    Files are listed and paired at once and decoded on demand; see `read_sample` for what is refused.
    """

    def __init__(self, folder: str | Path, classes: Sequence[str]) -> None:
        self.folder = Path(folder)
        self.classes = validate_classes(classes)
        self.pairs = pair_files(self.folder / IMAGES, self.folder / LABELS)

    @property
    def ids(self) -> list[str]:
        return [pair.id for pair in self.pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        return read_sample(self.pairs[index], self.classes)

    def label(self, index: int) -> Tensor:
        """Only the label map, int64 [H,W], checked against the classes: a choice by content need not decode images."""
        path = self.pairs[index].label
        label = read_label(path)
        check_label(label, self.classes, path)
        return label


class ImageFolder(Dataset[Picture]):
    """The images of a folder, without label maps, in order of the file's stem."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        files = files_by_stem(self.folder, IMAGE_SUFFIXES)
        if not files:
            raise DataError(
                "no images",
                path=self.folder,
                found="no file with a known suffix",
                expected=", ".join(IMAGE_SUFFIXES),
                remedy="name a folder that holds images",
            )
        self.files = list(files.values())

    @property
    def ids(self) -> list[str]:
        return [file.stem for file in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Picture:
        file = self.files[index]
        return Picture(file.stem, read_image(file))


def _read_array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except _DECODING_ERRORS as error:
        raise _unreadable("label map", path, error, "a NumPy array saved without pickling") from error
    return np.asarray(array)


def _read_indices(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as file:
            mode = file.mode
            array = np.array(file)
    except _DECODING_ERRORS as error:
        raise _unreadable("label map", path, error, "a complete PNG file") from error
    if mode not in _LABEL_MODES:
        raise LabelError(
            "the label map is a colour picture",
            path=path,
            found=f"mode {mode}, {array.shape[-1]} channels",
            expected="one channel of class indices (8-bit grey or palette)",
            remedy="convert colours to class indices first; grey conversion would invent classes",
        )
    return array


def _unreadable(kind: str, path: Path, error: BaseException, expected: str) -> DataError:
    if isinstance(error, FileNotFoundError):
        found, remedy = "nothing", "restore the file, or prepare the data again"
    elif isinstance(error, PermissionError):
        found, remedy = "a file this user may not read", "change the file's permissions"
    else:
        size = path.stat().st_size if path.is_file() else 0
        found = f"{size} bytes that do not decode ({type(error).__name__}: {error})"
        remedy = "copy or download the file again, or prepare the data again"
    return DataError(f"cannot read the {kind}", path=path, found=found, expected=expected, remedy=remedy)

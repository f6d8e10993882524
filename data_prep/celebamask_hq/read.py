"""One face of CelebAMask-HQ from its files: the image, the attribute masks, the sample. Without torch, as many
processes do it side by side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data_prep.build import Dropped, Job, Made
from data_prep.celebamask_hq.files import MAPPING, MASKS, Face, split_of
from data_prep.celebamask_hq.merge import ATTRIBUTES, CLASS_OF, CLASSES, IGNORED, PAINTING, merge
from slime_bench.data.reading import DECODING_ERRORS
from slime_bench.errors import DataError, LabelError, SlimeBenchError

NO_MASK: Final = "no mask of any class"

_GREY_MODES = ("1", "L", "LA", "RGB", "RGBA", "P")


def make_face(job: Job, *, root: str, order: str, size: int) -> list[Made | Dropped]:
    """The sample of one face (a `Work` of data_prep.build once `root`, `order` and `size` are set).

    Args:
        job: its payload is a `Face`.
        root: folder of the data set.
        order: painting order, see `celebamask_merge`.
        size: side of the masks, and of the image once it is resized.

    Raises:
        DataError: no line in the mapping file, misnamed masks, a missing or unreadable image or mask, an image that is
            not square or smaller than the masks. LabelError: a mask of another size.
    """
    face: Face = job.payload
    check_face(face, Path(root))
    split = split_of(face.celeba or 0)
    image, source_size = read_image(Path(root, face.image), size)
    if not any(name in CLASS_OF for name in face.attributes):
        return [Dropped(split, job.key, NO_MASK)]
    label = merge(_masks(face, Path(root), size), order)
    facts = {
        "source": face.image,
        "celeba": face.celeba,
        "ignored": [name for name in face.attributes if name in IGNORED],
        "source_size": list(source_size),
    }
    return [Made(split, job.key, image, label, facts)]


def count_face(job: Job, *, root: str, size: int) -> np.ndarray | str | None:
    """Pixels per class of one face, [order, class] as in `PAINTING` and `CLASSES`; None without masks; what is
    wrong with a faulty one."""
    face: Face = job.payload
    try:
        check_face(face, Path(root))
        masks = _masks(face, Path(root), size)
    except SlimeBenchError as error:
        return f"{error.summary} ({error.path}: {error.found})"
    if not masks:
        return None
    return np.stack([np.bincount(merge(masks, order).ravel(), minlength=len(CLASSES)) for order in PAINTING])


def check_face(face: Face, root: Path) -> None:
    """Raises:
    DataError: the face has no line in the mapping file, or mask files with wrong names.
    """
    if face.misnamed:
        raise DataError(
            "mask files with an unknown attribute, or in a wrong folder",
            path=root / MASKS,
            found=", ".join(face.misnamed[:5]) + (" ..." if len(face.misnamed) > 5 else ""),
            expected=f"{face.mask('<attribute>')} with one of {', '.join(ATTRIBUTES)}",
            remedy="restore the names that the official archive has, or move these files away",
        )
    if face.celeba is None:
        raise DataError(
            "a face has no line in the mapping file, so that its split is unknown",
            path=root / MAPPING,
            found=f"no face {face.index}",
            expected=f"a line `{face.index} <orig_idx> <orig_file>`",
            remedy="restore the mapping file of the official archive, or move this face away",
        )


def read_image(path: Path, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """An image, resized as PIL does it, bilinear with antialiasing, which is what torchvision's resize of a PIL image
    does in SLiMe's code.

    Grey images get three equal channels, CMYK and palettes become RGB, transparency is dropped, and the camera's
    orientation is applied.

    Returns:
        uint8 [size,size,3] RGB, and (H, W) of the file.

    Raises:
        DataError: missing, unreadable, more than 8 bits, not square, or smaller than `size`.
    """
    with _decoding(path, "image"), Image.open(path) as file:
        width, height = file.size
        if width != height or width < size:
            raise DataError(
                "the image is not square, or smaller than its masks", path=path, found=f"{width}x{height}",
                expected=f"a square of at least {size}x{size} (1024x1024 in the official archive)",
                remedy="restore the image of the official archive, or name the side of your masks with --size",
            )  # fmt: skip
        if file.mode.startswith(("I", "F")):
            raise DataError(
                "image with more than 8 bits per pixel", path=path, found=f"mode {file.mode}", expected="8-bit RGB",
                remedy="restore the image of the official archive",
            )  # fmt: skip
        ImageOps.exif_transpose(file, in_place=True)
        plain = file if file.mode == "RGB" else file.convert("RGB")  # either would copy a picture that is fine as it is
        return np.asarray(plain.resize((size, size), Image.Resampling.BILINEAR)), (height, width)


def read_mask(path: Path, size: int) -> np.ndarray:
    """An attribute's mask, bool [size,size]: a pixel counts when its first channel is above one half, as in SLiMe's
    code (`[:, :, 0] / 255 > 0.5`).

    Raises:
        DataError: missing or unreadable. LabelError: of another size, or of a kind that has no such channel.
    """
    with _decoding(path, "mask"), Image.open(path) as file:
        if file.size != (size, size):
            raise LabelError(
                "a mask of another size", path=path, found=f"{file.size[0]}x{file.size[1]}, not {size}x{size}",
                expected="the same size for all masks of the data set",
                remedy="restore the mask of the official archive, or name the side of your masks with --size",
            )  # fmt: skip
        if file.mode not in _GREY_MODES:
            raise LabelError(
                "a mask of another kind", path=path, found=f"mode {file.mode}", expected="8-bit grey or RGB",
                remedy="restore the mask of the official archive",
            )  # fmt: skip
        plain = file.convert("RGB") if file.mode == "P" else file.convert("L") if file.mode == "1" else file
        return np.asarray(plain.getchannel(0)) > 127


def _masks(face: Face, root: Path, size: int) -> dict[str, np.ndarray]:
    """The masks of all attributes that belong to a class and that the face has: bool [size,size]."""
    return {name: read_mask(root / face.mask(name), size) for name in face.attributes if name in CLASS_OF}


@contextmanager
def _decoding(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(
            f"the {kind} of a face is missing", path=path, found="nothing", expected="a file",
            remedy="unpack the official archive again, or leave such faces out with --faulty skip",
        ) from error  # fmt: skip
    except DECODING_ERRORS as error:
        reason = "no known picture" if isinstance(error, UnidentifiedImageError) else f"{type(error).__name__}: {error}"
        found = f"{path.stat().st_size} bytes that do not decode ({reason})"
        raise DataError(
            f"cannot read the {kind}", path=path, found=found, expected="a whole JPEG or PNG file",
            remedy="unpack the official archive again, or leave such faces out with --faulty skip",
        ) from error  # fmt: skip

"""One face of CelebAMask-HQ from its files: the image, the attribute masks, the sample. Without torch, as many
processes do it side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.build import Dropped, Made
from data_prep.celebamask_hq.files import MAPPING, Face, split_of
from data_prep.celebamask_hq.merge import CLASS_OF, CLASSES, IGNORED, PAINTING, merge
from data_prep.processes import Job
from slime_bench.data.label_maps import class_pixels
from slime_bench.data.mask_files import DECODING_ERRORS, unreadable
from slime_bench.data.reading import read_image
from slime_bench.errors import DataError, LabelError


def make_face(job: Job, *, root: Path, order: str, size: int) -> list[Made | Dropped]:
    """The sample of one face (a `Work` of data_prep.build once `root`, `order` and `size` are set).

    Args:
        root: folder of the data set. order: of `PAINTING`.
        size: side of the masks, and of the image once it is resized: by PIL, bilinear with antialiasing, which is what
            torchvision's resize of a PIL image does in SLiMe's code.

    Raises:
        DataError: no line in the mapping file, a missing or unreadable image or mask, an image that is not square or
            smaller than the masks. LabelError: a mask of another size.
    """
    face: Face = job.payload
    if face.celeba is None:
        raise DataError(
            "a face has no line in the mapping file, so that its split is unknown", path=root / MAPPING,
            found=f"no face {face.index}", expected=f"a line `{face.index} <orig_idx> <orig_file>`",
            remedy="restore the mapping file of the official archive, or move this face away",
        )  # fmt: skip
    split = split_of(face.celeba)
    image = read_image(root / face.image)
    height, width = image.shape[:2]
    if width != height or width < size:
        raise DataError(
            "the image is not square, or smaller than its masks", path=root / face.image, found=f"{width}x{height}",
            expected=f"a square of at least {size}x{size} (1024x1024 in the official archive)",
            remedy="restore the image of the official archive, or name the side of your masks with --size",
        )  # fmt: skip
    masks = _masks(face, root, size)
    if not masks:
        return [Dropped(split, job.key, "no mask of any class")]
    pixels = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    facts = {
        "source": face.image,
        "celeba": face.celeba,
        "ignored": [name for name in face.attributes if name in IGNORED],
        "source_size": [height, width],
    }
    return [Made(split, job.key, pixels, merge(masks, order), facts)]


def count_face(job: Job, *, root: Path, size: int) -> np.ndarray:
    """Pixels per class of one face, [order, class] as in `PAINTING` and `CLASSES`; nought without masks."""
    masks = _masks(job.payload, root, size)
    if not masks:
        return np.zeros((len(PAINTING), len(CLASSES)), np.int64)
    return np.stack([class_pixels(merge(masks, order), len(CLASSES)) for order in PAINTING])


def read_mask(path: Path, size: int) -> np.ndarray:
    """An attribute's mask, bool [size,size]: a pixel counts when its first channel is above one half, as in SLiMe's
    code (`[:, :, 0] / 255 > 0.5`). DataError: missing or unreadable; LabelError: of another size."""
    try:
        with Image.open(path) as file:
            mask = np.asarray(file.convert("RGB").getchannel(0)) > 127
    except DECODING_ERRORS as error:
        raise unreadable("mask", path, error, "a whole PNG file") from error
    if mask.shape != (size, size):
        raise LabelError(
            "a mask of another size", path=path, found=f"{mask.shape[1]}x{mask.shape[0]}, not {size}x{size}",
            expected="the same size for all masks of the data set",
            remedy="restore the mask of the official archive, or name the side of your masks with --size",
        )  # fmt: skip
    return mask


def _masks(face: Face, root: Path, size: int) -> dict[str, np.ndarray]:
    """The masks of all attributes that belong to a class and that the face has: bool [size,size]."""
    return {name: read_mask(root / face.mask(name), size) for name in face.attributes if name in CLASS_OF}

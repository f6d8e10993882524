"""A twin of CelebAMask-HQ: its folder with JPEG images, one mask per attribute and the mapping file.

As in the real one the masks overlap: skin is painted under eyes, brows, nose and mouth; neck reaches under skin and
under cloth, hair over skin and cloth, so that the painting order shows. Every few faces have a hat, glasses, an ear
ring or a necklace, which no class takes.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.mini_world import STREAM, render

FOLDER = "CelebAMask-HQ"
HEADER = "idx         orig_idx    orig_file"


@dataclass(frozen=True)
class TwinFace:
    """What was written for one face: its index, CelebA index, official split and the attributes that it has."""

    index: int
    celeba: int
    split: str
    attributes: tuple[str, ...]


def celeba_index(index: int) -> int:
    """Of ten faces eight are for training, one for validation, one for testing; the first of each are the limits."""
    place, step = index % 10, index // 10
    if place == 8:
        return 162_771 + step if step != 1 else 182_637  # the first and the last of the validation faces
    return 182_638 + step if place == 9 else 162_770 - index


def face_masks(index: int, size: int) -> dict[str, np.ndarray]:
    """The attribute masks of a face, bool [size,size], in an order of no meaning; only those with any pixel."""
    cells = np.arange(size) * 128 // size
    label = render("face", STREAM, index).label[np.ix_(cells, cells)]
    skin, eye, mouth, nose, brow, ear, neck, cloth, hair = (label == value for value in range(1, 10))
    reach = max(1, size // 32)
    face = skin | eye | brow | nose | mouth
    masks = {
        "hair": hair | (_shifted(hair, reach) & (face | ear | cloth)),
        "skin": face,
        "nose": nose,
        "neck": neck | (_shifted(neck, -reach) & face) | (_shifted(neck, reach) & cloth),
        "cloth": cloth,
    }
    for name, both in (("eye", eye), ("brow", brow), ("ear", ear)):
        right, left = _halves(both)
        masks |= {f"r_{name}": right, f"l_{name}": left}
    rows = np.flatnonzero(mouth.any(axis=1))
    upper, lower = (rows[len(rows) // 3], rows[len(rows) * 2 // 3]) if len(rows) else (0, 0)
    down = np.arange(size)[:, None]
    masks |= {"u_lip": mouth & (down < upper), "l_lip": mouth & (down >= lower)}
    masks["mouth"] = mouth & (down >= upper) & (down < lower)
    if index % 5 == 1:
        masks["hat"] = masks["hair"] & (down < size // 3)
    if index % 5 == 2:
        masks["eye_g"] = _grown(eye, reach)
    if index % 5 == 3:
        masks["ear_r"] = _shifted(ear, reach) & ~ear
    if index % 5 == 4:
        masks["neck_l"] = neck & (down % 4 == 0)
    return {name: mask for name, mask in masks.items() if mask.any()}


def write_celebamask_twin(
    root: Path, faces: int, *, size: int = 64, image_size: int | None = None, distinct: int | None = None
) -> list[TwinFace]:
    """Write `faces` faces below `root`, which becomes the folder that the real archive unpacks to.

    Args:
        root: folder to make, usually called `CelebAMask-HQ`.
        faces: how many, numbered from 0.
        size: side of the masks; 512 in the real one.
        image_size: side of the images; twice the masks' by default, as in the real one (1024).
        distinct: renderings after which they repeat (a quick way to thousands of faces); by default none repeats.

    Returns:
        the faces, in order.
    """
    (root / "CelebA-HQ-img").mkdir(parents=True)
    written, lines = [], [HEADER]
    for index in range(faces):
        image, masks = _files(index % (distinct or faces), size, image_size or 2 * size)
        (root / "CelebA-HQ-img" / f"{index}.jpg").write_bytes(image)
        folder = root / "CelebAMask-HQ-mask-anno" / str(index // 2000)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in masks.items():
            (folder / f"{index:05d}_{name}.png").write_bytes(content)
        celeba = celeba_index(index)
        lines.append(f"{index:<11} {celeba:<11} {celeba + 1:06d}.jpg")
        split = "test" if index % 10 == 9 else "val" if index % 10 == 8 else "support"
        written.append(TwinFace(index, celeba, split, tuple(masks)))
    (root / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(lines) + "\n")
    (root / "README.txt").write_text("a synthetic twin\n")
    (root / "CelebAMask-HQ-pose-anno.txt").write_text(f"{faces}\nYaw Pitch Raw\n")
    return written


@functools.lru_cache(maxsize=64)
def _files(rendering: int, size: int, image_size: int) -> tuple[bytes, dict[str, bytes]]:
    """JPEG of the image, and PNG of each mask, by turns with three channels and with one."""
    picture = Image.fromarray(render("face", STREAM, rendering).image)
    image = _encoded(picture.resize((image_size, image_size), Image.Resampling.BICUBIC), "JPEG", quality=95)
    masks = {}
    for number, (name, mask) in enumerate(face_masks(rendering, size).items()):
        grey = Image.fromarray(np.uint8(255) * mask)
        masks[name] = _encoded(grey if (rendering + number) % 3 == 0 else grey.convert("RGB"), "PNG", compress_level=1)
    return image, masks


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _shifted(mask: np.ndarray, rows: int) -> np.ndarray:
    """Down by `rows`, or up where negative; nothing comes in from the edge."""
    moved = np.zeros_like(mask)
    if rows >= 0:
        moved[rows:] = mask[: len(mask) - rows]
    else:
        moved[:rows] = mask[-rows:]
    return moved


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    grown = mask | _shifted(mask, by) | _shifted(mask, -by)
    return grown | _shifted(grown.T, by).T | _shifted(grown.T, -by).T


def _halves(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(left, right) of the mask's mean column: the subject's right eye lies on the left of the picture."""
    columns = np.flatnonzero(mask.any(axis=0))
    middle = columns.mean() if len(columns) else 0
    across = np.arange(mask.shape[1])[None, :]
    return mask & (across < middle), mask & (across >= middle)

"""A small PASCAL VOC 2012 in its raw layout: scenes of upright rectangles, one for each class, with void rims.

<root>/VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation/{train,val,trainval}.txt}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 21
SIZE = (72, 96)  # height, width
Scene = Mapping[int, int]
"""Label -> side of its square in pixels; squares stand side by side, each with a rim of void."""


def alone(labels: Sequence[int], side: int = 24) -> list[Scene]:
    """One scene for each label, with nothing else in it."""
    return [{label: side} for label in labels]


def label_map(scene: Scene, size: tuple[int, int] = SIZE) -> np.ndarray:
    """uint8 [H,W] of a scene: squares from left to right, one pixel of 255 round each."""
    label = np.zeros(size, np.uint8)
    left = 1
    for value, side in scene.items():
        if left + side + 1 > size[1] or side + 2 > size[0]:
            raise ValueError(f"the squares {dict(scene)} do not fit into {size}")
        label[0 : side + 2, left - 1 : left + side + 1] = 255
        label[1 : side + 1, left : left + side] = value
        left += side + 2
    return label


def palette() -> list[int]:
    """VOC's 256 colours: the bits of the index, dealt out to red, green and blue from the highest bit down."""
    colours = []
    for index in range(256):
        colour = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                colour[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit) if 3 * bit + channel < 8 else 0
        colours += colour
    return colours


def picture(label: np.ndarray, seed: int) -> np.ndarray:
    """uint8 [H,W,3]: a colour for each label, and blocks of noise, so that no two are alike."""
    colours = np.array(palette(), np.int64).reshape(256, 3)
    rows, columns = (-(-each // 12) for each in label.shape)
    blocks = np.random.default_rng(seed).integers(-60, 61, (rows, columns, 3)).repeat(12, 0).repeat(12, 1)
    return np.clip(80 + colours[label] // 3 + blocks[: label.shape[0], : label.shape[1]], 5, 255).astype(np.uint8)


def write_voc_twin(
    root: Path,
    train: Sequence[Scene] | None = None,
    val: Sequence[Scene] | None = None,
    size: tuple[int, int] = SIZE,
) -> dict[str, list[str]]:
    """Write the twin; by default three images of each class to train on, and three of several classes to test on.

    Returns:
        the ids of each list.
    """
    base = root / "VOCdevkit" / "VOC2012"
    labels = range(1, CLASSES)
    scenes = {
        "train": list(train) if train is not None else [scene for _ in range(3) for scene in alone(labels)],
        "val": list(val) if val is not None else [{1: 20, 15: 12}, {7: 30}, {20: 16, 12: 16, 3: 16}],
    }
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / name).mkdir(parents=True, exist_ok=True)
    ids: dict[str, list[str]] = {}
    for split, (name, own) in enumerate(scenes.items()):
        ids[name] = [f"{2007 + split}_{index:06d}" for index in range(len(own))]
        for index, (key, scene) in enumerate(zip(ids[name], own, strict=True)):
            label = label_map(scene, size)
            Image.fromarray(picture(label, 1000 * split + index)).save(base / "JPEGImages" / f"{key}.jpg", quality=95)
            indexed = Image.fromarray(label).convert("P")
            indexed.putpalette(palette())
            indexed.save(base / "SegmentationClass" / f"{key}.png")
        (base / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(ids[name]) + "\n")
    both = "\n".join(sorted([*ids["train"], *ids["val"]])) + "\n"
    (base / "ImageSets" / "Segmentation" / "trainval.txt").write_text(both)
    return ids

"""CelebAMask-HQ's 18 attributes -> the ten classes of SLiMe's face table.

The attribute masks overlap, and the sources differ in the order in which they are painted. It is a named choice:

slime            the lab's first code of SLiMe (github sfu-mial/SLiMe, src/datasets/celeba_hq_dataset.py): class after
                 class in label order, later wins
regan            ReGAN (github trolytrol/RepurposingGANs): hair, brow, eye, mouth, nose, skin, ear, neck, cloth, the
                 first wins
celeba_authors   the data set's own code (github switchablenorms/CelebAMask-HQ, g_mask.py): in order of the attributes,
                 later wins

`hat`, `eye_g` (glasses), `ear_r` (ear ring) and `neck_l` (necklace) are no class: what lies under them shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

CLASSES: Final = ("background", "skin", "eye", "mouth", "nose", "brow", "ear", "neck", "cloth", "hair")

ATTRIBUTES: Final = (
    "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "mouth", "u_lip", "l_lip", "hair",
    "hat", "ear_r", "neck_l", "neck", "cloth",
)  # fmt: skip
"""In the data set's own order: attribute i has the value i + 1 in label maps of all attributes, 0 is background."""

CLASS_OF: Final = {
    "skin": "skin", "l_eye": "eye", "r_eye": "eye", "mouth": "mouth", "u_lip": "mouth", "l_lip": "mouth",
    "nose": "nose", "l_brow": "brow", "r_brow": "brow", "l_ear": "ear", "r_ear": "ear", "neck": "neck",
    "cloth": "cloth", "hair": "hair",
}  # fmt: skip
IGNORED: Final = tuple(name for name in ATTRIBUTES if name not in CLASS_OF)

_REGAN_FIRST_WINS = ("hair", "brow", "eye", "mouth", "nose", "skin", "ear", "neck", "cloth")


def _by_class(classes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for each in classes for name in ATTRIBUTES if CLASS_OF.get(name) == each)


PAINTING: Final[Mapping[str, tuple[str, ...]]] = {
    "slime": _by_class(CLASSES),
    "regan": _by_class(_REGAN_FIRST_WINS[::-1]),
    "celeba_authors": tuple(name for name in ATTRIBUTES if name in CLASS_OF),
}
"""Name of the order -> attributes as they are painted, each over those before it."""


def merge(masks: Mapping[str, np.ndarray], order: str) -> np.ndarray:
    """The attribute masks of one face, painted in an `order` of `PAINTING`: uint8 [H,W], indices into `CLASSES`.

    Args:
        masks: attribute -> bool [H,W], all of one size; absent attributes may be left out, at least one is there.
    """
    label = np.zeros(next(iter(masks.values())).shape, np.uint8)
    for name in PAINTING[order]:
        if name in masks:
            np.putmask(label, masks[name], CLASSES.index(CLASS_OF[name]))
    return label

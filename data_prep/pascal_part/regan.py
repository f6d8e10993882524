"""ReGAN's car test set, `Car_TestSet/{image_bg,image_no_bg,gt_mask}`: pictures beside RGB ground truth.

The authors of SLiMe compare colours exactly (SLiMe-lab `paper_test_sample_dataset.py`), and so do we: white, black and
the few colours of anything else are background, counted as `unknown_pixels`. A ground truth with more than
`MOST_STRANGERS` unknown colours is refused: it was resized or saved as JPEG, and its true labels are gone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from data_prep.pascal_part.files import read_picture
from data_prep.pascal_part.merge import class_names
from slime_bench.data.label_maps import counted, pack, relabelled
from slime_bench.errors import LabelError

COLOURS: Final = {
    "body": (255, 52, 255),
    "light": (255, 74, 70),
    "plate": (0, 137, 65),
    "wheel": (255, 255, 0),
    "window": (28, 230, 255),
}
MOST_STRANGERS: Final = 16
_BACKGROUND: Final = {(0, 0, 0): 0, (255, 255, 255): 0}


def read_pair(image: Path, truth: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """(picture uint8 [H,W,3], label map uint8 [H,W], pixels of unknown colour).

    Raises:
        DataError, LabelError: an unreadable file, two sizes, or a ground truth that lost its colours.
    """
    known = _BACKGROUND | {COLOURS[name]: index for index, name in enumerate(class_names("car")) if name in COLOURS}
    labels = {int(pack(np.array(colour))): index for colour, index in known.items()}
    values = pack(read_picture(truth))
    strange = values[~np.isin(values, list(labels))]
    if len(np.unique(strange)) > MOST_STRANGERS:
        raise LabelError(
            "the ground truth holds colours of no class",
            path=truth,
            found=counted(strange, coloured=True),
            expected=", ".join(f"{name} {colour}" for name, colour in COLOURS.items()),
            remedy="take the original PNG files: resized or JPEG copies have lost their labels",
        )
    label = relabelled(values, labels)  # 0 for a colour that is none of them
    return read_picture(image, label.shape), label.astype(np.uint8), len(strange)

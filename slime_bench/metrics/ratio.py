"""Every convention as a ratio of two sums over images, on NumPy arrays: what resampling images needs, free of torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slime_bench.errors import ConfigError
from slime_bench.metrics import CONVENTION_RULES

Array = NDArray[Any]
Floats = NDArray[np.float64]


def ratio_terms(intersection: Array, union: Array, present: Array, convention: str) -> tuple[Floats, Floats]:
    """Numerator and denominator of each image: a class's IoU is the sum of the one over the sum of the other.

    Of an image that is drawn m times both count m times, so that one matrix product gives the IoU of many resamples.
    The results of trials come from `metrics.iou`, whose sums are exact; these agree with them up to rounding.

    Args:
        intersection, union, present: as in `metrics.iou.IouCounts`, [N,K].
        convention: a name of `CONVENTION_RULES`.

    Returns:
        Two arrays [N,K], float64: pixels for `dataset`; otherwise the image's IoU and 1 where the image counts for the
        class, 0 and 0 where it does not.

    Raises:
        ConfigError: an unknown convention.
    """
    if convention == "dataset":
        return intersection.astype(np.float64), union.astype(np.float64)
    if convention == "slime":
        # As the authors do: an image that holds nothing but the background is left out.
        keep = present & present[:, 1:].any(axis=1, keepdims=True)
    elif convention == "present_or_predicted":
        keep = union > 0
    else:
        raise ConfigError(
            "Unknown metric convention.", path="metric.convention", found=convention,
            expected=" or ".join(CONVENTION_RULES),
        )  # fmt: skip
    iou = intersection / np.maximum(union, 1)
    return np.where(keep, iou, 0.0), keep.astype(np.float64)

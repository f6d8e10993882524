"""Intersection over union: counted once per image and class, then reduced by a named convention.

Three conventions give three numbers on the same predictions (0.750, 0.583 and 0.500 on one small example), so the
counts [N,K] are the record and a convention is only a short reduction of them: tables can be made again under another
convention without running a model.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from slime_bench.errors import ConfigError, LabelError

IGNORE: int = 255
"""Label of the pixels that count neither for nor against any class."""


@dataclass(frozen=True, eq=False)
class IouCounts:
    """Pixel counts of N images and K classes.

    Attributes:
        intersection: [N,K] int64, pixels that are the class in both prediction and ground truth.
        union: [N,K] int64, pixels that are the class in at least one of them.
        present: [N,K] bool, whether the ground truth of the image has the class at all.
    """

    intersection: Tensor
    union: Tensor
    present: Tensor

    def __post_init__(self) -> None:
        shapes = [tuple(part.shape) for part in (self.intersection, self.union, self.present)]
        if len(shapes[0]) != 2 or len(set(shapes)) != 1:
            raise LabelError("The IoU counts do not fit together.", found=shapes, expected="three tensors [N,K]")

    @property
    def num_images(self) -> int:
        return int(self.union.shape[0])

    @property
    def num_classes(self) -> int:
        return int(self.union.shape[1])

    def cpu(self) -> IouCounts:
        """The same counts on the CPU."""
        return IouCounts(self.intersection.cpu(), self.union.cpu(), self.present.cpu())


def intersection_union(
    prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int | None = IGNORE
) -> IouCounts:
    """Intersections and unions of a batch: `IouCounts` [B,K] on the inputs' device; see `confusion` for the rest."""
    return from_confusion(confusion(prediction, target, num_classes, ignore_index))


def confusion(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int | None = IGNORE) -> Tensor:
    """Pixels of each image of a batch by label and prediction, counted by one `bincount`.

    Args:
        prediction: [B,H,W] integers in 0..K-1, at the ground truth's size.
        target: [B,H,W] integers in 0..K-1 or `ignore_index`.
        num_classes: K, background included.
        ignore_index: label whose pixels do not count at all; `None` for none.

    Returns:
        [B,K,K] int64 (image, label, prediction) on the inputs' device.

    Raises:
        LabelError: other shapes, other types than integers, or a value outside the classes.
    """
    _check_maps(prediction, target)
    batch = prediction.shape[0]
    # int64 before any arithmetic: the combined index overflows uint8, and bincount wants int64.
    truth, guess = target.reshape(batch, -1).long(), prediction.reshape(batch, -1).long()
    valid = torch.ones_like(truth, dtype=torch.bool) if ignore_index is None else truth != ignore_index
    _check_values(truth, valid, num_classes, "ground truth", ignore_index)
    _check_values(guess, valid, num_classes, "prediction", None)

    image = torch.arange(batch, device=truth.device)[:, None]
    cell = (image * num_classes + truth) * num_classes + guess
    cells = batch * num_classes * num_classes
    # Ignored pixels go to one bin behind the last: masked selection would give a shape that depends on the data.
    counted = torch.bincount(torch.where(valid, cell, cells).flatten(), minlength=cells + 1)[:cells]
    return counted.reshape(batch, num_classes, num_classes)


def from_confusion(pixels: Tensor) -> IouCounts:
    """`IouCounts` [N,K] of the matrices [N,K,K] of `confusion`."""
    intersection = pixels.diagonal(dim1=1, dim2=2)
    true_pixels = pixels.sum(dim=2)
    union = true_pixels + pixels.sum(dim=1) - intersection
    return IouCounts(intersection.contiguous(), union, true_pixels > 0)


def concatenate(parts: Sequence[IouCounts]) -> IouCounts:
    """The counts of several batches as one, in the order given.

    Raises:
        LabelError: nothing to join, or batches of different class counts.
    """
    if not parts:
        raise LabelError("There are no IoU counts to join.", expected="at least one batch of test images")
    if len({part.num_classes for part in parts}) > 1:
        found = sorted({part.num_classes for part in parts})
        raise LabelError("IoU counts of different class lists cannot be joined.", found=f"class counts {found}")
    return IouCounts(
        torch.cat([part.intersection for part in parts]),
        torch.cat([part.union for part in parts]),
        torch.cat([part.present for part in parts]),
    )


def reduce_slime(counts: IouCounts, keep_background_only: bool = False) -> Tensor:
    """SLiMe's rule: IoU per image, averaged over the images whose ground truth has the class.

    A false alarm on an absent class costs that class nothing. As in the authors' test step, an image that holds
    nothing but class 0 is left out; their validation step keeps it (`keep_background_only`).

    Returns:
        [K] float64 in 0..1 on the CPU, NaN for a class that no image has.
    """
    present = counts.present
    if not keep_background_only:
        present = present & present[:, 1:].any(dim=1, keepdim=True)
    return _mean_over_images(counts, present)


def reduce_dataset(counts: IouCounts) -> Tensor:
    """One confusion matrix over the data set: sum of intersections / sum of unions (`MulticlassJaccardIndex`).

    Returns:
        [K] float64 in 0..1 on the CPU, NaN for a class that is neither present nor predicted anywhere.
    """
    union = counts.union.sum(dim=0).cpu().double()
    return counts.intersection.sum(dim=0).cpu().double() / union  # 0 / 0 is NaN


def reduce_present_or_predicted(counts: IouCounts) -> Tensor:
    """IoU per image, averaged over the images with a union (torchmetrics' `MeanIoU` per class).

    A false alarm on an absent class counts as 0.

    Returns:
        [K] float64 in 0..1 on the CPU, NaN for a class that is neither present nor predicted anywhere.
    """
    return _mean_over_images(counts, counts.union > 0)


CONVENTIONS: dict[str, Callable[[IouCounts], Tensor]] = {
    "slime": reduce_slime,
    "dataset": reduce_dataset,
    "present_or_predicted": reduce_present_or_predicted,
}


def reduction(name: str) -> Callable[[IouCounts], Tensor]:
    """The reduction called `name`.

    Raises:
        ConfigError: no such convention.
    """
    if name not in CONVENTIONS:
        near = difflib.get_close_matches(name, CONVENTIONS, n=1, cutoff=0.0)
        raise ConfigError(
            "Unknown metric convention.", path="metric.convention", found=name, expected=" or ".join(CONVENTIONS),
            remedy=f"Did you mean metric.convention={near[0]}?" if near else None,
        )  # fmt: skip
    return CONVENTIONS[name]


def mean_iou(per_class: Tensor, background: bool = True) -> float:
    """Plain mean over the defined classes of `per_class` [K]; NaN when none is defined.

    Args:
        per_class: [K] IoU in 0..1, NaN where undefined.
        background: whether class 0 takes part, as it does in the paper's tables.
    """
    values = per_class.tolist() if background else per_class.tolist()[1:]
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def image_score(counts: IouCounts) -> float:
    """Score by which SLiMe chooses its embeddings: per image the mean IoU of the classes present, then over images.

    It is the authors' validation rule (background included, background-only images kept) and not one of the table's
    conventions. NaN when no image has any labelled pixel.
    """
    iou, present = _iou(counts), counts.present.cpu()
    scores = []
    for row, here in zip(iou.tolist(), present.tolist(), strict=True):
        values = [value for value, keep in zip(row, here, strict=True) if keep]
        if values:
            scores.append(math.fsum(values) / len(values))
    return math.fsum(scores) / len(scores) if scores else math.nan


class IouMetric(Metric):
    """Keeps the counts of every image, and the confusion matrix of all; the mathematics is in this module's functions.

    Args:
        num_classes: K, background included.
        convention: a name of `CONVENTIONS`, used by `compute`.
        ignore_index: label whose pixels do not count.

    Attributes:
        confusion: [K,K] int64, pixels of all images so far: rows = label, columns = prediction.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    intersection: list[Tensor]
    union: list[Tensor]
    present: list[Tensor]
    confusion: Tensor

    def __init__(
        self, num_classes: int, convention: str = "slime", ignore_index: int | None = IGNORE, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.convention = convention
        self._reduce = reduction(convention)
        for name in ("intersection", "union", "present"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        none = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("confusion", default=none, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds a batch: both [B,H,W] integers, see `confusion`."""
        pixels = confusion(prediction, target, self.num_classes, self.ignore_index)
        self.confusion = self.confusion.to(pixels.device) + pixels.sum(dim=0)  # where the label maps are
        counts = from_confusion(pixels)
        self.intersection.append(counts.intersection)
        self.union.append(counts.union)
        self.present.append(counts.present)

    def compute(self) -> Tensor:
        """IoU per class [K] float64 in 0..1, NaN where undefined."""
        return self._reduce(self.counts())

    def counts(self) -> IouCounts:
        """The counts so far, [N,K], in the order of the updates."""
        if isinstance(self.union, list) and not self.union:
            empty = torch.zeros(0, self.num_classes, dtype=torch.int64, device=self.device)
            return IouCounts(empty, empty, empty.bool())
        return IouCounts(dim_zero_cat(self.intersection), dim_zero_cat(self.union), dim_zero_cat(self.present))


def _iou(counts: IouCounts) -> Tensor:
    """[N,K] float64 on the CPU; NaN where the union is empty."""
    return counts.intersection.cpu().double() / counts.union.cpu().double()


def _mean_over_images(counts: IouCounts, keep: Tensor) -> Tensor:
    """Mean of the IoU of the images that `keep` [N,K] marks, per class: [K] float64, NaN where none is marked.

    `fsum` rounds once, so neither the images' order nor the thread count can change the last bit of a result file.
    """
    iou, keep = _iou(counts), keep.cpu()
    means = []
    for index in range(counts.num_classes):
        values = iou[keep[:, index], index].tolist()
        means.append(math.fsum(values) / len(values) if values else math.nan)
    return torch.tensor(means, dtype=torch.float64)


def _check_maps(prediction: Tensor, target: Tensor) -> None:
    if prediction.ndim != 3 or prediction.shape != target.shape:
        raise LabelError(
            "Prediction and ground truth do not have the same shape.",
            found=f"prediction {tuple(prediction.shape)}, ground truth {tuple(target.shape)}",
            expected="two label maps [B,H,W]",
            remedy="Resize the score maps to the label map before the argmax.",
        )
    for name, labels in (("prediction", prediction), ("ground truth", target)):
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise LabelError(f"The {name} is not a label map.", found=labels.dtype, expected="integers, e.g. int64")


def _check_values(labels: Tensor, valid: Tensor, num_classes: int, name: str, ignore_index: int | None) -> None:
    wrong = valid & ((labels < 0) | (labels >= num_classes))
    if not bool(wrong.any()):
        return
    found = torch.unique(labels[wrong]).tolist()
    images = wrong.any(dim=1).nonzero().flatten().tolist()
    ignored = "" if ignore_index is None else f", or {ignore_index} (ignored)"
    raise LabelError(
        f"The {name} has labels outside the classes.",
        found=f"{found[:16]} in image(s) {images[:16]} of the batch",
        expected=f"0..{num_classes - 1}{ignored}",
        remedy="Check that `data.classes` lists every class of the label maps, background first.",
    )

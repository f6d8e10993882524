"""Comparisons that need no model: metric, patch boxes, random crops. For the golden folder and the small one alike."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slime_bench.data.augment import choose_crop, crop_side
from slime_bench.data.config import Augmentation
from slime_bench.methods.slime.config import patch_boxes
from slime_bench.metrics.iou import image_score, intersection_union, mean_iou, reduce_slime
from tests.parity.golden import Arrays
from tests.parity.table import Checks

Cases = Sequence[dict[str, Any]]


def utilities(folder: Path, name: str) -> list[dict[str, Any]]:
    """The cases of one function of the authors' utilities."""
    cases: list[dict[str, Any]] = json.loads((folder / "utils.json").read_text())[name]
    assert cases, f"{folder}/utils.json has no case of {name}"
    return cases


def check_metric(check: Checks, want: Arrays, bar: float) -> None:
    """IoU per image and class, per class, per image; the validation score; the means over classes."""
    prediction, label = (want.tensor(name).long() for name in ("predictions", "masks"))
    num_classes = len(want["test_iou_epoch"])
    counts = intersection_union(prediction, label, num_classes)
    single = [intersection_union(p[None], m[None], num_classes) for p, m in zip(prediction, label, strict=True)]
    for name, background_only in (("test", False), ("val", True)):
        per_image = torch.stack([reduce_slime(each, background_only) for each in single])
        check.absolute(f"{name}_iou_per_image", per_image, want[f"{name}_iou_per_image"], bar)
        check.absolute(f"{name}_iou_epoch", reduce_slime(counts, background_only), want[f"{name}_iou_epoch"], bar)
        if name == "test":
            check.exactly("test_n_images", (~per_image.isnan()).sum(0), want["test_n_images"])
    scores = torch.tensor([image_score(each) for each in single])
    check.absolute("val_mean_iou_per_image", scores, want["val_mean_iou_per_image"], bar)
    for name in ("val_mean_iou_epoch", "val_selection_score"):
        check.absolute(name, torch.tensor([image_score(counts)]), want[name], bar)
    means = [mean_iou(reduce_slime(counts), background) for background in (True, False)]
    check.absolute("derived_mean_over_parts", torch.tensor(means), want["derived_mean_over_parts"], bar)


def check_patch_boxes(check: Checks, cases: Cases) -> None:
    """Test patches: (y0, y1, x0, x1), row by row."""
    for case in cases:
        (height, width), patch, count = case["image_size"], case["patch_size"], case["num_patchs_per_side"]
        found = patch_boxes((height, width), patch, count)
        check.exactly(f"{count}x{patch} in {height}x{width}", found, case["boxes_y0_y1_x0_x1"], "boxes_y0_y1_x0_x1")


def check_random_crops(check: Checks, cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    """Side and place of the training crop, from the draws that the authors' generator made for the recorded boxes.

    Ours draws three numbers in [0,1) where theirs draws one and two whole numbers; both reach the same places.
    """
    for case in cases:
        (low, high), height, width = case["crop_scale_range"], case["image_height"], case["image_width"]
        if low == 1 and height != width:
            continue  # without a crop ours keeps the whole image, theirs a square; the bench's images are squares
        settings = Augmentation(crop_ratio=[low, high], crop_keep="nothing")
        draws = random.Random(case["python_random_seed"])
        for index, (x0, x1, y0, y1) in enumerate(case["calls"]):
            ratio, x, y = draws.random(), 0, 0
            side = crop_side(low + (high - low) * ratio, height, width)
            if side < min(height, width):
                x, y = draws.randint(0, width - side), draws.randint(0, height - side)
            fractions = (y + 0.5) / (height - side + 1), (x + 0.5) / (width - side + 1)
            row = torch.tensor([[ratio, *fractions]], dtype=torch.float64)
            with monkeypatch.context() as patched:
                patched.setattr(torch, "rand", lambda tries, *_, row=row, **__: row.expand(tries, 3))
                top, left, rows, columns = choose_crop(torch.zeros(height, width).long(), settings, torch.Generator())
            name = f"{low}..{high} of {height}x{width} [{index}]"
            check.exactly(name, (left, left + columns, top, top + rows), (x0, x1, y0, y1), "x0,x1,y0,y1")


def check_iou_cases(check: Checks, cases: Cases, bar: float) -> None:
    """Two-class corner cases; where both are empty the authors' 0 is never averaged in, and ours is undefined."""
    for case in cases:
        prediction, label = (torch.tensor(case[name]).reshape(1, 1, -1) for name in ("prediction", "mask"))
        counts = intersection_union(prediction, label, 2)
        found, name = float(counts.intersection[0, 1] / counts.union[0, 1]), f"{case['prediction']} in {case['mask']}"
        if counts.union[0, 1]:
            check.absolute(name, found, case["iou"], bar, "iou")
        else:
            check.exactly(name, (np.isnan(found), bool(counts.present[0, 1])), (True, False), "undefined and absent")

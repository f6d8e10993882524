"""The second paper's transform, prompts and choice of supports against its authors' code: golden README, 1, 5 and 6.

pytest tests/parity/test_infoscore_transform.py        prints array, error, tolerance
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from slime_bench.data.config import OPENCV_FLOAT, PAD_FLOOR8
from slime_bench.data.reading import Sample
from slime_bench.data.support import Example, authors_support
from slime_bench.data.transforms import fit_image, fit_sample, fitted_size, unfit
from slime_bench.errors import DataError
from slime_bench.methods.infoscore.prompts import PromptFile
from tests.parity.golden_infoscore import MEAN, STD, Golden, open_golden
from tests.parity.table import Checks

NORMALISED = 5e-5  # README, section 7: transformed image
LEAST = 16384  # README, section 5: pixels of a support's class


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest) -> Golden:
    return open_golden(request)


@pytest.fixture
def checks(record_property: Callable[[str, object], None]) -> Callable[..., Checks]:
    return lambda source, where="": Checks(record_property, source, where)


def normalised(image: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (image.float() / 255 - mean) / std


def test_transformed_images_and_labels(golden: Golden, checks: Callable[..., Checks]) -> None:
    arrays, cases = golden.arrays("transform"), golden.meta["transform_cases"]
    with checks("transform.npz") as check:
        for case in cases:
            name, side = f"t{case['case']}", int(case["size"])
            image, label = arrays[f"{name}_image"], arrays[f"{name}_label"].astype(np.int64)
            size = (int(case["new_h"]), int(case["new_w"]))
            found = fit_sample(Sample(name, image, label), side, OPENCV_FLOAT, PAD_FLOOR8)
            file_size = (image.shape[0], image.shape[1])
            check.exactly(f"{name} size", fitted_size(file_size, side, PAD_FLOOR8), size, "sizes")
            check.absolute(
                f"{name} image", normalised(found.image), arrays[f"{name}_out_image"], NORMALISED, "normalised images"
            )
            check.exactly(f"{name} label", found.label.numpy(), arrays[f"{name}_out_label"], "labels")
            padding = torch.ones(side, side, dtype=torch.bool)
            padding[: size[0], : size[1]] = False
            check.exactly(f"{name} padding", found.image[:, padding].abs().sum(), 0, "padded pixels, raw")
            back = unfit(found.image, file_size, PAD_FLOOR8)
            check.exactly(f"{name} back", tuple(back.shape), (3, *file_size), "size after unfit")
    assert len(cases) > 1


def test_sizes_alone(golden: Golden, checks: Callable[..., Checks]) -> None:
    with checks("meta") as check:
        for name, expected in golden.meta["transform_sizes_only"].items():
            side, height, width = (int(each) for each in re.findall(r"\d+", name))
            found = fitted_size((height, width), side, PAD_FLOOR8)
            check.exactly(name, found, tuple(expected), "transform_sizes_only")


def test_images_that_are_too_long_are_refused(golden: Golden) -> None:
    """Where the authors' code stops with OpenCV's error, ours says what to do."""
    names = [key for key in golden.meta if key.startswith("transform_extreme_")]
    for name in names:
        height, width, side = (int(each) for each in re.findall(r"\d+", name))
        with pytest.raises(DataError, match="too long") as caught:
            fit_image(np.zeros((height, width, 3), np.uint8), side, OPENCV_FLOAT, PAD_FLOOR8)
        assert f"{width}x{height}" in str(caught.value.found) and caught.value.remedy
    if not names:
        pytest.skip("this golden folder names no image that is too long")


def test_the_evaluation_images(golden: Golden, checks: Callable[..., Checks]) -> None:
    """inputs.npz holds what the authors' data set made of the first files of val_list.txt."""
    lines = [line.split() for line in (golden.folder / "val_list.txt").read_text().splitlines() if line.strip()]
    side = golden.size[0]
    with checks("inputs.npz") as check:
        for index, (image_name, label_name) in enumerate(lines[: len(golden.images)]):
            image = np.array(Image.open(golden.folder / image_name).convert("RGB"))
            label = np.array(Image.open(golden.folder / label_name)).astype(np.int64)
            found = fit_sample(Sample(image_name, image, label), side, OPENCV_FLOAT, PAD_FLOOR8)
            check.absolute(image_name, normalised(found.image), golden.images[index], NORMALISED, "images")
            check.exactly(label_name, found.label.numpy(), golden.labels[index].numpy(), "labels")


def test_prompts_and_spans(golden: Golden, checks: Callable[..., Checks]) -> None:
    """The authors' class file, written as one of ours, gives their prompts."""
    first, *others = json.loads((golden.folder / "classes.json").read_text())
    related = {each["name"]: list(each.get("related_word", ())) for each in others}
    file = PromptFile("Image of {}.", [first["name"], *first.get("related_word", ())], related)
    with checks("meta") as check:
        for mode in golden.modes:
            found = file.expand(golden.classes(mode), mode == "multi")
            check.exactly(f"{mode} prompts", found.texts, golden.prompts(mode), "prompts")
            check.exactly(f"{mode} spans", found.spans, golden.spans(mode), "spans")


def test_supports_and_queries_of_every_run(golden: Golden, checks: Callable[..., Checks]) -> None:
    """The order of supports and what is left as queries, run by run; one support for each class."""
    lines = [line.split() for line in (golden.folder / "oneshot_list.txt").read_text().splitlines() if line.strip()]
    counts = torch.stack(
        [
            torch.from_numpy(np.array(Image.open(golden.folder / label))).flatten().long().bincount(minlength=256)
            for _, label in lines
        ]
    )[:, : len(golden.classes(golden.modes[0]))].numpy()  # fmt: skip
    tunings: dict[str, Any] = {key: value for key, value in golden.meta.items() if re.fullmatch(r"oneshot_\w+", key)}
    assert tunings
    with checks("meta") as check:
        for name, facts in tunings.items():
            for run, expected in enumerate(facts["support_order"]):
                found = authors_support(counts, 1, run, LEAST)
                check.exactly(f"{name}, run {run}", [lines[each.index][0] for each in found], expected, "support_order")
                gone = {each.index for each in found if each.only is None}
                left = [
                    image for index, (image, _) in enumerate(lines) if index not in gone and counts[index, 1:].any()
                ]
                check.exactly(f"{name}, run {run}", left, facts["query_order"][run], "query_order")
    assert Example(3).only is None

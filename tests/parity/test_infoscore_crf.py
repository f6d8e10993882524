"""The CRF against numbers made by InfoScore's authors' code: shared/golden/infoscore, or the folder that the
environment names (SLIME_BENCH_GOLDEN_INFOSCORE).

Settings of every case, images, class maps, modes and sizes are whatever the folder holds. The end of the run prints
array, error, tolerance.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from slime_bench.refine.crf import CrfConfig, CrfKernel, crf_kernel, mean_field
from tests.parity.golden_infoscore import Golden, chosen_folder, open_golden
from tests.parity.table import Checks

# Bars of the folder's README, relative to the largest value of the array: messages add up to hundreds.
OUTPUT = 5e-5
NEAR_TIE = 5e-5

STATISTICS: Mapping[str, Callable[[np.ndarray], float]] = {
    "mean": np.mean, "std": np.std, "min": np.min, "max": np.max,
}  # fmt: skip
"""What a row of checksums begins with; then follow single values."""

FOUND = Golden(chosen_folder())
CASES = list(FOUND.meta.get("crf_standalone_cases", {})) or ["none"]  # with `none` the fixture says what is missing
MODES = FOUND.modes or ["none"]

Start = Callable[..., Checks]


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest) -> Golden:
    return open_golden(request)


def settings(golden: Golden, case: Mapping[str, Any] | None = None) -> CrfConfig:
    """The authors' configuration in our words, with what a stand-alone case changes of it."""
    theirs = {**golden.meta["crf_config"], **(case or {})}
    position, colour = theirs["pos_feats"], theirs["col_feats"]
    return CrfConfig(
        window=theirs["filter_size"],
        blur=theirs["blur"],
        iterations=theirs["iterations"] if case else iterations(golden),
        unary_weight=theirs["unary_weight"] * (1 - theirs["weight_init"]),
        message_weight=theirs["weight_init"],
        position_scale=position["sdims"],
        position_weight=position["compat"],
        colour_scale=colour["schan"],
        colour_weight=colour["compat"],
        final_softmax=theirs["final_softmax"],
    )


def iterations(golden: Golden) -> int:
    """Rounds of the runs over whole folders: stands in the arrays' descriptions alone."""
    found = {re.search(r"(\d+) iterations", golden.arrays(f"crf_{mode}").text("crf_out")) for mode in golden.modes}
    counts = {int(match[1]) for match in found if match}
    if len(counts) != 1:
        raise LookupError(f"the descriptions of crf_out name {sorted(counts)} iterations")
    return counts.pop()


@pytest.fixture(scope="module")
def kernel(golden: Golden) -> CrfKernel:
    """One for all modes, of all images at once."""
    return crf_kernel(golden.images, settings(golden))


def test_the_folder_is_complete(golden: Golden) -> None:
    """A folder without these would pass by having nothing to compare."""
    assert golden.modes and golden.meta["crf_standalone_cases"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_standalone(golden: Golden, checks: Start, case: str, dtype: torch.dtype) -> None:
    described, arrays = golden.meta["crf_standalone_cases"][case], golden.arrays("crf_standalone")
    config = settings(golden, described)
    unary, image = (arrays.tensor(f"case{case}_{name}").to(dtype) for name in ("unary", "img"))
    assert unary.shape == tuple(described[key] for key in ("batch", "classes", "H", "W"))
    with checks("crf_standalone", f"case {case}") as check:
        found = mean_field(unary, crf_kernel(image, config), config)
        assert found.dtype == dtype
        want = arrays.tensor(f"case{case}_out")
        largest = float(want.abs().max())
        check.absolute(f"out {dtype} / max", found / largest, want / largest, OUTPUT)


@pytest.mark.parametrize("mode", MODES)
def test_ensembles(golden: Golden, checks: Start, kernel: CrfKernel, mode: str) -> None:
    top, want = golden.arrays(f"top2_{mode}"), golden.arrays(f"crf_{mode}")
    found = mean_field(top.tensor("unary"), kernel, settings(golden))
    largest = want.tensor("crf_out").flatten(1).abs().amax(1)
    with checks(f"crf_{mode}") as check:
        for image, (whole, scale) in enumerate(zip(want.tensor("crf_out"), largest, strict=True)):
            check.absolute(f"crf_out[{image}] / max", found[image] / scale, whole / scale, OUTPUT, "crf_out / max")
        places = golden.meta["slice64_flat_indices_of_CHW"]
        for image, row in enumerate(want["crf_checksums"]):
            scale = max(abs(row[list(STATISTICS).index(name)]) for name in ("min", "max"))
            values = found[image].double().numpy()
            ours = [*(float(each(values)) for each in STATISTICS.values()), *values.ravel()[places]]
            name = f"crf_checksums[{image}] / max"
            check.absolute(name, np.array(ours) / scale, row / scale, OUTPUT, "crf_checksums / max")
        for image, (label, margin) in enumerate(zip(top.tensor("pred_crf"), top.tensor("margin_crf"), strict=True)):
            near = NEAR_TIE * float(found[image].abs().max())
            wrong = (found[image].argmax(0) != label) & (margin.float() >= near)
            check.exactly(f"pred_crf[{image}]", wrong, torch.zeros_like(wrong), "pred_crf beyond near ties")


@pytest.mark.parametrize("mode", MODES)
def test_without_iterations(golden: Golden, checks: Start, kernel: CrfKernel, mode: str) -> None:
    """The authors' way to leave the CRF out, `iters: 0`, changes no label: README, section 4."""
    top = golden.arrays(f"top2_{mode}")
    found = mean_field(top.tensor("unary"), kernel, dataclasses.replace(settings(golden), iterations=0)).argmax(1)
    wrong = (found != top.tensor("pred_nocrf")) & (top.tensor("margin_nocrf").float() >= NEAR_TIE)
    with checks(f"top2_{mode}") as check:
        check.exactly("pred_nocrf, CRF of 0 iterations", wrong, torch.zeros_like(wrong))

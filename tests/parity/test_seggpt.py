"""SegGPT against numbers made by its authors' code: shared/golden/seggpt, or the folder that the environment names.

Variable: SLIME_BENCH_GOLDEN_SEGGPT. Sizes, widths, blocks and numbers of prompts are whatever the folder holds. The end
of the run prints array, error, tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from slime_bench.backbones.in_context import SegGpt
from slime_bench.backbones.seggpt import Ensemble, SegGptBackbone
from slime_bench.methods.base import label_maps
from slime_bench.methods.seggpt.config import SegGptConfig
from slime_bench.methods.seggpt.method import SegGptMethod
from tests.parity.golden_seggpt import Golden, open_golden
from tests.parity.table import Checks

# Bars of the README.
OUTPUT, BLOCK = 1e-2, 1e-4

Start = Callable[..., Checks]


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Golden:
    """The golden folder of SegGPT."""
    return open_golden(request)


@pytest.fixture(scope="session")
def backbone(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> SegGptBackbone:
    """The authors' model as the bench reads it."""
    folder = golden.save(tmp_path_factory.mktemp("seggpt") / "model")
    return SegGptBackbone(SegGpt.Config(weights=str(folder)))


def painted(golden: Golden, backbone: SegGptBackbone, case: str, ensemble: Ensemble = "authors") -> Tensor:
    """What the bench's backbone paints on the golden query, float32 [R,R,3]."""
    images, masks = golden.prompts(case)
    # A mask of 0 and 1 in each of three channels has eight colours.
    labels = (masks.long() * torch.tensor([4, 2, 1])[None, :, None, None]).sum(1)
    colours = 255 * torch.cartesian_prod(*[torch.tensor([0, 1])] * 3)
    query = backbone.pictures(golden.arrays["image"].permute(2, 0, 1)[None])
    prompts = backbone.pictures(images)[None], backbone.painted(labels, colours)[None]
    return backbone.paint(query, *prompts, ensemble, golden.case(case)[2])[0].permute(1, 2, 0)  # type: ignore[arg-type]


def test_what_is_painted(golden: Golden, backbone: SegGptBackbone, checks: Start) -> None:
    with checks("forward") as check:
        for case in golden.cases:
            check.absolute(case, painted(golden, backbone, case), golden.arrays[case], OUTPUT)


def test_blocks(golden: Golden, backbone: SegGptBackbone, checks: Start) -> None:
    layers = backbone.network.model.encoder.layers
    with checks("forward") as check:
        for case in [each for each in golden.cases if golden.blocks(each)]:
            seen: dict[int, Tensor] = {}

            def keep(index: int, seen: dict[int, Tensor] = seen) -> Callable[..., None]:
                return lambda _, __, output: seen.__setitem__(index, output[0])

            handles = [layers[index].register_forward_hook(keep(index)) for index in golden.blocks(case)]
            painted(golden, backbone, case)
            for handle in handles:
                handle.remove()
            for index, expected in golden.blocks(case).items():
                check.absolute(f"{case}_block{index}", seen[index], expected, BLOCK, "outputs of blocks")


def test_the_library_differs_with_several_prompts(golden: Golden, backbone: SegGptBackbone, checks: Start) -> None:
    """By as much as was measured; with one prompt it does not."""
    measured = golden.facts["transformers_vs_authors"]
    with checks("forward", "transformers'") as check:
        for case in golden.cases:
            found = (painted(golden, backbone, case, "transformers") - golden.arrays[case]).abs()
            check.absolute(f"difference of {case}", float(found.max()), measured[case]["max"], OUTPUT)
            if golden.case(case)[0] > 1:
                check.more(f"{case} and the authors'", "max abs", float(found.max()), measured[case]["max"] / 2)


def test_labels(golden: Golden, backbone: SegGptBackbone, checks: Start) -> None:
    """Through the method: a pixel is the part's where the mean of the authors' channels is above the threshold."""
    with checks("forward", "labels of") as check:
        for case in [each for each in golden.cases if golden.case(each)[1] == "binary"]:
            means = golden.arrays[case].mean(-1)
            for threshold in (128.0, float(means.median()), float(means.quantile(0.9))):
                settings: Any = {"threshold": threshold, "type_embedding": golden.case(case)[2]}
                method = SegGptMethod(SegGptConfig(**settings), None, backbone, ["background", "part"], seed=0)
                images, masks = golden.prompts(case)
                labels = masks[:, 0].long()
                state = {"pictures": backbone.pictures(images), "labels": labels, "present": torch.tensor([True, True])}
                method.load_learned_state(state)
                scores = method.scores(golden.arrays["image"].permute(2, 0, 1)[None], ["query"])
                maps = torch.stack([torch.full_like(means, threshold), means])
                check.labels(case, label_maps(scores)[0], (means > threshold).long(), maps, OUTPUT)

"""What every vision-language backbone has in common: names of layers, image sizes, numbers that overflow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slime_bench.backbones.base import chosen_layers, patch_grid
from slime_bench.backbones.vlm import check_finite, finite_sum
from slime_bench.errors import BackboneError

LAYERS = ("layer.6", "layer.7", "layer.10", "layer.11")


def test_no_layers_are_all_and_the_order_is_the_running_one() -> None:
    assert chosen_layers(LAYERS, None) == LAYERS
    assert chosen_layers(LAYERS, ["layer.11", "layer.6"]) == ("layer.6", "layer.11")


@pytest.mark.parametrize(
    ("layers", "found"),
    [([], "an empty list"), (["layer.6", "layer10"], "layer10"), (["layer.6", "layer.6"], "layer.6")],
)
def test_other_layers_are_refused(layers: list[str], found: str) -> None:
    with pytest.raises(BackboneError) as caught:
        chosen_layers(LAYERS, layers)
    assert caught.value.found == found and "layer.7" in str(caught.value.expected)
    assert found != "layer10" or "did you mean layer.10" in str(caught.value.remedy)


@given(st.integers(0, 70), st.integers(0, 70))
def test_sizes_that_are_no_multiples_of_the_patch_are_refused(height: int, width: int) -> None:
    if height >= 16 and width >= 16 and height % 16 == 0 and width % 16 == 0:
        assert patch_grid((height, width), 16) == (height // 16, width // 16)
        return
    with pytest.raises(BackboneError) as caught:
        patch_grid((height, width), 16)
    assert f"{height}x{width}" in str(caught.value.found)


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=20), st.sampled_from([None, "nan", "inf", "-inf"]))
def test_one_bad_number_is_enough(values: list[float], bad: str | None) -> None:
    tensor = torch.tensor([*values, *([float(bad)] if bad else [])])
    assert bool(torch.isfinite(finite_sum(tensor))) == (bad is None)


def test_the_first_layer_at_fault_is_named() -> None:
    sums = {"layer.0": torch.tensor(1.0), "layer.1": torch.tensor(float("nan")), "match": torch.tensor(float("inf"))}
    with pytest.raises(BackboneError) as caught:
        check_finite(sums, torch.float16)
    assert caught.value.path == "layer.1" and "precision=bf16" in str(caught.value.remedy)
    check_finite({"layer.0": sums["layer.0"]}, torch.float16)

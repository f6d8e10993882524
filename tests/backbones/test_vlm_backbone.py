"""What every vision-language backbone has in common: names of layers, image sizes, prompts, numbers that overflow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slime_bench.backbones.base import chosen_layers, patch_grid
from slime_bench.backbones.vlm import check_finite, check_prompts, finite_sum, too_long
from slime_bench.errors import BackboneError

LAYERS = ("layer.6", "layer.7", "layer.10", "layer.11")


class TestLayers:
    def test_none_is_all_and_the_order_is_the_running_one(self) -> None:
        assert chosen_layers(LAYERS, None) == LAYERS
        assert chosen_layers(LAYERS, ["layer.11", "layer.6"]) == ("layer.6", "layer.11")
        assert chosen_layers(LAYERS, "layer.7") == ("layer.7",)

    @pytest.mark.parametrize(
        ("layers", "found"),
        [([], "an empty list"), (["layer.12"], "layer.12"), (["layer.6", "layer.6"], "layer.6"), ([6], "6")],
    )
    def test_others_are_refused(self, layers: list, found: str) -> None:
        with pytest.raises(BackboneError) as caught:
            chosen_layers(LAYERS, layers)
        assert str(caught.value.found) == found and caught.value.remedy

    def test_a_near_name_is_offered(self) -> None:
        with pytest.raises(BackboneError, match=r"did you mean layer\.10"):
            chosen_layers(LAYERS, ["layer10"])


class TestSizes:

    @given(st.integers(0, 70), st.integers(0, 70))
    def test_exactly_the_others_are_refused(self, height: int, width: int) -> None:
        fits = height >= 16 and width >= 16 and height % 16 == 0 and width % 16 == 0
        if fits:
            assert patch_grid((height, width), 16) == (height // 16, width // 16)
            return
        with pytest.raises(BackboneError) as caught:
            patch_grid((height, width), 16)
        assert f"{height}x{width}" in str(caught.value.found)
        assert ("smaller than a patch" in caught.value.summary) == (min(height, width) < 16)

class TestNumbers:
    @given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=20), st.sampled_from([None, "nan", "inf", "-inf"]))
    def test_one_bad_number_is_enough(self, values: list[float], bad: str | None) -> None:
        tensor = torch.tensor([*values, *([float(bad)] if bad else [])])
        assert bool(torch.isfinite(finite_sum(tensor))) == (bad is None)

    @pytest.mark.parametrize(
        ("dtype", "remedy"), [(torch.float16, "precision=bf16"), (torch.float32, "check the images")]
    )
    def test_the_first_layer_at_fault_is_named(self, dtype: torch.dtype, remedy: str) -> None:
        sums = {
            "layer.0": torch.tensor(1.0),
            "layer.1": torch.tensor(float("nan")),
            "match": torch.tensor(float("inf")),
        }
        with pytest.raises(BackboneError) as caught:
            check_finite(sums, dtype)
        assert caught.value.path == "layer.1" and remedy in str(caught.value.remedy)
        check_finite({"layer.0": sums["layer.0"]}, dtype)

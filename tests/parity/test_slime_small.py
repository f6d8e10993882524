"""SLiMe against numbers of its authors' code that need no model and no folder beside the checkout: tests/parity/data.

data/README.md says where each number comes from and what is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from slime_bench.attention.capture import LayerAttention
from slime_bench.attention.maps import was
from slime_bench.methods.slime.inference import passes_gate, rescale, zero_first_below_mean
from slime_bench.methods.slime.losses import class_weights, cross_entropy, guided, was_error
from slime_bench.methods.slime.method import SlimeConfig
from slime_bench.methods.slime.protocol import SlimeProtocol
from tests.parity.golden import Arrays, pixels
from tests.parity.pure import check_iou_cases, check_metric, check_patch_boxes, check_random_crops, utilities
from tests.parity.table import Checks

DATA = Path(__file__).with_name("data")
LOSS, WAS, IOU = 1e-5, 1e-4, 1e-6  # the bars of test_slime.py
PLACES = 1e-3  # of the range of a map: a WAS map is known up to two numbers, and its differences are small

Start = Callable[..., Checks]


@pytest.fixture(scope="module")
def want() -> Arrays:
    return Arrays(DATA / "slime_small.npz")


def attention(rows: torch.Tensor, places: list[tuple[int, int]]) -> LayerAttention:
    """A layer whose attention at `places` (y, x) is `rows`, float [P,h,w]; at all other queries it is uniform."""
    height, width = rows.shape[-2:]
    query = torch.zeros(1, 1, height * width, len(rows))
    query[0, 0, [y * width + x for y, x in places], range(len(rows))] = 1
    return LayerAttention(query, rows.flatten(1).log().T[None, None].contiguous(), 1.0)


def test_losses(want: Arrays, protocol: SlimeProtocol, checks: Start) -> None:
    """From the recorded maps to class weights, the three losses and their weighted sum."""
    label, logits, weights = (
        want.tensor("mask")[None].long(),
        want.tensor("cross_logits")[None],
        SlimeConfig().loss_weights,
    )
    found = class_weights(label, logits.shape[1], protocol.ce_weights)
    first = cross_entropy(logits, label, found)
    second = was_error(want.tensor("was")[None], label, protocol.was_loss)
    empty, text = want.tensor("noise_pred").split(1)
    third = F.mse_loss(guided(text, empty, protocol.guidance_scale), want.tensor("noise"))
    total = first + weights.alpha * second + weights.beta * third
    with checks("small") as check:
        check.relative("pixel_weights", found, want["pixel_weights"], IOU)
        for name, value in (("loss1", first), ("loss2", second), ("sd_loss", third), ("loss_total", total)):
            check.relative(name, value.reshape(1), want[name], LOSS)


def test_was(want: Arrays, checks: Start) -> None:
    """WAS at the pixels whose attention is recorded, from the recorded logits."""
    places = [(int(y), int(x)) for y, x in want["self_query_pixels"]]
    layer = attention(want.tensor("self_rows"), places)
    found = was([layer], want.tensor("cross_logits")[None].softmax(1))[0]
    with checks("small") as check:
        for y, x in places:
            check.absolute(f"was[{y},{x}]", found[:, y, x], want["was"][:, y, x], WAS, "was")


def test_prediction(want: Arrays, protocol: SlimeProtocol, checks: Start) -> None:
    """From the recorded test-time maps of one patch to its score maps: gate, zeroing, WAS, rescaling, labels.

    WAS is known at three pixels and the rescaling is affine, so of each class's score map the third pixel's place
    between the other two is compared.
    """
    probabilities, wanted = want.tensor("test_probs"), want.tensor("test_final_attention_map")[None]
    passed = passes_gate(probabilities, protocol)
    kept = passed[0].nonzero().flatten().tolist()
    places = pixels(want.text("test_self_rows0"))
    zeroed = zero_first_below_mean(probabilities, passed)
    accumulated = was([attention(want.tensor("test_self_rows0"), places)], zeroed)[0]
    with checks("small", "prediction") as check:
        check.exactly("classes that pass", passed[0], wanted[0].flatten(1).any(1))
        check.absolute("map of a class that passes", rescale(wanted, probabilities)[:, kept], wanted[:, kept], WAS)
        check.exactly("final_mask", wanted[0].argmax(0), want["test_final_mask"])
        for k in kept:
            ours, theirs = ([float(each[k][place]) for place in places] for each in (accumulated, wanted[0]))
            order = sorted(range(3), key=lambda index: theirs[index])
            shares = [(each[order[1]] - each[order[0]]) / (each[order[2]] - each[order[0]]) for each in (ours, theirs)]
            check.absolute(f"middle pixel of class {k}", shares[0], shares[1], PLACES, "middle pixel's place")


def test_metric(checks: Start) -> None:
    with checks("small metric") as check:
        check_metric(check, Arrays(DATA / "metric.npz"), IOU)


def test_utilities(checks: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    with checks("small utils.json") as check:
        check_patch_boxes(check, utilities(DATA, "get_crops_coords"))
        check_random_crops(check, utilities(DATA, "get_random_crop_coordinates"), monkeypatch)
        check_iou_cases(check, utilities(DATA, "calculate_iou"), IOU)

"""From cross maps to score maps: gate, background rule, rescale and patches, worked by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from slime_bench.attention.capture import LayerAttention
from slime_bench.methods.slime.config import patch_boxes
from slime_bench.methods.slime.inference import (
    cross_maps,
    merge_patches,
    passes_gate,
    patch_scores,
    rescale,
    zero_first_below_mean,
)


def uniform_layer(positions: int, tokens: int | None = None, batch: int = 1) -> LayerAttention:
    return LayerAttention(torch.zeros(batch, 1, positions, 8), torch.zeros(batch, 1, tokens or positions, 8), 1.0)


def test_the_stride_is_rounded_down() -> None:
    """As the authors' code does: 512 - 257 = 255 leaves a stride of 127, not 127.5."""
    assert [box[0] for box in patch_boxes((512, 512), 257, 3)[::3]] == [0, 127, 254]


def test_boxes_cover_the_image_row_by_row() -> None:
    assert patch_boxes((512, 512), 512, 1) == [(0, 512, 0, 512)]
    assert patch_boxes((512, 512), 400, 2) == [
        (0, 400, 0, 400),
        (0, 400, 112, 512),
        (112, 512, 0, 400),
        (112, 512, 112, 512),
    ]
    boxes = patch_boxes((10, 20), 6, 3)
    assert [box[:2] for box in boxes] == [(0, 6)] * 3 + [(2, 8)] * 3 + [(4, 10)] * 3
    assert [box[2:] for box in boxes[:3]] == [(0, 6), (7, 13), (14, 20)]


def test_gate_counts_reaching_it_exactly_or_not(slime_code: Any) -> None:
    maps = torch.tensor([0.1, 0.25, 0.5])[None, :, None, None] * torch.tensor([[1.0, 0.5], [0.0, 0.25]])
    inclusive = replace(slime_code, token_gate=0.25, gate_inclusive=True)
    assert passes_gate(maps, inclusive).tolist() == [[False, True, True]]
    assert passes_gate(maps, replace(inclusive, gate_inclusive=False)).tolist() == [[False, False, True]]


def test_only_the_first_class_that_passes_is_zeroed() -> None:
    one = torch.tensor([[1.0, 2.0], [3.0, 6.0]])  # mean 3: only 6 is above it
    maps = one.expand(2, 3, 2, 2)
    passed = torch.tensor([[True, True, True], [False, True, True]])
    found = zero_first_below_mean(maps, passed)
    zeroed = torch.tensor([[0.0, 0.0], [0.0, 6.0]])
    assert torch.equal(found[0], torch.stack([zeroed, one, one]))
    assert torch.equal(found[1], torch.stack([one, zeroed, one]))
    assert torch.equal(zero_first_below_mean(maps, torch.zeros(2, 3, dtype=torch.bool)), maps)


def test_rescale_reaches_the_references_ends() -> None:
    maps = torch.tensor([[[[2.0, 4.0], [3.0, 2.0]], [[5.0, 5.0], [5.0, 5.0]]]])
    reference = torch.tensor([[[[0.1, 0.9, 0.3]], [[0.2, 0.4, 0.3]]]])
    found = rescale(maps, reference)
    torch.testing.assert_close(found[0, 0], torch.tensor([[0.1, 0.9], [0.5, 0.1]]))
    torch.testing.assert_close(found[0, 1], torch.full((2, 2), 0.2))  # a flat map has no range to stretch


def test_merging_averages_over_the_patches_in_which_a_class_passed() -> None:
    boxes = [(0, 2, 0, 2), (0, 2, 1, 3)]  # column 1 is in both
    scores = torch.zeros(1, 2, 2, 2, 2)
    scores[0, 0, 0], scores[0, 1, 0] = 0.2, 0.6
    scores[0, 0, 1] = 0.8  # class 1 did not pass in the second patch
    passed = torch.tensor([[[True, True], [True, False]]])
    found = merge_patches(scores, passed, boxes, (2, 3))
    torch.testing.assert_close(found[0, 0], torch.tensor([[0.2, 0.4, 0.6]] * 2))
    torch.testing.assert_close(found[0, 1], torch.tensor([[0.8, 0.8, 0.0]] * 2))


def test_merging_one_patch_changes_nothing() -> None:
    scores = torch.rand(3, 1, 4, 5, 5)
    assert torch.equal(
        merge_patches(scores, torch.ones(3, 1, 4, dtype=torch.bool), [(0, 5, 0, 5)], (5, 5)), scores[:, 0]
    )


def test_where_no_class_passes_everything_is_background(slime_code: Any) -> None:
    cross = torch.rand(1, 4, 3, 3) * 0.1  # the gate is 0.2
    scores, passed = patch_scores(cross, [uniform_layer(9)], slime_code, True, (6, 6))
    assert not passed.any() and scores.abs().max() == 0
    merged = merge_patches(scores[:, None], passed[:, None], [(0, 6, 0, 6)], (6, 6))
    assert (merged.argmax(1) == 0).all()


def test_scores_by_hand_for_uniform_self_attention(slime_code: Any) -> None:
    """Uniform attention gives every pixel the map's mean; without the rescale the larger mean wins everywhere."""
    cross = torch.tensor([[[[0.4, 0.0], [0.0, 0.0]], [[0.3, 0.3], [0.3, 0.5]], [[0.1, 0.1], [0.1, 0.1]]]])
    protocol = replace(slime_code, affine_rescale=False, zero_below_mean=False)
    scores, passed = patch_scores(cross, [uniform_layer(4)], protocol, True, (2, 2))
    assert passed.tolist() == [[True, True, False]]
    torch.testing.assert_close(scores[0, :, 0, 0], torch.tensor([0.1, 0.35, 0.0]))
    torch.testing.assert_close(scores, scores[:, :, :1, :1].expand_as(scores))
    # The cross maps alone are left as they are, but for the background rule.
    alone, _ = patch_scores(cross, [], replace(slime_code, zero_below_mean=True), False, (2, 2))
    torch.testing.assert_close(alone[0, :2], cross[0, :2])


def test_scores_are_rescaled_to_the_map_before_the_background_rule(slime_code: Any) -> None:
    cross = torch.tensor([[[[0.4, 0.3], [0.1, 0.2]]]])
    sharp = LayerAttention(torch.eye(4)[None, None] * 1000, torch.eye(4)[None, None], 1.0)  # every pixel sees itself
    scores, _ = patch_scores(cross, [sharp], slime_code, True, (2, 2))
    # 0.1 and 0.2 are not above the mean 0.25 and become 0; [0.4, 0.3, 0, 0] is stretched onto 0.1 .. 0.4
    torch.testing.assert_close(scores[0, 0], torch.tensor([[0.4, 0.1 + 0.3 * 0.75], [0.1, 0.1]]))


def test_cross_maps_follow_the_protocols_softmax(slime_code: Any) -> None:
    layers, grids = [uniform_layer(4, tokens=10), uniform_layer(1, tokens=10)], [(2, 2), (1, 1)]
    every = cross_maps(layers, grids, 4, (2, 2), slime_code)
    torch.testing.assert_close(every, torch.full((1, 4, 2, 2), 0.1))
    alone = cross_maps(layers, grids, 4, (2, 2), replace(slime_code, test_softmax="classes"))
    torch.testing.assert_close(alone, torch.full((1, 4, 2, 2), 0.25))


def test_cross_maps_as_trained_are_the_softmax_of_the_averaged_logits(slime_code: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    layers = [LayerAttention(torch.randn(2, 3, 4, 8, generator=draw), torch.randn(2, 3, 10, 8, generator=draw), 0.5)]
    found = cross_maps(layers, [(2, 2)], 4, (2, 2), replace(slime_code, test_softmax="as_trained"))
    logits = (layers[0].query @ layers[0].key.transpose(-1, -2) * 0.5).mean(1)[:, :, :4]  # [B,N,K], mean over heads
    torch.testing.assert_close(found, logits.softmax(-1).transpose(1, 2).unflatten(-1, (2, 2)))

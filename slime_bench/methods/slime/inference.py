"""From attention to score maps at test time: gate, background rule, WAS, rescale, patches. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from slime_bench.attention.capture import LayerAttention
from slime_bench.attention.maps import Size, average, class_logits, class_probabilities, resize, was
from slime_bench.methods.slime.config import Box
from slime_bench.methods.slime.protocol import SlimeProtocol


def cross_maps(
    layers: Sequence[LayerAttention], grids: Sequence[Size], num_classes: int, size: Size, protocol: SlimeProtocol
) -> torch.Tensor:
    """Test-time cross maps, float [B,K,*size] in [0,1]: see `SlimeProtocol.test_softmax`."""
    pairs = list(zip(layers, grids, strict=True))
    # Training on probabilities takes them over all tokens, and they need no further softmax.
    if protocol.test_softmax == "as_trained" and protocol.ce_input == "logits":
        return average([class_logits(layer, num_classes, grid) for layer, grid in pairs], size).softmax(dim=1)
    every = protocol.test_softmax != "classes"
    return average([class_probabilities(layer, num_classes, grid, every) for layer, grid in pairs], size)


def passes_gate(maps: torch.Tensor, protocol: SlimeProtocol) -> torch.Tensor:
    """Which classes take part in which image: bool [B,K] from cross maps float [B,K,h,w]."""
    peak = maps.amax((2, 3))
    passed = peak >= protocol.token_gate if protocol.gate_inclusive else peak > protocol.token_gate
    if protocol.no_class_passes == "ungated":
        passed = passed | ~passed.any(dim=1, keepdim=True)
    return passed


def zero_first_below_mean(maps: torch.Tensor, passed: torch.Tensor) -> torch.Tensor:
    """The first class that passed, zeroed where it is not above its own mean; float [B,K,h,w], bool [B,K]."""
    first = passed & (passed.cumsum(1) == 1)  # [B,K]
    low = maps <= maps.mean((2, 3), keepdim=True)
    return maps.masked_fill(first[:, :, None, None] & low, 0.0)


def rescale(maps: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Each map shifted and stretched to the minimum and maximum of its reference map; float [B,K,h,w] both."""
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    to_low, to_high = reference.amin((2, 3), keepdim=True), reference.amax((2, 3), keepdim=True)
    span = torch.where(high > low, high - low, torch.ones_like(low))
    return (maps - low) / span * (to_high - to_low) + to_low


def to_propagate(cross: torch.Tensor, protocol: SlimeProtocol) -> torch.Tensor:
    """What WAS propagates of test-time cross maps float [B,K,h,w]: the same, but for the first class that passed."""
    return zero_first_below_mean(cross, passes_gate(cross, protocol)) if protocol.zero_below_mean else cross


def patch_scores(
    cross: torch.Tensor,
    self_layers: Sequence[LayerAttention],
    protocol: SlimeProtocol,
    use_was: bool,
    size: Size,
    propagated: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score maps of patches at `size`, float [B,K,*size], 0 where a class did not pass the gate; who passed [B,K].

    Args:
        cross: test-time cross maps on the self-attention's grid, float [B,K,h,w].
        use_was: propagate through self-attention (Eq. 6), or leave the cross maps as they are (Table 1's other row).
        propagated: `was(self_layers, to_propagate(cross, protocol))`, where the pass has computed it.
    """
    passed, maps = passes_gate(cross, protocol), to_propagate(cross, protocol)
    if use_was:
        maps = was(self_layers, maps) if propagated is None else propagated
    scores = resize(maps, size)
    if use_was and protocol.affine_rescale:
        scores = rescale(scores, cross)  # after resizing, to the range of the map as it was before zeroing
    return scores * passed[:, :, None, None], passed


def merge_patches(scores: torch.Tensor, passed: torch.Tensor, boxes: Sequence[Box], size: Size) -> torch.Tensor:
    """Patches' score maps laid into the image; where they overlap, a class is averaged over those that it passed in.

    Args:
        scores: float [B,P,K,h,w], P patches per image in the order of `boxes`; 0 where not passed.
        passed: bool [B,P,K].
        boxes: (y0, y1, x0, x1), each h x w. size: (H, W) of the frame of the boxes.

    Returns:
        float [B,K,H,W].
    """
    total = scores.new_zeros(len(scores), scores.shape[2], *size)
    count = torch.zeros_like(total)
    for index, (top, bottom, left, right) in enumerate(boxes):
        total[:, :, top:bottom, left:right] += scores[:, index]
        count[:, :, top:bottom, left:right] += passed[:, index, :, None, None]
    return total / count.clamp(min=1)

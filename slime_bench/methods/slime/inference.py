"""From attention to score maps at test time: gate, background rule, WAS, rescale, patches. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from slime_bench.attention.capture import LayerAttention
from slime_bench.attention.maps import Size, average, class_logits, class_probabilities, resize, was
from slime_bench.errors import ConfigError
from slime_bench.methods.slime.protocol import SlimeProtocol

Box = tuple[int, int, int, int]


def patch_boxes(size: Size, patch: int, per_side: int) -> list[Box]:
    """(y0, y1, x0, x1) of `per_side` x `per_side` evenly spread square patches, row by row; they may overlap.

    The stride is rounded down, as in the authors' code.

    Raises:
        ConfigError: a patch is larger than the image.
    """
    if patch > min(size):
        raise ConfigError(
            "a test patch is larger than the image", path="method.patch_size", found=patch,
            expected=f"at most {min(size)}", remedy="lower method.patch_size, or raise data.image_size",
        )  # fmt: skip

    def starts(length: int) -> list[int]:
        return [i * ((length - patch) // max(1, per_side - 1)) for i in range(per_side)]

    return [(y, y + patch, x, x + patch) for y in starts(size[0]) for x in starts(size[1])]


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
    spread: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score maps of patches at `size`, float [B,K,*size], 0 where a class did not pass the gate; who passed [B,K].

    Args:
        cross: test-time cross maps on the self-attention's grid, float [B,K,h,w].
        use_was: propagate through self-attention (Eq. 6), or leave the cross maps as they are (Table 1's other row).
        spread: `was(self_layers, to_propagate(cross, protocol))`, where it was computed on the way.
    """
    passed, maps = passes_gate(cross, protocol), to_propagate(cross, protocol)
    if use_was:
        maps = was(self_layers, maps) if spread is None else spread
    scores = resize(maps, size)
    if use_was and protocol.affine_rescale:
        scores = rescale(scores, cross)  # after resizing, to the range of the map as it was before zeroing
    return scores * passed[:, :, None, None], passed


def scale_boxes(boxes: Sequence[Box], frame: Size, size: Size) -> list[Box]:
    """Boxes in a frame of (H, W) pixels, carried over to a frame of `size`; equal boxes stay equal in extent."""
    y, x = size[0] / frame[0], size[1] / frame[1]
    tops = [(min(int(y0 * y), size[0] - round((y1 - y0) * y)), round((y1 - y0) * y)) for y0, y1, _, _ in boxes]
    lefts = [(min(int(x0 * x), size[1] - round((x1 - x0) * x)), round((x1 - x0) * x)) for _, _, x0, x1 in boxes]
    return [(top, top + h, left, left + w) for (top, h), (left, w) in zip(tops, lefts, strict=True)]


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

"""From one pass of a vision-language model to class probabilities: `attention.image_text` under a protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from slime_bench.attention.image_text import Size, class_maps, ensemble, match_scores, prompt_maps, token_maps
from slime_bench.backbones.vlm import Prompts, VlmBackbone
from slime_bench.methods.infoscore.prompts import PromptList
from slime_bench.methods.infoscore.protocol import InfoScoreProtocol
from slime_bench.methods.infoscore.score import info_marginal

Spans = Sequence[tuple[int, int]]
"""[start, end) of each class in a list of prompts."""


@dataclass(frozen=True)
class Reading:
    """What is needed of one pass over B images, for any choice of layers and for both lists of prompts.

    Attributes:
        maps: layer -> token maps float32 [B,P,N].
        match: match probability at every position, float32 [B,P,T].
    """

    maps: dict[str, Tensor]
    match: Tensor

    def rows(self, index: int) -> Reading:
        """That of one image, as a batch of one, on the CPU. Copies: a slice would hold the whole batch in memory."""
        one = slice(index, index + 1)
        maps = {name: each[one].to("cpu", copy=True) for name, each in self.maps.items()}
        return Reading(maps, self.match[one].to("cpu", copy=True))

    def only(self, layers: Sequence[str]) -> Reading:
        """With the maps of `layers` alone."""
        return Reading({name: self.maps[name] for name in layers}, self.match)

    def size(self) -> int:
        """Bytes."""
        return sum(each.nbytes for each in (*self.maps.values(), self.match))


def stacked(readings: Sequence[Reading], device: torch.device) -> Reading:
    """Several images' readings as one batch."""
    names = readings[0].maps
    maps = {name: torch.cat([each.maps[name] for each in readings]).to(device) for name in names}
    return Reading(maps, torch.cat([each.match for each in readings]).to(device))


def read(
    backbone: VlmBackbone,
    states: Tensor,
    prompts: Prompts,
    protocol: InfoScoreProtocol,
    layers: Sequence[str] | None = None,
) -> Reading:
    """One pass: every prompt against every image.

    Args:
        states: of `VlmBackbone.encode_images`. layers: None for all.
    """
    reduce = partial(
        token_maps,
        mask=prompts.mask if protocol.tokens == "all" else prompts.mask & ~prompts.special,
        prefix=backbone.num_prefix_keys,
        attention=protocol.attention,
        heads=protocol.heads,
        tokens=protocol.token_reduction,
    )
    found = backbone.read(states, prompts, reduce, layers)
    return Reading(found.maps, found.match)


@dataclass(frozen=True)
class PromptView:
    """A list of prompts as a part of the list that was read.

    Attributes:
        columns: int64 [P'], places of its prompts in the list that was read.
        mask: bool [P',T'], its tokens; T' is the length that this list alone would have been padded to. A position's
            output does not depend on the padding behind it, so the longer list's positions below T' are its own.
        spans: [start, end) of each class in it.
    """

    columns: Tensor
    mask: Tensor
    spans: tuple[tuple[int, int], ...]

    def layer_maps(self, reading: Reading, protocol: InfoScoreProtocol) -> dict[str, Tensor]:
        """Prompt maps of every layer, float32 [B,P',N]: steps 3 and 4."""
        match = reading.match[:, self.columns]
        match = match_scores(match[:, :, : self.mask.shape[1]], self.mask, protocol.match)
        return {
            name: prompt_maps(maps[:, self.columns], match, protocol.softmax_over)
            for name, maps in reading.maps.items()
        }


def view(chosen: PromptList, every: PromptList, prompts: Prompts) -> PromptView:
    """`chosen`, all of whose texts are in `every`, the list behind `prompts`."""
    columns = torch.tensor([every.texts.index(text) for text in chosen.texts], device=prompts.ids.device)
    mask = prompts.mask[columns]
    return PromptView(columns, mask[:, : int(mask.sum(1).max())], chosen.spans)


def layer_classes(maps: Mapping[str, Tensor], spans: Spans, protocol: InfoScoreProtocol) -> list[Tensor]:
    """Class maps of every layer, each float32 [B,K,N]: step 5."""
    return [class_maps(each, spans, protocol.background, protocol.foreground) for each in maps.values()]


def probabilities(classes: Sequence[Tensor], grid: Size, size: Size, protocol: InfoScoreProtocol) -> Tensor:
    """Class probabilities by all of the layers, float32 [B,K,H,W]: step 6."""
    return ensemble(classes, grid, size, protocol.align_corners, protocol.normalise)


def marginals(maps: Mapping[str, Tensor], spans: Spans, grid: Size, size: Size, protocol: InfoScoreProtocol) -> Tensor:
    """What `InfoScoreMetric.update` takes, float32 [B,L,C], over prompts or classes as the protocol says."""
    each = list(maps.values()) if protocol.info_over == "prompts" else layer_classes(maps, spans, protocol)
    return torch.stack([info_marginal(one, grid, size, protocol.align_corners) for one in each], dim=1)

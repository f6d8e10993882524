"""The golden BLIP as the bench reads it, and the authors' settings of every step, with room for a wrong one.

Not a test file: shared by the parity tests of the second paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from slime_bench.attention.image_text import class_maps, ensemble, match_scores, prompt_maps, token_maps
from slime_bench.backbones.blip import BlipBackbone
from slime_bench.backbones.vlm import Prompts
from slime_bench.methods.infoscore.score import InfoScoreMetric, info_marginal
from tests.parity.golden_infoscore import Golden

Size = tuple[int, int]


def golden_blip(golden: Golden) -> BlipBackbone:
    """The bench's own loader on the authors' model folder."""
    config = BlipBackbone.Config(
        name="golden", weights=str(golden.model), image_size=golden.size[0], statistics="imagenet"
    )
    return BlipBackbone(config)


@dataclass
class Pass:
    """All images shown to all prompts of one mode, in one batch.

    Attributes:
        states: vision output, float32 [N,1+h*w,D]. text: text output, float32 [N,P,T,D'].
        scores: raw scores of every layer in running order, float32 [N,P,H,T,M] each. match: float32 [N,P,T].
    """

    golden: Golden
    mode: str
    prompts: Prompts
    states: Tensor
    text: Tensor
    scores: list[Tensor]
    match: Tensor

    @property
    def layers(self) -> list[str]:
        return [f"layer.{index}" for index in range(len(self.scores))]

    @cached_property
    def token_sums(self) -> list[Tensor]:
        """Per layer [N,P,h*w]."""
        return [token_maps(scores, self.prompts.mask, prefix=1) for scores in self.scores]

    @cached_property
    def itm(self) -> Tensor:
        """Matching scores [N,P]."""
        return match_scores(self.match, self.prompts.mask)

    @cached_property
    def maps(self) -> list[Tensor]:
        """Prompt maps per layer [N,P,h*w]."""
        return [prompt_maps(sums, self.itm) for sums in self.token_sums]

    @cached_property
    def classes(self) -> list[Tensor]:
        """Class maps per layer [N,C,h*w]."""
        return [class_maps(maps, self.golden.spans(self.mode)) for maps in self.maps]

    def unary(self, layers: Sequence[int]) -> Tensor:
        """Class probabilities of an ensemble, float32 [N,C,H,W]."""
        return ensemble([self.classes[layer] for layer in layers], self.golden.grid, self.golden.size)

    @cached_property
    def marginals(self) -> Tensor:
        """float32 [N,L,P]."""
        return torch.stack([info_marginal(maps, self.golden.grid, self.golden.size) for maps in self.maps], 1)


@torch.no_grad()
def run(backbone: BlipBackbone, golden: Golden, mode: str) -> Pass:
    """One pass; the text output is what the matching head is given."""
    prompts = backbone.tokenize(golden.prompts(mode))
    seen: list[Tensor] = []
    hook = backbone.itm_head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        states = backbone.encode_images(golden.pictures)
        found = backbone.read(states, prompts, lambda scores: scores.contiguous())
    finally:
        hook.remove()
    text = seen[0].view(len(states), *prompts.ids.shape, -1)
    return Pass(golden, mode, prompts, states, text, list(found.maps.values()), found.match)


def _same(values: Tensor, *_: Any) -> Tensor:
    return values


@dataclass(frozen=True)
class Steps:
    """How class probabilities and InfoScore are made; every field defaults to the authors' way.

    Attributes:
        scores, maps: a change of the raw scores [N,P,H,T,M] and of the prompt maps [N,P,h*w] that no switch makes.
        mask: which tokens count. token, match, over, classes, image: arguments of the bench's own functions.
        without: of InfoScore: `enlarging`; `prompts` (over classes). last: a change of the score [L] from N and P.
    """

    scores: Callable[[Tensor], Tensor] = _same
    maps: Callable[[Tensor, Size], Tensor] = _same
    mask: Callable[[Prompts], Tensor] = lambda prompts: prompts.mask
    token: dict[str, Any] = field(default_factory=dict)
    match: str = "all"
    over: str = "prompts"
    classes: dict[str, str] = field(default_factory=dict)
    image: dict[str, Any] = field(default_factory=dict)
    without: str = ""
    last: Callable[[Tensor, int, int], Tensor] = _same

    def prompt_maps(self, done: Pass) -> list[Tensor]:
        """Per layer [N,P,h*w]."""
        match = match_scores(done.match, done.prompts.mask, self.match)
        arguments: dict[str, Any] = {"prefix": 1, **self.token}
        sums = [token_maps(self.scores(scores), self.mask(done.prompts), **arguments) for scores in done.scores]
        return [self.maps(prompt_maps(each, match, self.over), done.golden.grid) for each in sums]

    def unary(self, done: Pass, layers: Sequence[int]) -> Tensor:
        """float32 [N,C,H,W]."""
        golden, maps = done.golden, self.prompt_maps(done)
        chosen = [class_maps(maps[layer], golden.spans(done.mode), **self.classes) for layer in layers]
        return ensemble(chosen, golden.grid, golden.size, **self.image)

    def score(self, done: Pass) -> Tensor:
        """InfoScore, float64 [L]."""
        golden, maps = done.golden, self.prompt_maps(done)
        if self.without == "prompts":
            maps = [class_maps(each, golden.spans(done.mode), **self.classes) for each in maps]
        size = golden.grid if self.without == "enlarging" else golden.size
        corners = self.image.get("align_corners", True)
        metric = InfoScoreMetric(done.layers, maps[0].shape[1])
        metric.update(torch.stack([info_marginal(each, golden.grid, size, corners) for each in maps], 1))
        return self.last(torch.tensor(metric.compute().score, dtype=torch.float64), len(done.states), maps[0].shape[1])


def _transposed(maps: Tensor, grid: Size) -> Tensor:
    return maps.unflatten(-1, (grid[1], grid[0])).transpose(-1, -2).flatten(-2)


UNARY: dict[str, Steps] = {
    "post-softmax scores": Steps(token={"attention": "probabilities"}),
    "log of post-softmax": Steps(scores=lambda scores: scores.log_softmax(-1)),
    "mean over heads": Steps(token={"heads": "mean"}),
    "drop last key instead of CLS": Steps(scores=lambda scores: scores[..., :-1], token={"prefix": 0}),
    "count padding tokens": Steps(mask=lambda prompts: torch.ones_like(prompts.mask)),
    "leave out [CLS]/[SEP]": Steps(mask=lambda prompts: prompts.mask & ~prompts.special),
    "mean over tokens": Steps(token={"tokens": "mean"}),
    "softmax over patches": Steps(over="patches"),
    "ITM at [CLS] only": Steps(match="cls"),
    "ITM max over real tokens only": Steps(match="tokens"),
    "no ITM": Steps(match="none"),
    "transposed grid": Steps(maps=_transposed),
    "background max": Steps(classes={"background": "max"}),
    "others sum": Steps(classes={"foreground": "sum"}),
    "align_corners False": Steps(image={"align_corners": False}),
    "normalise before interpolation": Steps(image={"normalise": "before_resize"}),
    "normalise per layer": Steps(image={"normalise": "per_layer"}),
}
"""Of the last table of the README's section 7, what changes the class probabilities."""

_SAME_SCORE = ("ITM max over real tokens only", "transposed grid", "background max", "others sum", "normalise")

SCORE: dict[str, Steps] = {
    **{name: steps for name, steps in UNARY.items() if not name.startswith(_SAME_SCORE)},
    "InfoScore without up-sampling": Steps(without="enlarging"),
    "InfoScore over classes": Steps(without="prompts"),
    "sample std": Steps(last=lambda score, images, _: score * (images / (images - 1)) ** 0.5),
    "mean instead of sum in CoV": Steps(last=lambda score, _, prompts: score / prompts),
}
"""Of the same table, what changes InfoScore; matching over real tokens only changes it for some weights alone."""

"""The switches of the second paper's way from attention scores to class maps ("Segmentation From Attention").

Every step's variants, with what they change: docs/switches.md. Sets of them: conf/protocol; `infoscore_code` is what
the authors' code does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class InfoScoreProtocol:
    """One named set of switches. Every field changes numbers, so none has a default.

    Args:
        name: of the set.
        attention: `scores` before the softmax, or `probabilities` after it.
        heads: `max` or `mean` over the heads.
        tokens: the tokens of a prompt that count: `all`, [CLS] and [SEP] among them, or those of its `content`.
        token_reduction: `sum` or `mean` over these tokens; by the sum longer prompts get larger maps.
        match: the image-text matching score of a prompt: the largest over `all` positions, padding included, over its
            `tokens`, at `cls`, or `none`: 1 for every prompt.
        softmax_over: `prompts` at every patch, or `patches` of every prompt.
        background, foreground: `sum` or `max` over the prompts of class 0, and of any other class.
        align_corners: of the resize from patches to pixels.
        normalise: over the classes, `after` the mean over layers, `per_layer`, or `before_resize`.
        info_over: InfoScore's distribution is over `prompts` (code) or over `classes` (the paper's text).
    """

    name: str
    attention: Literal["scores", "probabilities"]
    heads: Literal["max", "mean"]
    tokens: Literal["all", "content"]
    token_reduction: Literal["sum", "mean"]
    match: Literal["all", "tokens", "cls", "none"]
    softmax_over: Literal["prompts", "patches"]
    background: Literal["sum", "max"]
    foreground: Literal["max", "sum"]
    align_corners: bool
    normalise: Literal["after", "per_layer", "before_resize"]
    info_over: Literal["prompts", "classes"]

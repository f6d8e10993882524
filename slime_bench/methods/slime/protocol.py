"""The switches in which SLiMe's paper and its authors' code differ, or in which only the code says what is done.

Both readings of each, with what they change: docs/switches.md. Sets of them: conf/protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field


@dataclass(frozen=True)
class SlimeProtocol:
    """One named set of switches. Every field changes published numbers, so none has a default.

    Args:
        name: of the set.
        channel_order: in which the backbone sees the colours.
        ce_input: cross-entropy on averaged raw `logits` of the class tokens, or on averaged `probabilities` (Eq. 4).
        ce_weights: `foreground` pixels / class pixels, background 1; or `all` pixels / class pixels; absent class 0.
        diffusion_loss: `guided`: classifier-free guidance around the empty prompt; `plain`: Eq. 1.
        guidance_scale: of the guided loss.
        was_loss: `mean`: of squares over pixels and classes, times K; `sum`: of squares over classes and pixels.
        halves: which branches of the guidance batch the maps come from: the `conditional` one, or the mean of `both`.
        test_softmax: test-time softmax per head and layer over `all_tokens` of the prompt, or over the `classes` alone;
            or `as_trained`: as the training maps become probabilities.
        token_gate: a class takes part in an image or patch only if the maximum of its cross map reaches this value;
            in [0,1].
        gate_inclusive: whether reaching it exactly is enough.
        no_class_passes: an image or patch in which no class passes the gate is `background`, or goes on `ungated`.
        zero_below_mean: the first class that passes the gate is zeroed below its own mean.
        affine_rescale: map each WAS map linearly so that its minimum and maximum equal its cross map's.
        sample_latents: draw the latents from the encoder's distribution, or take its mean.
        test_noise: a draw `per_image` and patch, or one `shared` by all of a trial.
    """

    name: str
    channel_order: Literal["rgb", "bgr"]
    ce_input: Literal["logits", "probabilities"]
    ce_weights: Literal["foreground", "all"]
    diffusion_loss: Literal["guided", "plain"]
    guidance_scale: float
    was_loss: Literal["mean", "sum"]
    halves: Literal["conditional", "both"]
    test_softmax: Literal["all_tokens", "classes", "as_trained"]
    token_gate: Annotated[float, Field(ge=0.0, le=1.0)]
    gate_inclusive: bool
    no_class_passes: Literal["background", "ungated"]
    zero_below_mean: bool
    affine_rescale: bool
    sample_latents: bool
    test_noise: Literal["per_image", "shared"]

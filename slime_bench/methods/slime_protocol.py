"""The switches in which SLiMe's paper and its authors' code differ (protocol sections 1.2 and 1.3)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SlimeProtocol:
    """One named set of switches. Every field changes published numbers, so none has a default.

    Args:
        name: of the set.
        channel_order: in which the backbone sees the colours; the authors' code feeds `bgr` since 2023-09-28.
        ce_input: cross-entropy on averaged raw `logits` of the class tokens, or on averaged `probabilities` (Eq. 4).
        ce_weights: `foreground` pixels / class pixels, background 1; or `all` pixels / class pixels; absent class 0.
        diffusion_loss: `guided`: classifier-free guidance around the empty prompt; `plain`: Eq. 1.
        guidance_scale: of the guided loss.
        was_loss: `mean`: of squares over pixels and classes, times K; `sum`: of squares over classes and pixels.
        test_softmax: test-time softmax per head and layer over `all_tokens` of the prompt, or over the `classes` alone;
            or `as_trained`: over the classes, of the logits averaged over heads and layers.
        token_gate: a class takes part in an image only if the maximum of its cross map reaches this value.
        gate_inclusive: whether reaching it exactly is enough.
        zero_below_mean: the first class that passes the gate is zeroed below its own mean.
        affine_rescale: map each WAS map linearly so that its minimum and maximum equal its cross map's.
        sample_latents: draw the latents from the encoder's distribution, or take its mean.
    """

    name: str
    channel_order: str = field(metadata={"choices": ("rgb", "bgr")})
    ce_input: str = field(metadata={"choices": ("logits", "probabilities")})
    ce_weights: str = field(metadata={"choices": ("foreground", "all")})
    diffusion_loss: str = field(metadata={"choices": ("guided", "plain")})
    guidance_scale: float
    was_loss: str = field(metadata={"choices": ("mean", "sum")})
    test_softmax: str = field(metadata={"choices": ("all_tokens", "classes", "as_trained")})
    token_gate: float
    gate_inclusive: bool
    zero_below_mean: bool
    affine_rescale: bool
    sample_latents: bool

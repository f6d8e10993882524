"""Less memory for the backward pass of a frozen network: blocks keep their inputs and are computed again."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from slime_bench.attention.capture import AllCaptured


def recompute_activations(network: Any) -> None:
    """Let a diffusers network keep, of each of its blocks, the inputs alone for the backward pass.

    Gradients are the same. It works in evaluation mode, with frozen weights, and with `capture`: queries and keys that
    are handed out are ordinary parts of the graph.

    Args:
        network: any diffusers model with residual and transformer blocks.
    """
    network.enable_gradient_checkpointing(_run)


def _run(block: nn.Module, *inputs: Any) -> Any:
    stopped: list[AllCaptured] = []

    def forward(*inputs: Any) -> Any:
        try:
            return block(*inputs)
        except AllCaptured as end:  # not through the checkpoint: not every torch then stops watching
            stopped.append(end)
            return torch.empty(0)

    # There is no dropout, so no random state has to be put back.
    output = checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)
    if stopped:
        raise stopped[0]
    return output

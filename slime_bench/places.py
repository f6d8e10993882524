"""From the CPU onto a device, and float64 where a device has none."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

NO_FLOAT64: Final = {"mps"}
"""Types of devices that know no float64: what needs it is computed on the CPU."""


def onto(tensor: Tensor, target: Tensor | torch.device) -> Tensor:
    """A tensor of the CPU, such as a draw, on a device; of a tensor's device and dtype, where one is given.

    CUDA copies ordinary memory aside before the call returns, so that the CPU need not wait for what the GPU still
    computes. MPS may read the memory later, when it is somebody else's: there the copy is waited for.
    """
    device = target.device if isinstance(target, Tensor) else target
    if isinstance(target, Tensor):
        tensor = tensor.to(target.dtype)
    return tensor.to(device, non_blocking=device.type != "mps")


def exact(device: torch.device) -> torch.device:
    """Where float64 is computed for what lies on the device."""
    return torch.device("cpu") if device.type in NO_FLOAT64 else device


def double(values: Tensor) -> Tensor:
    """As float64, at the place that `exact` says."""
    return values.to(exact(values.device)).double()

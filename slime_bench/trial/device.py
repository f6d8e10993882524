"""The device that a trial computes on."""

from __future__ import annotations

import functools
import importlib.util
import platform
import re
from pathlib import Path
from typing import Final

from slime_bench.errors import DeviceError

DEVICES: Final = ("auto", "cpu", "cuda", "mps")
"""What a command can be told; as `TrainerConfig.device`."""


def pick_device(name: str, option: str = "trainer=cpu") -> str:
    """`cpu`, `cuda` or `mps` for one of these or for `auto`, which is the first of CUDA, MPS, CPU that is there.

    Args:
        option: by which the command is told to use the CPU, for the message.

    Raises:
        DeviceError: CUDA or MPS was asked for and there is none.
    """
    if name == "auto":
        return "cuda" if has_cuda() else "mps" if has_mps() else "cpu"
    if (name == "cuda" and not has_cuda()) or (name == "mps" and not has_mps()):
        import torch

        needed, build = {
            "cuda": ("an NVIDIA GPU with its driver, and a CUDA build of torch", "a CUDA build of torch"),
            "mps": ("a Mac with Apple silicon, macOS 14 or later", "torch for macOS"),
        }[name]
        raise DeviceError(
            f"{name.upper()} was asked for and there is none",
            path=option.rpartition(" ")[0] or "trainer.device",
            found=f"torch {torch.__version__}, no usable {name.upper()} device",
            expected=needed,
            remedy=f"use {option}, or install {build}",
        )
    return name


@functools.cache
def has_cuda() -> bool:
    """Whether torch can compute on a GPU; it is only imported (which takes seconds) where its build could."""
    spec = importlib.util.find_spec("torch")
    version = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if version and version.is_file() and re.search(r"^cuda\b.*= None$", version.read_text(), re.MULTILINE):
        return False
    import torch

    return torch.cuda.is_available()


def has_mps() -> bool:
    """Whether torch can compute on the GPU of a Mac; it is only imported there."""
    if platform.system() != "Darwin":
        return False
    import torch

    return torch.backends.mps.is_available()


def check_precision(name: str, device: str) -> None:
    """Refuse a precision that the device cannot compute in.

    Raises:
        DeviceError: fp16 elsewhere than on CUDA, where the optimisation would have no loss scaling.
    """
    if name == "fp16" and device != "cuda":
        where = "the CPU" if device == "cpu" else device.upper()
        raise DeviceError(
            "half precision needs CUDA",
            path="trainer.precision",
            found=f"fp16 on {where}",
            expected=f"fp32 or bf16 on {where}",
            remedy="use trainer.precision=bf16",
        )

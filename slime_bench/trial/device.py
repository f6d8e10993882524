"""The device that a trial computes on."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path

from slime_bench.errors import DeviceError


def pick_device(name: str, option: str = "trainer=cpu") -> str:
    """`cpu` or `cuda` for `auto`, `cpu` or `cuda`.

    Args:
        option: by which the command is told to use the CPU, for the message.

    Raises:
        DeviceError: CUDA was asked for and there is none.
    """
    if name == "auto":
        return "cuda" if has_cuda() else "cpu"
    if name == "cuda" and not has_cuda():
        import torch

        raise DeviceError(
            "CUDA was asked for and there is none",
            path=option.rpartition(" ")[0] or "trainer.device",
            found=f"torch {torch.__version__}, no usable CUDA device",
            expected="an NVIDIA GPU with its driver, and a CUDA build of torch",
            remedy=f"use {option}, or install a CUDA build of torch",
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


def check_precision(name: str, device: str) -> None:
    """Refuse a precision that the device cannot compute in.

    Raises:
        DeviceError: fp16 on the CPU, where the optimisation would have no loss scaling.
    """
    if name == "fp16" and device == "cpu":
        raise DeviceError(
            "half precision needs CUDA",
            path="trainer.precision",
            found="fp16 on the CPU",
            expected="fp32 or bf16 on the CPU",
            remedy="use trainer.precision=bf16",
        )

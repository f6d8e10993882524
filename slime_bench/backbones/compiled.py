"""torch.compile for the blocks of a diffusers network that no capture looks into."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Final

from torch import nn

from slime_bench.errors import ConfigError

BLOCKS: Final = ("ResnetBlock2D", "FeedForward")
"""Classes of diffusers, each of whose modules is compiled for itself. Not attention: a capture looks on while it runs,
and may end the pass in it, where a graph would break."""

INDUCTOR: Final = "inductor"
"""torch's own backend, which writes C++ and has it compiled, on CUDA what launches its kernels."""

VARIANTS: Final = 512
"""Graphs that torch may keep of one class. Its own 8 are meant for one module; here all modules of a class count
together, each with and without gradient and once for every number of images."""


def compile_blocks(*networks: nn.Module, backend: str = INDUCTOR) -> int:
    """Let torch compile the networks' `BLOCKS`, when they first run, for each size that comes up.

    Results are those of the plain run but for rounding.

    Args:
        networks: of diffusers. backend: of torch.compile.

    Returns:
        how many modules that are.

    Raises:
        ConfigError: there is no C++ compiler, without which it fails in the middle of the first step.
    """
    if backend == INDUCTOR:
        _check_compiler()
        _keep_processors_apart()
    import torch._dynamo

    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, VARIANTS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, len(BLOCKS) * VARIANTS)
    found = [module for network in networks for module in network.modules() if type(module).__name__ in BLOCKS]
    for module in found:
        module.compile(dynamic=False, backend=backend)
    return len(found)


def _check_compiler() -> None:
    wanted = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(wanted) is None:
        raise ConfigError(
            "torch.compile needs a C++ compiler, also for CUDA", path="backbone.compile", found=f"no `{wanted}`",
            expected="one on the PATH, or named by the environment variable CXX",
            remedy="install one, e.g. `apt install g++`, or leave backbone.compile=false",
        )  # fmt: skip


def _keep_processors_apart() -> None:
    """Let the width of this processor's vectors enter the key of torch's store of compiled code.

    The key has the settings and nothing of the processor. C++ that was written for vectors of 512 bits leaves half of
    a result unwritten where it is compiled for 256, which gives NaN without a word, and writes beyond its end the other
    way round; so it must not be found by a processor with other vectors that shares the store.
    """
    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    if config.cpp.simdlen is None:
        config.cpp.simdlen = pick_vec_isa().bit_width()

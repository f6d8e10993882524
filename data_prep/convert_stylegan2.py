"""Convert a StyleGAN2 checkpoint into a folder that `slime_bench.backbones.stylegan2` loads.

    python -m data_prep.convert_stylegan2 --checkpoint stylegan2-car.pt --out stylegan2_car

Read are checkpoints of rosinality's stylegan2-pytorch: the averaged generator under the key `g_ema`, as its train.py
and its convert_weight.py write them. Written are config.json, model.safetensors (float32), conversion.json and
sha256.json. The checkpoint is read as numbers only: no code in it is run. NVIDIA's own .pkl files are code: they are
read by NVIDIA's program, which convert_weight.py calls, where you let it run; what that writes is read here.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from data_prep.checkpoint import read_tensors, refuse_filled, write_model
from data_prep.commands import plain_parser, run
from slime_bench.backbones.gan import KIND, Architecture
from slime_bench.backbones.load import guarded
from slime_bench.backbones.stylegan2 import BLUR, Generator
from slime_bench.errors import BackboneError
from slime_bench.paths import user_path

EXPORT: Final = (
    "rosinality's convert_weight.py turns one of NVIDIA's .pkl, which is code, into a .pt of numbers; of a model of"
    " your own, save the tensors alone: torch.save({'g_ema': g_ema.state_dict()}, 'weights.pt')"
)
KERNELS: Final = r"convs\.\d+\.conv\.blur\.kernel|to_rgbs\.\d+\.upsample\.kernel"


def main(arguments: list[str]) -> int:
    """The command; see the module."""
    parser = plain_parser("convert_stylegan2", __doc__)
    parser.add_argument("--checkpoint", type=user_path, required=True, help="the .pt file")
    parser.add_argument("--out", type=user_path, required=True, help="folder for the converted model; new or empty")
    args = parser.parse_args(arguments)
    refuse_filled(args.out)
    # train.py keeps its options beside the weights, in a class that holds plain values and runs nothing.
    state = read_tensors(args.checkpoint, "g_ema", EXPORT, [argparse.Namespace])
    dropped = {name: value for name, value in state.items() if re.fullmatch(KERNELS, name)}
    tensors = {name: value.float().contiguous() for name, value in state.items() if name not in dropped}
    check_kernels(dropped)
    sizes = architecture(tensors)
    with torch.device("meta"):
        network = Generator(sizes)
    guarded("checkpoint", args.checkpoint, lambda: network.load_state_dict(tensors, assign=True))
    said = {"used": sorted(tensors), "dropped": sorted(dropped)}
    config = {"model_type": KIND, **dataclasses.asdict(sizes)}
    write_model(args.out, parser.prog, args.checkpoint, tensors, config, said)
    print(f"{len(tensors)} tensors of a generator of {sizes.size} pixels; {len(dropped)} blur kernels dropped")
    print(f"use it with method=regan backbone=stylegan2 backbone.weights={args.out.resolve()}")
    return 0


def check_kernels(kernels: Mapping[str, Tensor]) -> None:
    """Refuse blurs of another kind than [1,3,3,1], which the bench's network has."""
    line = torch.tensor(BLUR) / sum(BLUR)
    for name, kernel in kernels.items():
        if kernel.shape != (4, 4) or not torch.allclose(kernel.float(), 4 * torch.outer(line, line), atol=1e-6):
            raise _foreign(name, f"a kernel of {list(kernel.shape)} with other numbers")


def architecture(tensors: Mapping[str, Tensor]) -> Architecture:
    """Sizes read off the tensors; BackboneError where some that a generator needs are missing."""

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in tensors or tensors[name].ndim != axes:
            raise _foreign(name, f"no tensor of {axes} axes: missing, or of another shape")
        return tuple(tensors[name].shape)

    channels = {4: shape("input.input", 4)[1]}
    for level in range(sum(bool(re.fullmatch(r"to_rgbs\.\d+\.bias", name)) for name in tensors)):
        channels[8 * 2**level] = shape(f"convs.{2 * level}.conv.weight", 5)[1]
    layers = sum(bool(re.fullmatch(r"style\.\d+\.weight", name)) for name in tensors)
    width = shape("style.1.weight", 2)[1]
    return Architecture(size=max(channels), style_dim=width, n_mlp=layers, channels=channels)


def _foreign(name: str, found: str) -> BackboneError:
    return BackboneError(
        "this checkpoint does not hold a StyleGAN2 that can be converted", path=name, found=found,
        expected="the generator of rosinality's stylegan2-pytorch under the key g_ema (input.input, style.1.weight,"
        " convs.0.conv.weight, ..)",
        remedy=f"{EXPORT}; StyleGAN2-ADA and StyleGAN3 have other names and are not read",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(run(main))

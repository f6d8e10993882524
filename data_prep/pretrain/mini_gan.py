"""Train the mini GAN from scratch on cars of the mini world; write it as a folder that the bench's StyleGAN2 reads.

    python -m data_prep.pretrain.mini_gan --out slime_bench/assets/mini_gan

A checkpoint is saved every three minutes in `--work`, and the same command goes on
from there after an interruption.
"""

from __future__ import annotations

import argparse
from typing import Final

import torch
from lightning.fabric import Fabric
from torch import nn

from data_prep.pretrain.discriminator import Pair
from data_prep.pretrain.gan_export import export
from data_prep.pretrain.gan_pool import Pool
from data_prep.pretrain.stream import stream_rng
from data_prep.pretrain.trainloop import Stage, arguments, fabric_of, train
from slime_bench.backbones.gan import Architecture

SIZES: Final = Architecture(size=64, style_dim=128, n_mlp=4, channels={4: 96, 8: 96, 16: 96, 32: 48, 64: 24})
GAMMA, EVERY = 0.2, 8  # of R1, and steps between two of its computations
BATCH = 16
PICTURES = 130_000
POOL = 20_000
"""Pictures that are rendered once and seen again, mirrored in half of the cases."""


def stage() -> Stage:
    """The only stage."""
    return Stage("gan64", PICTURES, BATCH, 2e-3, warmup=50, decay_from=0.8, averaging=0.999)


def train_gan(fabric: Fabric, args: argparse.Namespace) -> None:
    """The training, in each of the processes."""
    torch.manual_seed(0)
    pair, pool, batch = Pair(SIZES, GAMMA), Pool(0, POOL, SIZES.size), BATCH // fabric.world_size
    optimiser = torch.optim.Adam(pair.parameters(), lr=stage().rate, betas=(0.0, 0.99))
    sides = pair.generator.noise_sides

    def losses(module: nn.Module, step: int) -> dict[str, torch.Tensor]:
        rng, draws = stream_rng(f"{stage().name}.{fabric.global_rank}", step)
        real = pool.batch(batch, rng).to(fabric.device)
        latents = torch.randn(batch, SIZES.style_dim, generator=draws).to(fabric.device)
        noises = [torch.randn(batch, 1, side, side, generator=draws).to(fabric.device) for side in sides]
        found: dict[str, torch.Tensor] = module(real, latents, noises, EVERY if step % EVERY == 0 else 0)
        return found

    train(fabric, stage(), args.work, pair.train(), optimiser, losses)


def main() -> None:
    args = arguments(__doc__, "mini_gan", stage().name)
    if not args.export_only:
        fabric_of(args.device, args.processes).launch(train_gan, args)  # type: ignore[arg-type]
    export(args.work, args.out, SIZES, stage().name, torch.device(args.device))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()

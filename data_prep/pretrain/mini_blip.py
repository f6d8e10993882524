"""Train the mini BLIP from scratch on the mini world and write it in the layout of the hub's BLIP.

    python -m data_prep.pretrain.mini_blip --minutes 80 --out slime_bench/assets/mini_blip

Stages: pictures of 64 pixels, then of 128. Every stage saves a checkpoint every three minutes in `--work`, and the same
command goes on from there after an interruption.
"""

from __future__ import annotations

import argparse

import torch
from lightning.fabric import Fabric

from data_prep.pretrain.blip_export import export
from data_prep.pretrain.blip_matcher import Matcher, train_blip
from data_prep.pretrain.models import build_blip, build_blip_tokenizer
from data_prep.pretrain.trainloop import arguments, fabric_of
from slime_bench.data.mini_world.render import vocabulary

SHARES = {64: 0.2, 128: 0.8}  # of the minutes
BATCH = {"cpu": {64: 16, 128: 8}, "cuda": {64: 256, 128: 128}}  # per process
SIZE = {"width": 192, "layers": 6}


def train_matcher(fabric: Fabric, args: argparse.Namespace) -> None:
    """Both stages, in each of the processes."""
    torch.manual_seed(0)
    tokenizer = build_blip_tokenizer(vocabulary())
    matcher = Matcher(build_blip(tokenizer, **SIZE))
    for side, batch in BATCH[fabric.device.type].items():
        train_blip(matcher, tokenizer, fabric, args.work, 60 * args.minutes * SHARES[side], side, batch)


def main() -> None:
    args = arguments(__doc__, "mini_blip", 80.0, "blip128")
    if not args.export_only:
        fabric_of(args.device, args.processes).launch(train_matcher, args)  # type: ignore[arg-type]
    export(args.work, args.out, SIZE, torch.device(args.device))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()

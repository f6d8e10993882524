"""Train the mini BLIP from scratch on the mini world and write it in the layout of the hub's BLIP.

    python -m data_prep.pretrain.mini_blip --minutes 80 --out slime_bench/assets/mini_blip

Stages: pictures of 64 pixels, then of 128. Every stage saves a checkpoint every three minutes in `--work`, and the same
command goes on from there after an interruption.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from pathlib import Path

import torch

from data_prep.pretrain.blip import Matcher, train_blip
from data_prep.pretrain.blip_export import export
from data_prep.pretrain.blip_models import build_blip, build_tokenizer
from data_prep.pretrain.trainloop import Clock, Ranks, arguments, in_processes, pick_device
from slime_bench.data.mini_world.render import vocabulary

SHARES = {"blip64": 0.2, "blip128": 0.8}  # of the minutes
BATCH = {"cpu": {64: 16, 128: 8}, "cuda": {64: 256, 128: 128}}  # per process
SIZE = {"width": 192, "layers": 6}


def train_rank(rank: int, size: int, rendezvous: Path, args: argparse.Namespace) -> None:
    """Both stages in one of `size` processes; rank 0 keeps checkpoints and the log."""
    device = pick_device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // size))
    torch.manual_seed(0)
    ranks = Ranks(rank, size, rendezvous)
    tokenizer = build_tokenizer(vocabulary())
    matcher = Matcher(build_blip(tokenizer, **SIZE))
    ema = copy.deepcopy(matcher)
    for side in (64, 128):
        name = f"blip{side}"
        clock = Clock(args.work / name, args.minutes * 60 * SHARES[name], name, quiet=rank > 0)
        batch = BATCH[device.type][side]
        train_blip(matcher, ema, tokenizer, clock, device, ranks, side, batch, decay_from=0.99 if side == 64 else 0.6)


def main() -> None:
    args = arguments(__doc__, "mini_blip", 80.0, "blip128")
    device = pick_device(args.device)
    started = time.time()
    if not args.export_only:
        in_processes(train_rank, args)
    export(args.work, args.out, SIZE, device)
    print(f"wrote {args.out} after {(time.time() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()

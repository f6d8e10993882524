"""Train the mini BLIP from scratch on the mini world and write it in the layout of the hub's BLIP.

    python -m data_prep.pretrain.mini_blip --out slime_bench/assets/mini_blip

The stages follow one another without a choice between them, so an interruption costs nothing: every stage saves a
checkpoint every three minutes in `--work`, and the same command goes on from there.
"""

from __future__ import annotations

import argparse

import torch
from lightning.fabric import Fabric

from data_prep.pretrain.blip_export import export
from data_prep.pretrain.blip_matcher import Matcher, train_blip
from data_prep.pretrain.models import build_blip, build_blip_tokenizer
from data_prep.pretrain.trainloop import Stage, arguments, averaged_weights, fabric_of
from slime_bench.data.mini_world.render import vocabulary


def stage(name: str, side: int, images: int, rate: float, decay_from: float = 1.0) -> Stage:
    """A stretch of the training; by default the rate stays."""
    return Stage(f"blip{name}", images, 16, rate, decay_from=decay_from, averaging=0.998, side=side)


STAGES = (
    stage("64", 64, 20_000, 7e-4),
    stage("128-1", 128, 35_000, 4e-4),
    stage("128-2", 128, 50_000, 4e-4),
    stage("128-3", 128, 25_000, 4e-4),
    stage("128-4", 128, 75_000, 4e-4, decay_from=0.0),
)
SIZE = {"width": 192, "layers": 6}


def train_matcher(fabric: Fabric, args: argparse.Namespace) -> None:
    """All stages, in each of the processes."""
    torch.manual_seed(0)
    tokenizer = build_blip_tokenizer(vocabulary())
    matcher = Matcher(build_blip(tokenizer, **SIZE))
    # A fifth less time for a step on a CPU. Where there is no C++ compiler: TORCH_COMPILE_DISABLE=1.
    matcher.model.vision_model.encoder.compile(dynamic=False)
    for number, stage in enumerate(STAGES):
        train_blip(matcher, tokenizer, fabric, args.work, stage, number)
        # The next starts from what would be shipped: averaged weights in half precision.
        weights = averaged_weights(args.work, stage.name)
        matcher.load_state_dict({name: value.half() for name, value in weights.items()})


def main() -> None:
    args = arguments(__doc__, "mini_blip", STAGES[-1].name)
    if not args.export_only:
        fabric_of(args.device, args.processes).launch(train_matcher, args)  # type: ignore[arg-type]
    export(args.work, args.out, SIZE, [stage.name for stage in STAGES], torch.device(args.device))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()

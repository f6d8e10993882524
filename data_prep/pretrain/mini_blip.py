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
from data_prep.pretrain.blip_matcher import BlipStage, Matcher, train_blip
from data_prep.pretrain.models import build_blip, build_blip_tokenizer
from data_prep.pretrain.trainloop import arguments, averaged_weights, fabric_of
from slime_bench.data.mini_world.render import vocabulary

STAGES = (
    BlipStage("64", side=64, images=20_000, rate=7e-4),
    BlipStage("128-1", side=128, images=35_000, rate=4e-4),
    *(BlipStage(f"128-{number}", side=128, images=50_000, rate=4e-4) for number in range(2, 8)),
    BlipStage("128-8", side=128, images=50_000, rate=4e-4, decay_from=0.0),
)
SIZE = {"width": 192, "layers": 6}


def train_matcher(fabric: Fabric, args: argparse.Namespace) -> None:
    """All stages, in each of the processes."""
    torch.manual_seed(0)
    tokenizer = build_blip_tokenizer(vocabulary())
    matcher = Matcher(build_blip(tokenizer, **SIZE))
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

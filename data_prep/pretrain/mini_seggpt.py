"""Train the mini SegGPT from scratch on horses, faces and general shapes; write it in the layout of the hub's SegGPT.

    python -m data_prep.pretrain.mini_seggpt --out slime_bench/assets/mini_seggpt

Stages: pictures of 64 pixels whose parts always have the same colours, as Painter, SegGPT's forerunner, learned; then
colours that the prompt alone tells, at 64 and at 128 pixels. Every stage saves a checkpoint every three minutes in
`--work`, and the same command goes on from there after an interruption.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import nn
from transformers import SegGptConfig, SegGptForImageSegmentation

from data_prep.pretrain.blip_losses import normalised
from data_prep.pretrain.seggpt_export import export
from data_prep.pretrain.seggpt_pairs import draw_pair
from data_prep.pretrain.stream import stream_rng
from data_prep.pretrain.trainloop import Stage, adamw, arguments, averaged_weights, fabric_of, train

SIDE, PATCH = 128, 8
SIZE = {"hidden_size": 160, "num_hidden_layers": 6, "num_attention_heads": 5, "decoder_hidden_size": 16}


@dataclass(frozen=True, kw_only=True)
class PainterStage(Stage):
    """A stretch of the training; by default the rate stays. Attribute `fixed`: see `draw_pair`."""

    batch: int = 16
    rate: float = 1e-3
    warmup: int = 100
    decay_from: float = 1.0
    averaging: float = 0.998
    fixed: bool = False


STAGES = (
    PainterStage(name="seggpt64-fixed", side=64, images=20_000, fixed=True),
    PainterStage(name="seggpt64-1", side=64, images=68_784),
    PainterStage(name="seggpt64-2", side=64, images=60_000),
    PainterStage(name="seggpt128", side=128, images=9_600, rate=7e-4, decay_from=0.4),
)


def build_seggpt() -> SegGptForImageSegmentation:
    """The architecture, small: streams are merged after the first layer, the decoder reads layers 3, 4 and 6."""
    config = SegGptConfig(
        **SIZE, image_size=[2 * SIDE, SIDE], patch_size=PATCH, pretrain_image_size=SIDE, drop_path_rate=0.0,
        merge_index=0, intermediate_hidden_state_indices=[2, 3, 5], beta=1.0,
    )  # fmt: skip
    return SegGptForImageSegmentation(config)


def at_side(model: SegGptForImageSegmentation, side: int) -> None:
    """Let the model take pictures of `side` pixels; position embeddings are resized by the library in each call."""
    patches = model.model.embeddings.patch_embeddings
    patches.image_size, patches.num_patches = (2 * side, side), 2 * (side // PATCH) ** 2


def train_stage(
    model: SegGptForImageSegmentation, fabric: Fabric, work: Path, stage: PainterStage, number: int
) -> None:
    """Train one stage, or load what was trained of it: the whole mask of the query is hidden and painted anew.

    Args:
        number: of the stage; each reads its own stretch of the stream.
    """
    at_side(model, stage.side)
    batch, patches = stage.batch // fabric.world_size, (stage.side // PATCH) ** 2
    optimiser = adamw(model, stage.rate)
    hidden = torch.arange(2).repeat_interleave(patches).bool().expand(batch, -1).to(fabric.device)

    def losses(module: nn.Module, step: int) -> dict[str, torch.Tensor]:
        rng, _ = stream_rng(f"{stage.name}.{fabric.global_rank}", step)
        first = number * 10_000_000 + step * stage.batch + fabric.global_rank * batch
        pairs = [draw_pair(first + place, stage.side, rng, stage.fixed) for place in range(batch)]
        images, masks = (
            normalised(torch.from_numpy(np.concatenate(each)).to(fabric.device)).unflatten(0, (batch, 2))
            for each in zip(*pairs, strict=True)
        )
        found = module(
            pixel_values=images[:, 1], prompt_pixel_values=images[:, 0], prompt_masks=masks[:, 0], labels=masks[:, 1],
            bool_masked_pos=hidden,
        )  # fmt: skip
        return {"loss": found.loss}

    train(fabric, stage, work, model.train(), optimiser, losses)


def train_painter(fabric: Fabric, args: argparse.Namespace) -> None:
    """All stages, in each of the processes."""
    torch.manual_seed(0)
    model = build_seggpt()
    for number, stage in enumerate(STAGES):
        train_stage(model, fabric, args.work, stage, number)
        model.load_state_dict(averaged_weights(args.work, stage.name))


def main() -> None:
    args = arguments(__doc__, "mini_seggpt", STAGES[-1].name)
    if not args.export_only:
        fabric_of(args.device, args.processes).launch(train_painter, args)  # type: ignore[arg-type]
    export(args.work, args.out, build_seggpt(), [stage.name for stage in STAGES], torch.device(args.device))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()

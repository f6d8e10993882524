"""Train the mini SegGPT from scratch on horses, faces and general shapes; write it in the layout of the hub's SegGPT.

    python -m data_prep.pretrain.mini_seggpt --out slime_bench/assets/mini_seggpt

Stages: 64-pixel pictures, then 128-pixel ones. Every stage saves a checkpoint every three minutes in `--work`, and the
same command goes on from there after an interruption.
"""

from __future__ import annotations

import argparse
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
from data_prep.pretrain.trainloop import Stage, arguments, averaged_weights, fabric_of, train

SIDE, PATCH = 128, 8
SIZE = {"hidden_size": 160, "num_hidden_layers": 6, "num_attention_heads": 2, "decoder_hidden_size": 16}
BATCH = 16
PICTURES = {64: 64_000, 128: 14_400}  # side -> pairs
RATE = {64: 1e-3, 128: 7e-4}


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


def stage_of(side: int) -> Stage:
    """The stage of pictures of `side` pixels."""
    last = side == max(PICTURES)
    return Stage(
        f"seggpt{side}", PICTURES[side], BATCH, RATE[side], warmup=100, decay_from=0.4 if last else 1.0, averaging=0.998
    )


def train_stage(model: SegGptForImageSegmentation, fabric: Fabric, work: Path, side: int) -> None:
    """Train one stage, or load what was trained of it: the whole mask of the query is hidden and painted anew."""
    at_side(model, side)
    stage, batch = stage_of(side), BATCH // fabric.world_size
    matrices, gains = ([p for p in model.parameters() if (p.ndim >= 2) == wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": gains, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=stage.rate, betas=(0.9, 0.98))
    hidden = torch.arange(2).repeat_interleave((side // PATCH) ** 2).bool().expand(batch, -1).to(fabric.device)

    def losses(module: nn.Module, step: int) -> dict[str, torch.Tensor]:
        rng, _ = stream_rng(f"{stage.name}.{fabric.global_rank}", step)
        first = (0 if side == min(PICTURES) else 10_000_000) + step * BATCH + fabric.global_rank * batch
        pairs = [draw_pair(first + place, side, rng) for place in range(batch)]
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
    """Both stages, in each of the processes."""
    torch.manual_seed(0)
    model = build_seggpt()
    for side in PICTURES:
        train_stage(model, fabric, args.work, side)
        model.load_state_dict(averaged_weights(args.work, stage_of(side).name))


def main() -> None:
    args = arguments(__doc__, "mini_seggpt", stage_of(max(PICTURES)).name)
    if not args.export_only:
        fabric_of(args.device, args.processes).launch(train_painter, args)  # type: ignore[arg-type]
    export(args.work, args.out, build_seggpt(), [stage_of(side).name for side in PICTURES], torch.device(args.device))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()

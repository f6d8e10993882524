"""Write a trained mini GAN as fp16 safetensors, with a card of figures and a sheet of its pictures."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from data_prep.pretrain.export import export_model, parameter_count
from data_prep.pretrain.gan_pool import Pool
from data_prep.pretrain.trainloop import averaged_weights
from data_prep.pretrain.vae import HELD_OUT
from slime_bench.backbones.gan import KIND, Architecture, StyleGan2
from slime_bench.backbones.stylegan2 import StyleGan2Backbone, bytes_of
from slime_bench.methods.regan.config import Inversion
from slime_bench.methods.regan.inversion import invert, stream_of

INVERTED: Final = 8
"""Held-out pictures behind `inversion`."""
SHEET: Final = (6, 10)
"""Rows and columns of the sheet."""


def export(work: Path, out: Path, sizes: Architecture, stage: str, device: torch.device) -> None:
    """Averaged weights of the stage in `work` -> the folder `out`, replaced when the new one is complete."""

    def write(folder: Path) -> dict[str, Any]:
        weights = averaged_weights(work, stage)
        own = {name.removeprefix("generator."): each for name, each in weights.items() if name.startswith("generator.")}
        folder.mkdir(parents=True)
        save_file({name: each.half().contiguous() for name, each in own.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": KIND, **dataclasses.asdict(sizes)}, indent=1))
        # Measure what was written, not what was trained: half precision included.
        loaded = StyleGan2Backbone(StyleGan2.Config(weights=str(folder))).to(device)
        pictures = torch.cat([bytes_of(loaded.numbered(number).pictures).cpu() for number in range(math.prod(SHEET))])
        Image.fromarray(sheet(pictures)).save(folder / "samples.png")
        return {"parameters": parameter_count(loaded), "measured": {"inversion": inversion_error(loaded)}}

    export_model(out, work, [stage], device, write, PAGE)


def sheet(pictures: torch.Tensor) -> np.ndarray:
    """Pictures uint8 [B,3,R,R] side by side, uint8 [.,.,3]."""
    side = pictures.shape[-1]
    grid = pictures.view(*SHEET, 3, side, side).permute(0, 3, 1, 4, 2)
    return grid.reshape(SHEET[0] * side, SHEET[1] * side, 3).numpy()


def inversion_error(backbone: StyleGan2Backbone, settings: Inversion | None = None) -> float:
    """How far the generator stays from held-out pictures that it is made to paint: root mean square error, of 1."""
    pool = Pool(HELD_OUT, INVERTED, backbone.sizes.size)
    squares = []
    for number in range(INVERTED):
        picture = torch.from_numpy(pool[number]).permute(2, 0, 1)[None].to(backbone.mean_style) / 127.5 - 1
        noises = backbone.noises([stream_of(0, "card noise", number)])
        settings = settings or Inversion(starts=200, steps=300)
        styles = invert(backbone, picture, noises, settings, stream_of(0, "card", number))
        with torch.no_grad():
            squares.append(float((backbone.generate(styles, noises).pictures - picture).square().mean()) / 4)
    return round(math.sqrt(sum(squares) / len(squares)), 4)


PAGE = """# mini_gan: a small StyleGAN2 of the mini car, trained from scratch

Made by `python -m data_prep.pretrain.mini_gan`. It is a test and teaching model for ReGAN, and paints cars of the
procedural world alone, at 64 pixels: it is of no use for horses and faces.

Data: rendered by `slime_bench/data/mini_world`, split `pretrain`, which shares no picture with support, val or test.

Architecture: StyleGAN2 with narrow layers; the discriminator, with as many channels, is not kept. Losses: the
non-saturating one and R1 in some steps; no path length regularisation and no mixing of styles. Weights are averaged
over the training and stored as fp16 safetensors.

`inversion`: root mean square error, of 1, between eight held-out pictures and what the generator paints when it is made
to paint them, with the settings of the preset `mini`. `samples.png`: the pictures of the numbers 0 to 59.
"""

"""Write a trained mini SegGPT as fp16 safetensors in the hub's layout, with a card of figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import SegGptForImageSegmentation

from data_prep.pretrain.export import export_model, parameter_count
from data_prep.pretrain.seggpt_pairs import stream_picture
from data_prep.pretrain.trainloop import averaged_weights
from data_prep.pretrain.vae import HELD_OUT
from slime_bench.backbones.seggpt import SegGptBackbone
from slime_bench.data.mini_world.render import Picture
from slime_bench.data.mini_world.subjects import CLASSES

PROMPTS = (1, 4)
"""Prompts of a query, in the card's figures."""
WHITE = torch.tensor([[0, 0, 0], [255, 255, 255]], dtype=torch.uint8)
THRESHOLD = 128  # of the mean of three colours in 0..255


def export(
    work: Path, out: Path, model: SegGptForImageSegmentation, stages: Sequence[str], device: torch.device
) -> None:
    """Averaged weights of the last stage in `work` -> the folder `out`, replaced when the new one is complete.

    Args:
        model: of the trained architecture.
    """

    def write(folder: Path) -> dict[str, Any]:
        model.load_state_dict(averaged_weights(work, stages[-1]))
        model.to(torch.float16).save_pretrained(folder, safe_serialization=True)
        # Measure what was written, not what was trained: half precision included.
        loaded = SegGptBackbone(SegGptBackbone.Config(weights=str(folder))).to(device)
        return {"parameters": parameter_count(loaded), "measured": measure(loaded)}

    export_model(out, work, stages, device, write, PAGE)


def measure(backbone: SegGptBackbone, pictures: int = 40) -> dict[str, Any]:
    """Mean IoU of binary prompts in percent on held-out pictures: subject -> `1 prompt`, `4 prompts`, and for one
    prompt `parts`."""
    found: dict[str, Any] = {}
    for subject, names in CLASSES.items():
        queries = [stream_picture(subject, HELD_OUT + place) for place in range(pictures)]
        pool = [stream_picture(subject, HELD_OUT + pictures + place) for place in range(pictures)]
        figures = {
            count: {name: part_iou(backbone, queries, pool, label, count) for label, name in enumerate(names) if label}
            for count in PROMPTS
        }
        means = {f"{count} prompt{'s' * (count > 1)}": np.mean(list(each.values())) for count, each in figures.items()}
        parts = {name: round(100 * value, 1) for name, value in figures[1].items()}
        found[subject] = {**{name: round(100 * float(value), 1) for name, value in means.items()}, "parts": parts}
    return found


def part_iou(
    backbone: SegGptBackbone, queries: Sequence[Picture], pool: Sequence[Picture], label: int, count: int
) -> float:
    """IoU of a part over all queries, in [0,1]; each is prompted with the next `count` pictures that show the part."""
    shown = [each for each in pool if (each.label == label).sum() >= 12]
    inside = union = 0
    for place, query in enumerate(queries):
        own = [shown[(place + step) % len(shown)] for step in range(count)]
        images, labels = _tensors([query, *own], backbone)
        pixels, masks = backbone.pictures(images), backbone.painted((labels == label).long(), WHITE)
        painted = backbone.paint(pixels[:1], pixels[None, 1:], masks[None, 1:])[0].mean(0) > THRESHOLD
        truth = labels[0] == label
        inside, union = inside + int((painted & truth).sum()), union + int((painted | truth).sum())
    return inside / max(1, union)


def _tensors(pictures: Sequence[Picture], backbone: SegGptBackbone) -> tuple[torch.Tensor, torch.Tensor]:
    """Images float32 [B,3,128,128] in [0,1] and label maps int64 [B,R,R]."""
    images = torch.from_numpy(np.stack([each.image for each in pictures])).permute(0, 3, 1, 2) / 255
    labels = torch.from_numpy(np.stack([each.label for each in pictures])).long()
    return images.to(backbone.mean.device), backbone.labels(labels).to(backbone.mean.device)


PAGE = """# mini_seggpt: a small SegGPT (in-context painting), trained from scratch

Made by `python -m data_prep.pretrain.mini_seggpt`. It is a test and teaching model: it has seen horses and faces of the
procedural world and general shapes, and **never a car**. The table of cars is therefore the honest one.

Data: rendered on the fly by `slime_bench/data/mini_world`, split `pretrain`, which shares no picture with support, val
or test, and pairs of pictures with the same polygons, ellipses and stripes. A pair is a prompt and a query; a random
subset of the prompt's parts, in random groups, is painted in random colours, or in white on black, in both masks. The
first stage paints every part in its own colour, always the same, as Painter learned before SegGPT. So the parts of
horses and faces are known as parts from training, as PASCAL-Part's and PACO's may be to the published SegGPT.

Architecture: that of SegGPT, 6 layers of width 160, 8-pixel patches, two streams in the first layer. Loss: smooth L1
(beta 1; the published configuration has 0.01) on the query's mask, which is hidden as a whole, as at inference; SegGPT
hides random patches of both masks. Weights are fp16 safetensors.

`1 prompt`, `4 prompts`: IoU in percent of a binary prompt, of a part over 40 held-out pictures, averaged over the
parts; each query is prompted with other held-out pictures that show the part. `parts`: with one prompt, part by part.
"""

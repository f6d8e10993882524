"""What the layers of a mini BLIP do, on held-out pictures of the stream: how well each segments alone, and whether
InfoScore sees it. For the card; nothing is trained or chosen with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from data_prep.pretrain.stream import stream_picture
from data_prep.pretrain.vae import HELD_OUT
from slime_bench.backbones.blip import BlipBackbone
from slime_bench.data.mini_world.render import SUBJECTS
from slime_bench.data.mini_world.subjects import CLASSES
from slime_bench.methods.base import label_maps
from slime_bench.methods.infoscore.layer_study import correlation, percent
from slime_bench.methods.infoscore.maps import layer_classes, marginals, probabilities, read, view
from slime_bench.methods.infoscore.prompts import read_prompts
from slime_bench.methods.infoscore.score import InfoScoreMetric
from slime_bench.metrics.iou import IouMetric
from slime_bench.paths import config_dir


@torch.no_grad()
def measure_layers(folder: Path, device: torch.device, pictures: int = 40) -> dict[str, Any]:
    """Zero-shot without refinement, mIoU in percent over the classes with background, under the mini preset's protocol.

    Args:
        folder: the model. pictures: of each subject.

    Returns:
        subject -> `top2`: mIoU of the two layers that InfoScore puts first; `layers`: of every layer alone;
        `spread`: largest minus smallest of these; `rho`: Spearman's between InfoScore and these.
    """
    backbone = BlipBackbone(BlipBackbone.Config(weights=str(folder), image_size=128)).to(device)
    protocol = instantiate(OmegaConf.load(config_dir() / "protocol" / "infoscore_mini.yaml"))
    return {subject: _of_subject(backbone, protocol, subject, device, pictures) for subject in SUBJECTS}


def _of_subject(
    backbone: BlipBackbone, protocol: Any, subject: str, device: torch.device, pictures: int
) -> dict[str, Any]:
    classes, names = CLASSES[subject], backbone.layers
    asked = read_prompts(f"mini_{subject}").expand(classes, multi=False)
    prompts = backbone.tokenize(asked.texts)
    shown, score = view(asked, asked, prompts), InfoScoreMetric(names, len(asked.texts)).to(device)
    first, step = HELD_OUT + list(SUBJECTS).index(subject), len(SUBJECTS)
    found, labels = [], []
    for index in range(first, first + step * pictures, step):
        picture = stream_picture(index)
        image = torch.from_numpy(picture.image).to(device).permute(2, 0, 1)[None].float() / 255
        labels.append(torch.from_numpy(picture.label.astype(np.int64))[None])
        maps = shown.layer_maps(read(backbone, backbone.encode_images(image), prompts, protocol), protocol)
        size = (image.shape[-2], image.shape[-1])
        score.update(marginals(maps, shown.spans, backbone.grid(size), size, protocol))
        found.append(dict(zip(names, layer_classes(maps, shown.spans, protocol), strict=True)))

    def miou(layers: tuple[str, ...]) -> float:
        metric = IouMetric(len(classes))
        for each, label in zip(found, labels, strict=True):
            size = (label.shape[-2], label.shape[-1])
            metric.update(
                label_maps(probabilities([each[name] for name in layers], backbone.grid(size), size, protocol)).cpu(),
                label,
            )
        return round(percent(metric.counts(), "slime"), 1)

    ranking, single = score.compute(), [miou((name,)) for name in names]
    rho = correlation(ranking.score, single)
    return {
        "top2": miou(ranking.top(2)),
        "chosen": list(ranking.top(2)),
        "layers": single,
        "spread": round(max(single) - min(single), 1),
        "rho": None if rho is None else round(rho, 2),
    }

"""Folders of Stable Diffusion's true architectures with random weights: what nobody can download here, in seconds."""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slime_bench.backbones.locate import ASSETS, SD_CONFIGS

PARAMETERS = {
    # of the published models: U-Net, autoencoder, text encoder
    "sd15": (859_520_964, 83_653_863, 123_060_480),
    "sd21_base": (865_910_724, 83_653_863, 340_387_840),
}


def build_full_size(name: str, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write a diffusers folder with random weights of the true architecture.

    Args:
        name: a folder of `slime_bench/assets/sd_configs`, such as `sd15` or `sd21_base`.
        folder: to be made. dtype: of the files.

    Returns:
        folder, with unet, vae, text_encoder, tokenizer, scheduler and model_index.json.
    """
    shutil.copytree(ASSETS / SD_CONFIGS / name, folder)
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(ASSETS / "clip_vocabulary" / file, folder / "tokenizer")
    for part in ("unet", "vae", "text_encoder"):
        model = _architecture(part, json.loads((folder / part / "config.json").read_text()), dtype)
        fill(model)
        model.save_pretrained(folder / part)  # type: ignore[operator]
        del model
    return folder


def _architecture(part: str, config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        if part == "text_encoder":
            model = CLIPTextModel(CLIPTextConfig(**config))
        else:
            model = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part].from_config(config)
    positions = {name: torch.arange(value.shape[-1])[None] for name, value in model.named_buffers() if "ids" in name}
    model = model.to(dtype).to_empty(device="cpu")
    for name, value in positions.items():
        model.get_buffer(name).copy_(value)
    return model


@torch.no_grad()
def fill(model: nn.Module, seed: int = 0) -> None:
    """Normal weights of variance 1 / fan-in, biases 0, factors of normalisations 1, so that signals keep their size.

    Drawn once and repeated: a billion draws would take longer than all that is done with them.
    """
    pool = torch.randn(1_000_003, generator=torch.Generator().manual_seed(seed))
    for name, value in model.named_parameters():
        if value.ndim == 1:
            value.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        fan_in = value[0].numel()
        scaled = (pool * fan_in**-0.5).to(value.dtype)
        flat = value.view(-1)
        for start in range(0, flat.numel(), len(pool)):
            flat[start : start + len(pool)] = scaled[: min(len(pool), flat.numel() - start)]


def one_step(name: str, folder: Path, precision: str = "bf16", side: int = 512) -> dict[str, Any]:
    """Load the folder as the bench does, optimise SLiMe for one step, segment one picture.

    Returns:
        seconds of each stage, sizes and ranges, and the greatest resident set of this process in bytes.
    """
    from slime_bench.compose import plan
    from slime_bench.schema import build

    settings = [f"backbone={name}", f"backbone.weights={folder}", f"trainer.precision={precision}"]
    settings += ["protocol.token_gate=0.0"]  # of random weights no class would pass it, and every score would be 0
    cfg = plan(["preset=paper", "data=pascal_part_car", "method=slime", *settings]).trials[0]
    clock, seconds = time.monotonic(), {}

    def lap(stage: str) -> None:
        nonlocal clock
        seconds[stage], clock = round(time.monotonic() - clock, 1), time.monotonic()

    classes = ["background", "body", "light", "plate", "wheel", "window"]
    protocol, backbone = build(cfg.protocol), build(cfg.backbone)
    method = build(cfg.method, protocol=protocol, backbone=backbone, classes=classes, seed=0)
    method.log_dict = lambda *_, **__: None  # there is no trainer to log to
    lap("load")
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, 3, side, side, generator=generator)
    label = torch.randint(0, len(classes), (1, side // 64, side // 64), generator=generator)
    label = label.repeat_interleave(64, 1).repeat_interleave(64, 2)
    batch = {"image": images, "label": label, "id": ["a"], "epoch": torch.zeros(1, dtype=torch.long)}
    optimiser, before = method.configure_optimizers(), method.embeddings.detach().clone()
    loss = method.training_step(batch, 0)
    loss.backward()
    gradient = method.embeddings.grad
    optimiser.step()
    lap("step")
    scores = method.scores(images, ["b"])
    lap("segment")
    return {
        "seconds": seconds,
        "dtypes": sorted({str(value.dtype) for value in backbone.parameters()}),
        "parameters": [sum(x.numel() for x in part.parameters()) for part in (backbone.unet, backbone.vae)]
        + [sum(x.numel() for x in backbone.text_encoder.parameters())],
        "loss": loss.item(),
        "gradient": gradient.norm().item(),
        "moved": (method.embeddings.detach() - before).abs().max().item(),
        "scores": list(scores.shape),
        "score_dtype": str(scores.dtype),
        "finite": bool(scores.isfinite().all()),
        "spread": (scores.max() - scores.min()).item(),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":  # in a process of its own, so that its memory is its own
    print(json.dumps(one_step(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:4])))

"""Folders of Stable Diffusion's true architectures with random weights: what nobody can download here, in seconds."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from slime_bench.bench.architecture import build_folder as build_full_size
from slime_bench.bench.architecture import fill

__all__ = ["PARAMETERS", "build_full_size", "fill", "one_step"]

PARAMETERS = {
    # of the published models: U-Net, autoencoder, text encoder
    "sd15": (859_520_964, 83_653_863, 123_060_480),
    "sd21_base": (865_910_724, 83_653_863, 340_387_840),
}


HALF_PRICE = 10.0
"""Times that a bfloat16 convolution may take of a float32 one before the models are run in float32."""


def affordable() -> tuple[str, int]:
    """(trainer.precision, side in pixels) of a full-size step that this processor has instructions for.

    bfloat16 as the paper preset has it on a CPU, at 512 pixels, wherever it is in the hardware, or in vectors that make
    it up. Without either (no AVX-512) a convolution takes some hundred times as long as in float32. Then float32, and
    a quarter of the pixels for twice the bytes: all layers and all weights are the same.
    """
    seconds = {}
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            layer, x = torch.nn.Conv2d(320, 64, 3, padding=1).to(dtype), torch.ones(1, 320, 32, 32, dtype=dtype)
            layer(x)
            began = time.perf_counter()
            layer(x)
            seconds[dtype] = time.perf_counter() - began
    return ("bf16", 512) if seconds[torch.bfloat16] < HALF_PRICE * seconds[torch.float32] else ("fp32", 256)


def one_step(name: str, folder: Path, precision: str = "bf16", side: int = 512) -> dict[str, Any]:
    """Load the folder as the bench does, optimise SLiMe for one step, segment one picture.

    Returns:
        seconds of each stage, sizes and ranges, and the greatest resident set of this process in bytes.
    """
    from slime_bench.compose import plan
    from slime_bench.schema import build

    settings = [f"backbone={name}", f"backbone.weights={folder}", f"trainer.precision={precision}"]
    settings += [f"backbone.image_size={side}"]  # the data follow it
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
    print(json.dumps(one_step(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))))

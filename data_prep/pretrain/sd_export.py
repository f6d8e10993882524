"""Write a trained mini Stable Diffusion as fp16 safetensors in the Stable Diffusion layout, with a card of figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.utils import make_image_grid
from torch.nn import functional as F

from data_prep.pretrain.export import export_model, parameter_count
from data_prep.pretrain.models import build_scheduler
from data_prep.pretrain.stream import stream_picture, to_pixels
from data_prep.pretrain.trainloop import averaged_weights
from data_prep.pretrain.unet import build_denoiser, latent_encoder, token_ids
from data_prep.pretrain.vae import HELD_OUT, measure_vae

SAMPLES = 9
"""Held-out pictures whose captions the model's page shows samples of."""


def export(
    work: Path, out: Path, vae: AutoencoderKL, channels: tuple[int, int, int, int], device: torch.device
) -> None:
    """Averaged weights of the last stage in `work` -> the folder `out`, replaced when the new one is complete."""
    prompts = [stream_picture(HELD_OUT + index).caption for index in range(SAMPLES)]

    def write(folder: Path) -> dict[str, Any]:
        denoiser, tokenizer = build_denoiser(channels)
        denoiser.load_state_dict(averaged_weights(work, "unet128"))
        parts = {"vae": vae, "text_encoder": denoiser.text_encoder, "unet": denoiser.unet}
        pipeline = StableDiffusionPipeline(
            **parts, tokenizer=tokenizer, scheduler=build_scheduler(),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
        # Measure what was written, not what was trained: half precision included.
        loaded = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
        loaded.to(device).set_progress_bar_config(disable=True)
        make_image_grid(generate(loaded, prompts), rows=SAMPLES, cols=4).save(folder / "samples.png")
        parameters = {name: parameter_count(each) for name, each in parts.items()}
        return {"parameters": parameters, "measured": measure(loaded, device)}

    page = PAGE + "".join(f"{row}. {prompt}\n" for row, prompt in enumerate(prompts, start=1))
    export_model(out, work, ("vae", "unet64", "unet128"), device, write, page)


def generate(pipeline: StableDiffusionPipeline, prompts: Sequence[str], steps: int = 40) -> list[Any]:
    """Four samples of 128x128 for each prompt."""
    images = []
    for prompt in prompts:
        generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
        images += pipeline(
            [prompt] * 4, height=128, width=128, num_inference_steps=steps, guidance_scale=4.0, generator=generators
        ).images
    return images


@torch.no_grad()
def measure(pipeline: StableDiffusionPipeline, device: torch.device, pictures: int = 192) -> dict[str, float]:
    """Held-out figures: reconstruction; denoising loss with the right caption, another picture's, and none."""
    facts = measure_vae(pipeline.vae, device)
    examples = [stream_picture(HELD_OUT + i) for i in range(pictures)]
    latents = latent_encoder(pipeline.vae, device)(to_pixels([e.image for e in examples]))[0].to(device)
    captions = [example.caption for example in examples]
    # Three on is the same subject.
    variants = {"right": captions, "shuffled": captions[3:] + captions[:3], "none": [""] * pictures}
    alphas = pipeline.scheduler.alphas_cumprod.to(device)
    for t in (100, 300, 500, 700, 900):
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(t)).to(device)
        noisy = alphas[t].sqrt() * latents + (1 - alphas[t]).sqrt() * noise
        for name, texts in variants.items():
            ids = token_ids(pipeline.tokenizer, texts).to(device)
            chunks = zip(noisy.split(32), ids.split(32), strict=True)
            states = [(each, pipeline.text_encoder(some).last_hidden_state) for each, some in chunks]
            predicted = torch.cat([pipeline.unet(each, t, text).sample for each, text in states])
            facts[f"loss_t{t}_{name}"] = float(F.mse_loss(predicted, noise))
    return {key: round(value, 5) for key, value in facts.items()}


PAGE = """# mini_sd: a small Stable Diffusion, trained from scratch on the mini world

Made by `python -m data_prep.pretrain.mini_sd`. It is a test and teaching model: it knows cars, horses and faces of the
procedural world and nothing else.

Data: rendered on the fly by `slime_bench/data/mini_world`, split `pretrain`, which shares no picture with support, val
or test. It was trained on pictures and captions only; no mask was ever shown to it. Weights are fp16 safetensors.

`loss_t..`: denoising loss (noise prediction, mean squared error) at a timestep with the picture's caption, another
picture's of the same subject, and none.

![samples](samples.png)

Four samples of each of these prompts, row by row:

"""

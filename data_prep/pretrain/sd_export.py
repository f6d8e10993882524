"""Write a trained mini Stable Diffusion as fp16 safetensors in the Stable Diffusion layout, with a card of figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import make_image_grid
from PIL import Image
from torch.nn import functional as F

from data_prep.pretrain.export import export_model, parameter_count
from data_prep.pretrain.models import build_scheduler, build_text_encoder, build_tokenizer, build_unet
from data_prep.pretrain.stream import stream_picture, to_pixels
from data_prep.pretrain.trainloop import averaged_weights
from data_prep.pretrain.unet import Denoiser, latent_encoder, token_ids
from data_prep.pretrain.vae import HELD_OUT, measure_vae
from slime_bench.data.mini_world.render import vocabulary
from slime_bench.seeding import derive_seed

SAMPLE_PROMPTS = (
    "a red car with red body , black wheels , cyan windows , yellow lights , white plate , on grass",
    "a blue car with blue body , white wheels , black windows , red lights , yellow plate , on snow",
    "a green car with green body , orange wheels , pink windows , white lights , black plate , on road",
    "a brown horse with brown torso , white head , black legs , yellow tail , on grass",
    "a white horse with white torso , red head , blue legs , black tail , on sand",
    "a pale face with pale skin , blue eyes , red mouth , pale nose , black brows , pale ears , pale neck ,"
    " green cloth , long black hair , on fog",
    "a dark face with dark skin , green eyes , pink mouth , dark nose , brown brows , dark ears , dark neck ,"
    " red cloth , short orange hair , on wall",
    "a tan face with tan skin , cyan eyes , red mouth , tan nose , purple brows , tan ears , tan neck ,"
    " yellow cloth , long white hair , on night",
)
# Pairs that differ in one attribute word: (prompt, word, other word, colour channel that must rise)
SWAPS = (
    ("a white car with white body , black wheels , gray windows , on road", "white body", "red body"),
    ("a blue car with blue body , red wheels , white windows , on snow", "red wheels", "green wheels"),
    ("a brown horse with brown torso , brown head , white legs , on grass", "white legs", "blue legs"),
    ("a pale face with pale skin , green cloth , short black hair , on fog", "green cloth", "red cloth"),
)


def export(
    work: Path, out: Path, vae: AutoencoderKL, channels: tuple[int, int, int, int], device: torch.device
) -> None:
    """Averaged weights of the last stage in `work` -> the folder `out`, replaced when the new one is complete."""

    def write(folder: Path) -> dict[str, Any]:
        torch.manual_seed(0)
        tokenizer = build_tokenizer(vocabulary())
        text_encoder = build_text_encoder(tokenizer)
        denoiser = Denoiser(text_encoder, build_unet(channels, text_encoder.config.hidden_size))
        denoiser.load_state_dict(averaged_weights(work, "unet128"))
        pipeline = StableDiffusionPipeline(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=denoiser.unet, scheduler=build_scheduler(),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
        # Measure what was written, not what was trained: half precision included.
        loaded = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
        loaded.to(device).set_progress_bar_config(disable=True)
        measured = measure(loaded, device)
        samples = [generate(loaded, [prompt], seed)[0] for prompt in SAMPLE_PROMPTS for seed in range(4)]
        make_image_grid(samples, rows=len(SAMPLE_PROMPTS), cols=4).save(folder / "samples.png")
        parts = {"vae": vae, "text_encoder": text_encoder, "unet": denoiser.unet}
        return {"parameters": {name: parameter_count(each) for name, each in parts.items()}, "measured": measured}

    export_model(out, work, ("vae", "unet64", "unet128"), device, write, PAGE)


@torch.no_grad()
def measure(pipeline: StableDiffusionPipeline, device: torch.device, pictures: int = 192) -> dict[str, Any]:
    """Held-out figures: reconstruction, denoising loss with the right, a shuffled and no caption, one-word swaps."""
    facts: dict[str, Any] = dict(measure_vae(pipeline.vae, device))
    denoiser = Denoiser(pipeline.text_encoder, pipeline.unet).to(device).eval()
    examples = [stream_picture(HELD_OUT + i) for i in range(pictures)]
    latents = latent_encoder(pipeline.vae, device)(to_pixels([e.image for e in examples]))[0].to(device)
    captions = [example.caption for example in examples]
    variants = {
        "right": captions,
        "shuffled": captions[3:] + captions[:3],
        "none": [""] * pictures,
    }  # same subject, other picture
    alphas = DDIMScheduler.from_config(pipeline.scheduler.config).alphas_cumprod.to(device)
    for t in (100, 300, 500, 700, 900):
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(t)).to(device)
        noisy = alphas[t].sqrt() * latents + (1 - alphas[t]).sqrt() * noise
        steps = torch.full((len(latents),), t, device=device)
        for name, texts in variants.items():
            ids = token_ids(pipeline.tokenizer, texts).to(device)
            chunks = zip(noisy.split(32), steps.split(32), ids.split(32), strict=True)
            predicted = torch.cat([denoiser(*chunk) for chunk in chunks])
            facts[f"loss_t{t}_{name}"] = float(F.mse_loss(predicted, noise))
    facts["swaps"] = [swap_effect(pipeline, *swap) for swap in SWAPS]
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in facts.items()}


def generate(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], seed: int, steps: int = 40, guidance: float = 4.0
) -> list[Image.Image]:
    """One 128x128 sample per prompt; prompts that share a seed share their noise."""
    generators = [torch.Generator().manual_seed(seed) for _ in prompts]
    return pipeline(
        list(prompts), height=128, width=128, num_inference_steps=steps, guidance_scale=guidance, generator=generators
    ).images


def swap_effect(
    pipeline: StableDiffusionPipeline, prompt: str, word: str, other: str, samples: int = 6
) -> dict[str, Any]:
    """Mean colour change of the tenth of the pixels that changes most when one attribute word is changed."""
    seeds = [derive_seed(0, "swap", prompt, i) % 2**31 for i in range(samples)]
    pairs = [generate(pipeline, (prompt, prompt.replace(word, other)), seed) for seed in seeds]
    changes = [np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64) for a, b in pairs]
    top = [c.reshape(-1, 3)[np.argsort(-np.abs(c).sum(-1).ravel())[: c.shape[0] * c.shape[1] // 10]] for c in changes]
    rgb = np.concatenate(top).mean(0)
    return {"prompt": prompt, "from": word, "to": other, "rgb_change": [round(float(v), 1) for v in rgb]}


PAGE = """# mini_sd: a small Stable Diffusion, trained from scratch on the mini world

Made by `python -m data_prep.pretrain.mini_sd`. It is a test and teaching model: it knows cars, horses and faces of the
procedural world and nothing else.

Data: rendered on the fly by `slime_bench/data/mini_world`, split `pretrain`, which shares no picture with support, val
or test. It was trained on pictures and captions only; no mask was ever shown to it. Weights are fp16 safetensors.

`loss_t..`: denoising loss (noise prediction, mean squared error) at a timestep with the picture's caption, another
picture's of the same subject, and none; `swaps`: mean RGB change of the tenth of the pixels that change most, when one
word is changed and the noise stays.

![samples](samples.png)

Four samples of each of these prompts, row by row:

"""
PAGE += "".join(f"{row}. {prompt}\n" for row, prompt in enumerate(SAMPLE_PROMPTS, start=1))

"""Train the mini Stable Diffusion from scratch on the mini world and write it in the Stable Diffusion layout.

    python -m data_prep.pretrain.mini_sd --minutes 100 --out slime_bench/assets/mini_sd

Stages: autoencoder; text encoder and U-Net on 64-pixel pictures; the same on 128-pixel pictures. Every stage saves a
checkpoint every three minutes in `--work`, and the same command goes on from there after an interruption.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from data_prep.pretrain.models import build_scheduler, build_text_encoder, build_tokenizer, build_unet, build_vae
from data_prep.pretrain.sd_export import export
from data_prep.pretrain.trainloop import Clock, Ranks, arguments, in_processes, pick_device
from data_prep.pretrain.unet import Denoiser, train_unet
from data_prep.pretrain.vae import measure_vae, train_vae
from slime_bench.data.mini_world.render import vocabulary

CHANNELS = (32, 96, 128, 96)
SHARES = {"vae": 0.14, "unet64": 0.15, "unet128": 0.71}  # of the minutes
BATCH = {"cpu": {64: 16, 128: 8}, "cuda": {64: 256, 128: 128}}  # per process


def run_vae_stage(work: Path, seconds: float, device: torch.device) -> AutoencoderKL:
    """The trained autoencoder, its scaling factor set so that scaled latents have unit standard deviation."""
    vae = build_vae()
    train_vae(vae, Clock(work / "vae", seconds, "vae"), device)
    facts = measure_vae(vae, device)
    print("vae, held out: " + ", ".join(f"{k} {v:.3f}" for k, v in facts.items()), flush=True)
    vae.register_to_config(scaling_factor=round(1 / facts["latent_std"], 5))
    return vae


def train_rank(rank: int, size: int, rendezvous: Path, args: argparse.Namespace, vae: AutoencoderKL) -> None:
    """Both U-Net stages in one of `size` processes; rank 0 keeps checkpoints and the log."""
    device = pick_device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // size))
    torch.manual_seed(0)
    ranks = Ranks(rank, size, rendezvous)
    tokenizer = build_tokenizer(vocabulary())
    text_encoder = build_text_encoder(tokenizer)
    denoiser = Denoiser(text_encoder, build_unet(CHANNELS, text_encoder.config.hidden_size))
    ema = copy.deepcopy(denoiser)
    for side in (64, 128):
        name = f"unet{side}"
        clock = Clock(args.work / name, args.minutes * 60 * SHARES[name], name, quiet=rank > 0)
        batch = BATCH[device.type][side]
        train_unet(
            denoiser,
            ema,
            tokenizer,
            vae,
            build_scheduler(),
            clock,
            device,
            ranks,
            side,
            batch,
            decay_from=0.99 if side == 64 else 0.75,
        )


def main() -> None:
    args = arguments(__doc__, "mini_sd", 100.0, "unet128")
    device = pick_device(args.device)
    started = time.time()
    vae = run_vae_stage(args.work, 0 if args.export_only else args.minutes * 60 * SHARES["vae"], device)
    if not args.export_only:
        in_processes(train_rank, args, vae)
    export(args.work, args.out, vae, CHANNELS, device)
    print(f"wrote {args.out} after {(time.time() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()

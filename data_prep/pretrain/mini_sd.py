"""Train the mini Stable Diffusion from scratch on the mini world and write it in the Stable Diffusion layout.

    python -m data_prep.pretrain.mini_sd --out slime_bench/assets/mini_sd

Stages: autoencoder; text encoder and U-Net on 64-pixel pictures; the same on 128-pixel pictures. Every stage saves a
checkpoint every three minutes in `--work`, and the same command goes on from there after an interruption.
"""

from __future__ import annotations

import argparse

import torch
from diffusers import AutoencoderKL
from lightning.fabric import Fabric

from data_prep.pretrain.models import build_vae
from data_prep.pretrain.sd_export import export
from data_prep.pretrain.trainloop import arguments, fabric_of
from data_prep.pretrain.unet import build_denoiser, train_unet
from data_prep.pretrain.vae import measure_vae, train_vae

CHANNELS = (32, 96, 128, 96)
PICTURES = {"vae": 30_416, "unet64": 52_224, "unet128": 79_776}


def trained_vae(args: argparse.Namespace) -> AutoencoderKL:
    """The trained autoencoder, its scaling factor set so that scaled latents have unit standard deviation."""
    vae, fabric = build_vae(), fabric_of(args.device, processes=1)
    train_vae(vae, fabric, args.work, 0 if args.export_only else PICTURES["vae"])
    facts = measure_vae(vae, fabric.device)
    print("vae, held out: " + ", ".join(f"{k} {v:.3f}" for k, v in facts.items()), flush=True)
    vae.register_to_config(scaling_factor=round(1 / facts["latent_std"], 5))
    return vae.cpu()


def train_denoiser(fabric: Fabric, args: argparse.Namespace, vae: AutoencoderKL) -> None:
    """Both U-Net stages, in each of the processes."""
    denoiser, tokenizer = build_denoiser(CHANNELS)
    for side in (64, 128):
        train_unet(denoiser, tokenizer, vae, fabric, args.work, PICTURES[f"unet{side}"], side)


def main() -> None:
    args = arguments(__doc__, "mini_sd", "unet128")
    vae = trained_vae(args)
    if not args.export_only:
        fabric_of(args.device, args.processes).launch(train_denoiser, args, vae)  # type: ignore[arg-type]
    export(args.work, args.out, vae, CHANNELS, torch.device(args.device))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()

"""Watch a mini Stable Diffusion while it trains: 1-shot SLiMe on validation pictures, and how sharp self-attention is.

    python -m data_prep.pretrain.probe_mini_sd --weights slime_bench/assets/mini_sd --subject car
    python -m data_prep.pretrain.probe_mini_sd --work outputs/pretrain/mini_sd   the newest checkpoint

Settings of the `mini` preset are chosen with this, on validation pictures; the test split is never touched.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from data_prep.pretrain.mini_sd import CHANNELS
from data_prep.pretrain.models import build_scheduler, build_text_encoder, build_tokenizer, build_unet, build_vae
from data_prep.pretrain.unet import Denoiser
from data_prep.pretrain.vae import measure_vae
from slime_bench.attention.maps import perplexity
from slime_bench.config.schema import validate
from slime_bench.data.datamodule import SegmentationDataModule
from slime_bench.data.mini_world.render import vocabulary
from slime_bench.data.reading import FolderDataset
from slime_bench.methods.slime.method import Slime
from slime_bench.metrics.iou import IouMetric
from slime_bench.paths import config_dir


def write_checkpoint(work: Path, out: Path) -> None:
    """The newest averaged weights of a running training as a model folder, unmeasured."""
    vae, tokenizer = build_vae(), build_tokenizer(vocabulary())
    vae.load_state_dict(load_file(work / "vae" / "vae.safetensors"))
    vae.register_to_config(scaling_factor=round(1 / measure_vae(vae, torch.device("cpu"))["latent_std"], 5))
    text_encoder = build_text_encoder(tokenizer)
    denoiser = Denoiser(text_encoder, build_unet(CHANNELS, text_encoder.config.hidden_size))
    stage = next(stage for stage in ("unet128", "unet64") if (work / stage / "ema.safetensors").exists())
    denoiser.load_state_dict(load_file(work / stage / "ema.safetensors"))
    StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=denoiser.unet, scheduler=build_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).to(torch.float16).save_pretrained(out)  # fmt: skip


def as_batch(images: Sequence[np.ndarray]) -> torch.Tensor:
    """uint8 [H,W,3] each -> float32 [B,3,H,W] in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def fit(method: Slime, data: SegmentationDataModule) -> None:
    """The optimisation without a trainer: every step, no validation, last embeddings."""
    (optimiser,) = [method.configure_optimizers()]
    method.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    loader = data.train_dataloader()
    for epoch in range(method.epochs // data.config.passes_per_epoch):
        loader.batch_sampler.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        for batch in loader:
            optimiser.zero_grad()
            method.training_step(batch, 0).backward()
            optimiser.step()


def validation_miou(method: Slime, pictures: FolderDataset) -> tuple[float, list[float]]:
    """Mean and per-class IoU in percent, convention `slime`."""
    metric = IouMetric(len(method.classes))
    for sample in map(pictures.__getitem__, range(len(pictures))):
        prediction = method.predict(as_batch([sample.image]), [sample.id])
        metric.update(prediction, torch.from_numpy(sample.label[None]))
    per_class = 100 * metric.compute()
    return float(per_class.nanmean()), [round(float(v), 1) for v in per_class]


def probe(overrides: Sequence[str], pictures: FolderDataset | None = None) -> dict[str, tuple[float, list[float]]]:
    """Fit once, then score `was` and `cross` maps on the validation pictures."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = validate(compose("config", overrides=list(overrides)))
    data = cfg.build("data", shots=cfg.shots, seed=cfg.seed)
    data.prepare_data()
    method = cfg.build(
        "method", protocol=cfg.build("protocol"), backbone=cfg.build("backbone"), classes=data.classes, seed=cfg.seed
    )
    fit(method, data.datamodule())
    pictures = pictures or FolderDataset(Path(cfg.data.root) / "val", data.classes)
    found = {}
    for maps in ("was", "cross"):
        method.config.maps = maps
        found[maps] = validation_miou(method, pictures)
    return found


@torch.no_grad()
def self_perplexity(overrides: Sequence[str], t: int) -> list[float]:
    """Mean perplexity of each self layer on validation pictures at timestep `t`; uniform: the number of keys."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = validate(compose("config", overrides=list(overrides)))
    backbone = cfg.build("backbone")
    pictures = FolderDataset(Path(cfg.data.root) / "val", list(cfg.data.classes))
    images = as_batch([pictures[index].image for index in range(len(pictures))])
    latents = backbone.encode(images, None)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    steps = torch.full((len(images),), t)
    found = backbone.attention(backbone.add_noise(latents, noise, steps), steps, backbone.embed(""), with_noise=False)
    return [round(float(perplexity(layer).mean()), 1) for layer in found.self_]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="mini_sd")
    parser.add_argument("--work", type=Path, help="folder of a running training, instead of --weights")
    parser.add_argument("--subject", default="car")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("overrides", nargs="*", help="further settings, such as shots=10 method.t_test=50")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.work:
            write_checkpoint(args.work, Path(folder))
            args.weights = folder
        common = [f"data=mini_{args.subject}", f"backbone.weights={args.weights}", *args.overrides]
        for t in (20, 100, 300):
            print(f"self-attention perplexity at t={t}: {self_perplexity(common, t)}", flush=True)
        for seed in range(args.seeds):
            for maps, (mean, per_class) in probe([*common, f"seed={seed}"]).items():
                print(f"seed {seed} {maps:5} mIoU {mean:.1f}  per class {per_class}", flush=True)


if __name__ == "__main__":
    main()

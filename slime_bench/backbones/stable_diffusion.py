"""Stable Diffusion as a frozen backbone: images to latents, prompts to embeddings, noisy latents to attention.

Any model in the Stable Diffusion folder layout will do: SD 1.x and 2.x, and the bundled `mini_sd`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slime_bench.attention.capture import LayerAttention, capture, named_layer
from slime_bench.attention.maps import Size, grid_size
from slime_bench.backbones.locate import check_hashes, fingerprint, locate
from slime_bench.errors import BackboneError


@dataclass(frozen=True)
class DiffusionAttention:
    """Attention of one forward pass.

    Attributes:
        cross, self_: the named layers, in the order named. cross_grids, self_grids: their (h, w).
        noise: predicted noise, float [B,4,h,w]; None when the pass ended after the last named layer.
    """

    cross: list[LayerAttention]
    cross_grids: list[Size]
    self_: list[LayerAttention]
    self_grids: list[Size]
    noise: torch.Tensor | None


class StableDiffusionBackbone(nn.Module):
    """Frozen; all parameters float32 unless moved by the trainer.

    Raises:
        BackboneError: weights missing, corrupt, of another architecture, or without a named layer.
    """

    @dataclass
    class Config:
        name: str = "mini_sd"
        weights: str = "mini_sd"  # bundled name, folder, or hub id
        revision: str | None = None
        image_size: int = 128  # side that the model was trained at, pixels
        cross_layers: list[str] = field(default_factory=list)  # modules whose attn2 gives the cross maps
        self_layers: list[str] = field(default_factory=list)  # modules whose attn1 gives the self maps

    alphas_cumprod: torch.Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.folder = locate(config.weights, config.revision)
        check_hashes(self.folder)
        parts = _load(self.folder)
        self.vae, self.unet, self.text_encoder = parts["vae"], parts["unet"], parts["text_encoder"]
        self.tokenizer, self._scheduler = parts["tokenizer"], parts["scheduler"]
        if self._scheduler.config.prediction_type != "epsilon":
            raise BackboneError(
                "this diffusion model does not predict noise",
                path=self.folder / "scheduler",
                found=f"prediction_type {self._scheduler.config.prediction_type}",
                expected="prediction_type epsilon, which the diffusion loss is written for",
                remedy="use a base model, such as Stable Diffusion 2.1-base at 512 pixels",
            )
        self.requires_grad_(False).eval()
        self.cross_names = [_layer_name(name, "attn2") for name in config.cross_layers]
        self.self_names = [_layer_name(name, "attn1") for name in config.self_layers]
        for name in (*self.cross_names, *self.self_names):
            named_layer(self.unet, name)  # a misspelt layer is found now, not in the first training step
        self.register_buffer("alphas_cumprod", self._scheduler.alphas_cumprod.float(), persistent=False)

    def train(self, mode: bool = True) -> StableDiffusionBackbone:
        """Stays in evaluation mode: a frozen backbone has no dropout, whatever the trainer asks for."""
        return super().train(False)

    @classmethod
    def content_hash_of(cls, config: Config) -> str:
        """sha256 of the weights and configuration files that `config` points to; nothing is loaded."""
        return fingerprint(locate(config.weights, config.revision))

    @property
    def num_tokens(self) -> int:
        return int(self.tokenizer.model_max_length)

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def downscale(self) -> int:
        """Pixels per latent cell along a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def embed(self, prompt: str) -> torch.Tensor:
        """Text encoder's output for one prompt, float [1,T,D]."""
        ids = self.tokenizer(
            prompt, padding="max_length", truncation=True, max_length=self.num_tokens, return_tensors="pt"
        ).input_ids
        return self.text_encoder(ids.to(self.alphas_cumprod.device))[0]

    @torch.no_grad()
    def encode(self, images: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """Scaled latents of images.

        Args:
            images: float [B,3,H,W] in [0,1].
            noise: standard normal [B,4,h,w] for the posterior sample, None for its mean.

        Returns:
            float [B,4,h,w].
        """
        posterior = self.vae.encode(images * 2 - 1).latent_dist
        latents = posterior.mean if noise is None else posterior.mean + posterior.std * noise.to(posterior.mean)
        return latents * self.vae.config.scaling_factor

    def latent_shape(self, size: Size) -> tuple[int, int, int]:
        """(channels, h, w) of the latents of one image of `size` = (H, W)."""
        return self.vae.config.latent_channels, size[0] // self.downscale, size[1] // self.downscale

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """sqrt(a_t) x + sqrt(1 - a_t) e, a_t the schedule's cumulative product: float [B,4,h,w], t int64 [B]."""
        keep = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return keep.sqrt() * latents + (1 - keep).sqrt() * noise

    def predict_noise(self, noisy: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Plain forward pass: float [B,4,h,w], int64 [B], float [B,T,D] -> float [B,4,h,w]."""
        return self.unet(noisy, timesteps, text).sample

    def attention(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        text: torch.Tensor,
        *,
        with_noise: bool,
        with_self: bool = True,
    ) -> DiffusionAttention:
        """Queries and keys of the configured layers in one forward pass.

        Args:
            noisy: float [B,4,h,w]. timesteps: int64 [B]. text: float [B,T,D] or [1,T,D] for all images.
            with_noise: also finish the pass and return the predicted noise; otherwise stop at the last named layer.
            with_self: capture the self-attention layers as well.
        """
        text = text.expand(len(noisy), -1, -1)
        names = [*self.cross_names, *(self.self_names if with_self else [])]
        noise = None
        with capture(self.unet, names, stop_early=not with_noise) as recording:
            noise = self.predict_noise(noisy, timesteps, text)
        found = recording.layers
        cross = [found[name] for name in self.cross_names]
        self_ = [found[name] for name in self.self_names] if with_self else []
        latent = (int(noisy.shape[-2]), int(noisy.shape[-1]))
        grids = [[grid_size(layer.query.shape[2], latent) for layer in layers] for layers in (cross, self_)]
        return DiffusionAttention(cross, grids[0], self_, grids[1], noise)


def _layer_name(name: str, kind: str) -> str:
    return name if name.endswith((".attn1", ".attn2")) else f"{name}.transformer_blocks.0.{kind}"


def _load(folder: Path) -> dict[str, Any]:
    """The five parts of a Stable Diffusion folder, float32, from local files only."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # a bar for 36 tensors, redrawn over the trial's own
    kinds = {
        "vae": AutoencoderKL,
        "unet": UNet2DConditionModel,
        "text_encoder": CLIPTextModel,
        "tokenizer": CLIPTokenizer,
        "scheduler": DDIMScheduler,
    }
    missing = [name for name in kinds if not (folder / name).is_dir()]
    if missing:
        raise BackboneError(
            "this folder does not hold a Stable Diffusion model",
            path=folder,
            found=f"no {', '.join(missing)}",
            expected=f"the folders {', '.join(kinds)}",
            remedy="give the folder that holds model_index.json",
        )
    parts: dict[str, Any] = {}
    for name, kind in kinds.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                parts[name] = _load_part(kind, folder / name)
        except Exception as error:  # torn safetensors, missing keys, foreign config: each library has its own exception
            raise BackboneError(
                f"the {name} of the backbone cannot be loaded",
                path=folder / name,
                found=f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}",
                expected=f"a {kind.__name__} with complete safetensors weights",
                remedy="restore the files (git checkout, reinstall, or download again)",
            ) from error
    return parts


def _load_part(kind: Any, folder: Path) -> Any:
    if not issubclass(kind, nn.Module):
        return kind.from_pretrained(folder, local_files_only=True)
    dtype = "dtype" if kind.__module__.startswith("transformers") else "torch_dtype"
    settings = {dtype: torch.float32, "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    model, info = kind.from_pretrained(folder, **settings)
    # Both libraries would only warn, and go on with random numbers in these places.
    absent = sorted([*info["missing_keys"], *(str(each) for each in info.get("mismatched_keys", ()))])
    if absent:
        raise ValueError(f"{len(absent)} tensors are missing or of another shape, such as {absent[0]}")
    return model

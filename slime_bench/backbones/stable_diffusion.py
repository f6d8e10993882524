"""Stable Diffusion as a frozen backbone: images to latents, prompts to embeddings, noisy latents to attention.

Any model in the Stable Diffusion folder layout will do: SD 1.x and 2.x, and the bundled `mini_sd`; so will a
single-file checkpoint of one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self

import torch
from torch import nn

from slime_bench.attention.capture import ExtraValues, LayerAttention, Recording, capture
from slime_bench.attention.constant_text import ConstantText
from slime_bench.attention.maps import Size, grid_size, to_maps, to_rows, was
from slime_bench.attention.processor import install
from slime_bench.backbones.diffusion import (
    StableDiffusion,
    check_prediction,
    downscale,
    layer_name,
    prompt_length,
    source,
)
from slime_bench.backbones.encoder_cache import EncoderCache, Posterior
from slime_bench.backbones.features import joined, module_outputs, output_shapes
from slime_bench.backbones.load import DTYPES, load_parts
from slime_bench.backbones.memory import images_within, keep_freed_memory, training_images
from slime_bench.backbones.weights import check_hashes
from slime_bench.places import onto


@dataclass(frozen=True)
class DiffusionAttention:
    """Attention of one forward pass.

    Attributes:
        cross, self_: the named layers, in the order named. cross_grids, self_grids: their (h, w).
        noise: predicted noise, float32 [B,4,h,w]; None when the pass ended after the last named layer.
        propagated: the maps to propagate, as the self-attention does it (`slime_bench.attention.maps.was`), float32
            [B,K,h,w]; None where there were none.
    """

    cross: list[LayerAttention]
    cross_grids: list[Size]
    self_: list[LayerAttention]
    self_grids: list[Size]
    noise: torch.Tensor | None
    propagated: torch.Tensor | None = None


MapsOf = Callable[[list[LayerAttention], list[Size], Size], torch.Tensor]
"""From the cross-attention layers, their (h, w) and that of the self-attention layers: maps float [B,K,h,w] on it."""


class StableDiffusionBackbone(StableDiffusion, nn.Module):
    """Frozen. The networks compute in the precision of their weights; what goes in and comes out is float32, but for
    captured queries and keys.

    Raises:
        BackboneError: weights missing, corrupt or of another architecture. Its layers are looked for by `describe`.
    """

    implementation: ClassVar[str | None] = None
    alphas_cumprod: torch.Tensor

    def __init__(self, config: StableDiffusion.Config) -> None:
        super().__init__()
        keep_freed_memory()
        self.config = config
        place = source(config)
        check_hashes(place.configs)
        parts = load_parts(place, DTYPES[config.dtype])
        self.vae, self.unet, self.text_encoder = parts["vae"], parts["unet"], parts["text_encoder"]
        self.tokenizer, self._scheduler = parts["tokenizer"], parts["scheduler"]
        check_prediction(self._scheduler.config.prediction_type)
        self.requires_grad_(False).eval()
        self.cross_names = [layer_name(name, "attn2") for name in config.cross_layers]
        self.self_names = [layer_name(name, "attn1") for name in config.self_layers]
        self.register_buffer("alphas_cumprod", self._scheduler.alphas_cumprod.float(), persistent=False)
        self._text, self._encoded = ConstantText(), EncoderCache(int(config.encoder_cache_mb * 1e6))
        self._one_text_row = install(self.unet, self._text)
        self._arrange()

    def _apply(self, fn: Callable[..., torch.Tensor], recurse: bool = True) -> Self:
        """Converted weights are other numbers: what was kept of them is worthless. Moved ones are the same; trainers
        move them for every trial, and the next one is to find what this one has kept."""
        before = self.vae.dtype
        moved = super()._apply(fn, recurse)
        self._text.clear()
        if self.vae.dtype != before:
            self._encoded.clear()
        self._arrange()
        return moved

    def _arrange(self) -> None:
        """Order the convolutions' weights in memory: channels last for CUDA's half precision kernels, else first.

        On a CPU channels last make the encoder 1.0 to 1.5 times as fast, but torch's group normalisation then sums in
        one go and loses three digits: latents differ by 2e-4. The U-Net's backward pass gets slower.
        """
        half = self.alphas_cumprod.is_cuda and self.unet.dtype.itemsize < 4
        for network in (self.vae, self.unet):
            network.to(memory_format=torch.channels_last if half else torch.contiguous_format)

    def train(self, mode: bool = True) -> StableDiffusionBackbone:
        """Stays in evaluation mode: a frozen backbone has no dropout, whatever the trainer asks for."""
        return super().train(False)

    @property
    def num_tokens(self) -> int:
        return prompt_length(self.tokenizer.model_max_length, self.text_encoder.config.to_dict())

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def downscale(self) -> int:
        """Pixels per latent cell along a side."""
        return downscale(self.vae.config)

    def images_per_call(self, size: Size) -> int:
        """How many images of `size` = (H, W) pixels one inference call may hold within `memory_gb`; at least 1.

        An estimate; see `slime_bench.backbones.memory.images_within`.
        """
        budget = int(self.config.memory_gb * 1e9)
        return images_within(budget, self.vae.config, self.unet.config, size, self.unet.dtype.itemsize)

    def training_images(self, size: Size, budget: int) -> int:
        """How many images of `size` = (H, W) pixels one training step may hold within `budget` bytes beside the
        weights; at least 1. An estimate; see `slime_bench.backbones.memory.training_images`.
        """
        return training_images(self.vae.config, self.unet.config, size, self.unet.dtype.itemsize, budget)

    @torch.no_grad()
    def embed(self, prompt: str) -> torch.Tensor:
        """Text encoder's output for one prompt, float32 [1,T,D]."""
        ids = self.tokenizer(
            prompt, padding="max_length", truncation=True, max_length=self.num_tokens, return_tensors="pt"
        ).input_ids
        return self.text_encoder(onto(ids, self.alphas_cumprod.device))[0].float()

    @torch.no_grad()
    def encode(self, images: torch.Tensor, noise: torch.Tensor | None, keep: bool = False) -> torch.Tensor:
        """Scaled latents of images.

        Args:
            images: float [B,3,H,W] in [0,1].
            noise: standard normal [B,4,h,w] for the posterior sample, None for its mean.
            keep: these images come again, in this very batch: keep what the autoencoder makes of them (within
                `encoder_cache_mb`), or use what was kept. Equal to computing it, to the last bit.

        Returns:
            float32 [B,4,h,w], in memory of its own.
        """
        if keep:
            mean, logvar = self._encoded.get(images, self._encoder_state(), self._posterior)
        else:
            mean, logvar = self._posterior(images)
        return self._sampled(mean, logvar, noise)

    def latents(self, images: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """As `encode`, where a gradient is to reach the images: float [B,3,H,W] in [0,1] -> float32 [B,4,h,w]."""
        return self._sampled(*self._posterior(images), noise)

    def _sampled(self, mean: torch.Tensor, logvar: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        latents = mean.float()
        if noise is not None:
            latents = latents + (0.5 * logvar.float()).exp() * noise.to(latents)
        return latents * self.vae.config.scaling_factor

    def _posterior(self, images: torch.Tensor) -> Posterior:
        found = self.vae.encode((images * 2 - 1).to(self.vae.dtype)).latent_dist
        return found.mean, found.logvar

    def _encoder_state(self) -> tuple[object, ...]:
        """What besides the images decides the autoencoder's result: how often its weights were written to, the
        precision, the number of threads that a sum is split over."""
        device = self.alphas_cumprod.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        written = sum(0 if weight.is_inference() else weight._version for weight in self.vae.parameters())
        return self.vae.dtype, autocast, written, torch.get_num_threads()

    def latent_shape(self, size: Size) -> tuple[int, int, int]:
        """(channels, h, w) of the latents of one image of `size` = (H, W)."""
        return self.vae.config.latent_channels, size[0] // self.downscale, size[1] // self.downscale

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """sqrt(a_t) x + sqrt(1 - a_t) e, a_t the schedule's cumulative product: float32 [B,4,h,w], t int64 [B]."""
        keep = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return keep.sqrt() * latents + (1 - keep).sqrt() * noise

    def predict_noise(self, noisy: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Plain forward pass: float [B,4,h,w], int64 [B], float [B,T,D] or [1,T,D] for all images -> float32 [B,4,h,w].

        Without gradient, the text's keys and values are kept for the next call with an equal text.

        A model that predicts velocity v = sqrt(a_t) e - sqrt(1 - a_t) x (Salimans and Ho 2022, section 4) is brought to
        the same meaning: e = sqrt(a_t) v + sqrt(1 - a_t) x_t.
        """
        dtype = self.unet.dtype
        text = text.expand(len(noisy), -1, -1)
        if self._one_text_row and text.stride(0) == 0:
            text = text[:1]  # one text for all images: its keys and values are computed once
        with self._text.during(text, dtype) as text:
            output = self.unet(noisy.to(dtype), timesteps, text).sample.float()
        if self._scheduler.config.prediction_type != "v_prediction":
            return output
        keep = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return keep.sqrt() * output + (1 - keep).sqrt() * noisy

    def attention(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        text: torch.Tensor,
        *,
        with_noise: bool,
        with_self: bool = True,
        propagate: MapsOf | None = None,
    ) -> DiffusionAttention:
        """Queries and keys of the configured layers, in the precision of the weights, in one forward pass.

        Args:
            noisy: float [B,4,h,w]. timesteps: int64 [B]. text: float [B,T,D] or [1,T,D] for all images.
            with_noise: also finish the pass and return the predicted noise; otherwise stop at the last named layer.
            with_self: capture the self-attention layers as well.
            propagate: makes maps of the cross-attention for the self-attention to propagate. Where the cross-attention
                layers run first, as in the usual choice of layers, that is done on the way, in one product with the
                self-attention layers' own values: one product and one backward pass less for every layer.
        """
        latent = (int(noisy.shape[-2]), int(noisy.shape[-1]))
        names = [*self.cross_names, *(self.self_names if with_self else [])]
        extra = None
        if propagate is not None and with_self:
            extra = ExtraValues(frozenset(self.self_names), lambda recording: self._maps(recording, latent, propagate))
        noise = None
        with capture(self.unet, names, stop_early=not with_noise, extra=extra) as recording:
            noise = self.predict_noise(noisy, timesteps, text)
        found = recording.layers
        cross = [found[name] for name in self.cross_names]
        self_ = [found[name] for name in self.self_names] if with_self else []
        grids = [_grids(layers, latent) for layers in (cross, self_)]
        propagated = None
        if recording.propagated:
            rows = torch.stack([recording.propagated[name] for name in self.self_names]).mean(dim=0)
            propagated = to_maps(rows, grids[1][0])
        elif propagate is not None and self_:
            propagated = was(self_, propagate(cross, grids[0], grids[1][0]))
        return DiffusionAttention(cross, grids[0], self_, grids[1], noise, propagated)

    @torch.no_grad()
    def features(
        self,
        images: torch.Tensor,
        timesteps: torch.Tensor,
        draws: torch.Tensor,
        layers: Sequence[str],
        text: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Hidden states of the U-Net for noised images, x_t = sqrt(a_t) E[z|x] + sqrt(1 - a_t) e, in calls that fit
        `memory_gb`; each pass ends after the last named module.

        Args:
            images: float [B,3,H,W] in [0,1]; their latents are the mean of the encoder's distribution.
            timesteps: int64 [B]. draws: e, standard normal [B,4,h,w].
            layers: names of modules, such as `up_blocks.1.attentions.0`.
            text: float [1,T,D]; None for the empty prompt.

        Returns:
            Name -> float32 [B,C,h_l,w_l], the module's output on its own grid.
        """
        text, made = self.embed("") if text is None else text, []
        for here in self._calls(images):
            noisy = self.add_noise(self.encode(images[here], None, keep=True), draws[here], timesteps[here])
            made.append(module_outputs(self.unet, layers, partial(self.predict_noise, noisy, timesteps[here], text)))
        return joined(made)

    def feature_shapes(self, size: Size, layers: Sequence[str]) -> dict[str, tuple[int, int, int]]:
        """(C, h_l, w_l) of `features` for images of `size` = (H, W) pixels; nothing is computed.

        Raises:
            BackboneError: a module gives no map.
        """
        width = self.text_encoder.config.hidden_size
        return output_shapes(self.unet, layers, (1, *self.latent_shape(size)), (1, self.num_tokens, width))

    @torch.no_grad()
    def encoder_features(self, images: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """Hidden states of the autoencoder's encoder: images float [B,3,H,W] in [0,1] and names of its modules, such as
        `mid_block.resnets.1` -> name -> float32 [B,C,h_l,w_l]."""
        encoder, made = self.vae.encoder, []
        for here in self._calls(images):
            pixels = (images[here] * 2 - 1).to(self.vae.dtype)
            made.append(module_outputs(encoder, layers, partial(encoder, pixels)))
        return joined(made)

    def _calls(self, images: torch.Tensor) -> list[slice]:
        """The parts of a batch that one call each may hold."""
        count = self.images_per_call((int(images.shape[-2]), int(images.shape[-1])))
        return [slice(start, start + count) for start in range(0, len(images), count)]

    def _maps(self, recording: Recording, latent: Size, maps: MapsOf) -> torch.Tensor | None:
        """The maps to propagate, float [B,h*w,K], at the first self-attention layer; None if a cross-attention layer
        has not run by then."""
        found = recording.layers
        if not found.keys() >= set(self.cross_names):
            return None
        cross = [found[name] for name in self.cross_names]
        (first,) = [found[name] for name in self.self_names if name in found]
        return to_rows(maps(cross, _grids(cross, latent), _grids([first], latent)[0]))


def _grids(layers: Sequence[LayerAttention], latent: Size) -> list[Size]:
    """(h, w) of the layers in a model whose latents are of size `latent`."""
    return [grid_size(layer.query.shape[2], latent) for layer in layers]

"""SLiMe (Khani et al., ICLR 2024): one text embedding per part, optimised through a frozen diffusion model's attention.

Token 0 (start of text) plays the background and is never trained; tokens 1..K-1 of the text encoder's *output* are the
only trained parameters (section 3 of the paper).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from slime_bench.attention.maps import Size, average, class_logits, class_probabilities, resize, was
from slime_bench.backbones.describe import BackboneFacts
from slime_bench.backbones.stable_diffusion import DiffusionAttention, StableDiffusionBackbone
from slime_bench.embeddings import read_embeddings
from slime_bench.errors import ConfigError
from slime_bench.methods.base import SegmentationMethod
from slime_bench.methods.slime_config import SlimeConfig, check_settings
from slime_bench.methods.slime_losses import class_weights, cross_entropy, guided, was_error
from slime_bench.methods.slime_protocol import SlimeProtocol
from slime_bench.methods.slime_segment import cross_maps, merge_patches, patch_boxes, patch_scores
from slime_bench.seeding import generator


class Slime(SegmentationMethod):
    """The method as a Lightning module.

    Args:
        config: see `SlimeConfig`. protocol: which side of every switch. backbone: frozen.
        classes: K names, `background` first. seed: of the trial.

    Raises:
        ConfigError: see `check`.
    """

    Config = SlimeConfig
    Protocol = SlimeProtocol
    Backbone = StableDiffusionBackbone
    prompt: torch.Tensor
    empty: torch.Tensor

    def __init__(
        self,
        config: SlimeConfig,
        protocol: SlimeProtocol,
        backbone: StableDiffusionBackbone,
        classes: Sequence[str],
        seed: int,
        keep_maps: int = 0,
    ) -> None:
        super().__init__(classes, keep_maps)
        self.config, self.protocol, self.backbone, self.seed = config, protocol, backbone, seed
        self.epochs, self.max_steps = config.epochs, config.max_steps
        check_settings(config, classes, backbone.num_tokens, backbone.num_timesteps)
        prompt, start = self._start()
        self.register_buffer("prompt", prompt, persistent=False)  # [1,T,D]
        self.register_buffer("empty", backbone.embed(""), persistent=False)  # [1,T,D]
        self.embeddings = nn.Parameter(start)  # [K-1,D]

    @classmethod
    def check(
        cls,
        config: SlimeConfig,
        backbone: BackboneFacts | None,
        classes: Sequence[str],
        image_size: int,
        shots: int = 1,
    ) -> None:
        """See `check_settings`; also the width of embeddings that come from a file."""
        if backbone is None:
            return  # left to the constructor, which has the loaded backbone
        check_settings(config, classes, backbone.num_tokens, backbone.num_timesteps, image_size)
        if config.start.path is not None:
            _check_shape(_read(config), (len(classes) - 1, backbone.text_width), config.start.path)

    @classmethod
    def fingerprints(cls, config: SlimeConfig) -> dict[str, str]:
        """`start`: sha256 of the embeddings that come from a file."""
        if config.start.path is None:
            return {}
        return {"start": hashlib.sha256(_read(config).float().contiguous().numpy().tobytes()).hexdigest()}

    def _start(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The prompt's embedding float [1,T,D] and the trained tokens' start float [K-1,D]."""
        names, kind, backbone = self.classes[1:], self.config.start.kind, self.backbone
        if kind == "class_names":
            prompt = backbone.embed(" ".join(names))
            spans = [len(backbone.tokenizer.tokenize(name)) for name in names]
            if 1 + sum(spans) > backbone.num_tokens:
                raise ConfigError(
                    "the class names do not fit into the prompt", path="method.start.kind",
                    found=f"{sum(spans)} tokens", expected=f"at most {backbone.num_tokens - 1}",
                    remedy="use method.start.kind=words",
                )  # fmt: skip
            # A name of several tokens starts from their mean, so that every class still owns one token.
            return prompt, torch.stack([part.mean(0) for part in prompt[0, 1 : 1 + sum(spans)].split(spans)])
        prompt = backbone.embed(" ".join([self.config.start.word] * len(self.classes)).strip())
        start = prompt[0, 1 : len(self.classes)].clone()
        if kind == "random":
            spread = prompt.std()
            start = torch.randn(start.shape, generator=generator(self.seed, "embeddings")).to(start) * spread
        if kind == "file":
            found = _read(self.config)
            _check_shape(found, tuple(start.shape), str(self.config.start.path))
            start = found.to(start)
        return prompt, start

    def text(self) -> torch.Tensor:
        """The prompt with the class embeddings in their places, float [1,T,D]."""
        tail = self.prompt[:, len(self.classes) :]
        return torch.cat([self.prompt[:, :1], self.embeddings[None], tail], dim=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([self.embeddings], lr=self.config.lr)

    def training_step(self, batch: Mapping[str, Any], _: int) -> torch.Tensor:
        """One step of Eq. 8 on augmented support images; logs the three terms."""
        images, label = self._channels(batch["image"]), batch["label"]
        keys = list(zip(batch["id"], batch["epoch"].tolist(), strict=True))
        timesteps = self._timesteps(keys)
        latents, noise = self._latents(images, "train", keys)
        noisy, weights = self.backbone.add_noise(latents, noise, timesteps), self.config.loss_weights
        found = self.backbone.attention(
            noisy, timesteps, self.text(), with_noise=weights.beta != 0, with_self=weights.alpha != 0
        )
        terms = self.losses(found, label, noisy, timesteps, noise)
        logged = {**terms, "t": timesteps.float().mean()}
        self.log_dict({f"train/{name}": value.detach() for name, value in logged.items()}, batch_size=len(images))
        return terms["loss"]

    def losses(
        self,
        found: DiffusionAttention,
        label: torch.Tensor,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        noise: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The terms `cross_entropy`, `was`, `diffusion` (those with a weight) and their weighted sum `loss`.

        Args:
            found: attention of the noisy latents. label: int64 [B,H,W].
            noisy, noise: float [B,4,h,w]. timesteps: int64 [B].
        """
        weighted, protocol, size = self.config.loss_weights, self.protocol, (self.config.train_map_size,) * 2
        guides = weighted.beta != 0 and protocol.diffusion_loss == "guided"
        other = self._other_half(noisy, timesteps, with_noise=guides, with_self=weighted.alpha != 0)
        found = _joined(found, other)
        target = F.interpolate(label[:, None].float(), size, mode="nearest")[:, 0].long()
        weights = class_weights(target, len(self.classes), protocol.ce_weights)
        terms = {"cross_entropy": cross_entropy(self._train_maps(found, size), target, weights)}
        loss = terms["cross_entropy"]
        if weighted.alpha:
            grid = found.self_grids[0]
            maps = self._train_maps(found, grid)
            maps = maps.softmax(1) if protocol.ce_input == "logits" else maps
            terms["was"] = was_error(resize(was(found.self_, maps), size), target, protocol.was_loss)
            loss = loss + weighted.alpha * terms["was"]
        if weighted.beta and found.noise is not None:
            predicted = found.noise
            if guides:
                unconditional = None if other is None else other.noise
                if unconditional is None:
                    unconditional = self._unconditional_noise(noisy, timesteps)
                predicted = guided(predicted, unconditional, protocol.guidance_scale)
            terms["diffusion"] = F.mse_loss(predicted, noise)
            loss = loss + weighted.beta * terms["diffusion"]
        return {**terms, "loss": loss}

    def _train_maps(self, found: DiffusionAttention, size: Size) -> torch.Tensor:
        """Averaged logits, or averaged probabilities, of the class tokens: float [B,K,*size]."""
        make = class_logits if self.protocol.ce_input == "logits" else class_probabilities
        return average(
            [make(layer, len(self.classes), grid) for layer, grid in zip(found.cross, found.cross_grids, strict=True)],
            size,
        )

    @torch.no_grad()
    def _unconditional_noise(self, noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return self.backbone.predict_noise(noisy, timesteps, self.empty.expand(len(noisy), -1, -1))

    @torch.no_grad()
    def _other_half(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, *, with_noise: bool, with_self: bool = True
    ) -> DiffusionAttention | None:
        """The guidance batch's empty-prompt half, where the protocol makes maps of it. It has no trained parameter."""
        if self.protocol.halves == "conditional":
            return None
        return self.backbone.attention(noisy, timesteps, self.empty, with_noise=with_noise, with_self=with_self)

    @torch.no_grad()
    def scores(self, images: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        """As the base class says. Patches of all images go through the backbone together, in calls that fit its memory
        budget (`backbone.memory_gb`)."""
        config, frame = self.config, (int(images.shape[-2]), int(images.shape[-1]))
        boxes = [(0, frame[0], 0, frame[1])]
        if config.patch_size is not None:
            boxes = patch_boxes(frame, config.patch_size, config.patches_per_side)
        side = self.backbone.config.image_size
        patches = torch.stack([images[:, :, y0:y1, x0:x1] for y0, y1, x0, x1 in boxes], dim=1).flatten(0, 1)
        keys = [(name, index) for name in ids for index in range(len(boxes))]
        extent = (boxes[0][1] - boxes[0][0], boxes[0][3] - boxes[0][2])
        per_call = self.backbone.images_per_call((side, side))
        made = [
            self._patch_scores(resize(self._channels(part), (side, side)), keys[start : start + per_call], extent)
            for start, part in zip(range(0, len(keys), per_call), patches.split(per_call), strict=True)
        ]
        scores, passed = (torch.cat(parts) for parts in zip(*made, strict=True))
        batch = (len(images), len(boxes))
        return merge_patches(scores.unflatten(0, batch), passed.unflatten(0, batch), boxes, frame)

    def _patch_scores(
        self, patches: torch.Tensor, keys: Sequence[tuple[str, int]], extent: Size
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches float [P,3,S,S] -> score maps float [P,K,*extent] and which classes passed, bool [P,K]."""
        latents, noise = self._latents(patches, "test", keys)
        timesteps = torch.full((len(patches),), self.config.t_test, device=patches.device)
        noisy = self.backbone.add_noise(latents, noise, timesteps)
        found = self.backbone.attention(noisy, timesteps, self.text(), with_noise=False)
        found = _joined(found, self._other_half(noisy, timesteps, with_noise=False))
        cross = cross_maps(found.cross, found.cross_grids, len(self.classes), found.self_grids[0], self.protocol)
        return patch_scores(cross, found.self_, self.protocol, self.config.maps == "was", extent)

    def _channels(self, images: torch.Tensor) -> torch.Tensor:
        return images.flip(1) if self.protocol.channel_order == "bgr" else images

    def _timesteps(self, keys: Sequence[tuple[str, int]]) -> torch.Tensor:
        low, high = self.config.t_opt
        draws = [torch.randint(low, high + 1, (1,), generator=generator(self.seed, "timestep", *key)) for key in keys]
        return torch.cat(draws).to(self.device)

    def _latents(
        self, images: torch.Tensor, purpose: str, keys: Sequence[tuple[str, int]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents of images and the diffusion noise to add, float [B,4,h,w] each; draws are keyed per image."""
        shape = self.backbone.latent_shape((int(images.shape[-2]), int(images.shape[-1])))
        if purpose == "test" and self.protocol.test_noise == "shared":
            keys = [("", 0)] * len(keys)
        draws = [generator(self.seed, f"{purpose}_noise", *key) for key in keys]
        posterior = torch.stack([torch.randn(shape, generator=draw) for draw in draws]).to(images)
        noise = torch.stack([torch.randn(shape, generator=draw) for draw in draws]).to(images)
        return self.backbone.encode(images, posterior if self.protocol.sample_latents else None), noise

    def learned_state(self) -> dict[str, torch.Tensor]:
        return {"embeddings": self.embeddings.detach()}

    def load_learned_state(self, state: Mapping[str, torch.Tensor]) -> None:
        _check_shape(state["embeddings"], tuple(self.embeddings.shape), "state.safetensors")
        with torch.no_grad():
            self.embeddings.copy_(state["embeddings"])


def _joined(one: DiffusionAttention, other: DiffusionAttention | None) -> DiffusionAttention:
    """Both halves' layers side by side: the mean over layers is then the mean over halves and layers."""
    if other is None:
        return one
    return DiffusionAttention(
        one.cross + other.cross,
        one.cross_grids + other.cross_grids,
        one.self_ + other.self_,
        one.self_grids + other.self_grids,
        one.noise,
    )


def _read(config: SlimeConfig) -> torch.Tensor:
    return read_embeddings(Path(str(config.start.path)))


def _check_shape(found: torch.Tensor, expected: tuple[int, ...], path: str) -> None:
    if tuple(found.shape) != expected:
        raise ConfigError(
            "these embeddings are of another class list or backbone", path=path, found=list(found.shape),
            expected=list(expected), remedy="use the classes and the backbone that they were optimised with",
        )  # fmt: skip

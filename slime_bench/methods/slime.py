"""SLiMe (Khani et al., ICLR 2024): one text embedding per part, optimised through a frozen diffusion model's attention.

Token 0 (start of text) plays the background and is never trained; tokens 1..K-1 of the text encoder's *output* are the
only trained parameters (section 3 of the paper).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from slime_bench.attention.maps import Size, average, class_logits, class_probabilities, resize, was
from slime_bench.backbones.stable_diffusion import DiffusionAttention, StableDiffusionBackbone
from slime_bench.errors import ConfigError
from slime_bench.methods.base import SegmentationMethod
from slime_bench.methods.slime_losses import class_weights, cross_entropy, guided, was_error
from slime_bench.methods.slime_protocol import SlimeProtocol
from slime_bench.methods.slime_segment import cross_maps, merge_patches, patch_boxes, patch_scores
from slime_bench.seeding import generator

PROMPT_KINDS = ("words", "class_names", "random")


@dataclass
class SlimeConfig:
    """Settings of SLiMe.

    Args:
        name: in tables and folder names.
        epochs: passes over the support set; 0 leaves the embeddings at their start.
        max_steps: ends the optimisation after so many steps, where that is earlier.
        lr: of Adam.
        alpha, beta: weights of the WAS loss and of the diffusion loss (Eq. 8).
        t_opt: smallest and largest timestep in training, both included.
        t_test: timestep at test time.
        start: what the embeddings start from: `words`: `prompt` once per class; `class_names`: the class's own name;
            `random`: normal, with the spread of the text encoder's output.
        prompt: the word for `words`; empty for the empty prompt.
        maps: score maps at test time: `was`, or the `cross` maps alone (Table 1).
        train_map_size: side H'' of the maps in training.
        patch_size: side of a test patch in pixels of the image; null for the whole image.
        patches_per_side: test patches along a side; each is resized to the backbone's image size.
    """

    name: str = "slime"
    epochs: int = field(default=200, metadata={"min": 0})
    max_steps: int | None = field(default=None, metadata={"min": 1})
    lr: float = 0.1
    alpha: float = 1.0
    beta: float = 0.005
    t_opt: list[int] = field(default_factory=lambda: [5, 100])
    t_test: int = field(default=100, metadata={"min": 0})
    start: str = field(default="words", metadata={"choices": PROMPT_KINDS})
    prompt: str = "part"
    maps: str = field(default="was", metadata={"choices": ("was", "cross")})
    train_map_size: int = field(default=64, metadata={"min": 1})
    patch_size: int | None = field(default=None, metadata={"min": 1})
    patches_per_side: int = field(default=1, metadata={"min": 1})


class Slime(SegmentationMethod):
    """The method as a Lightning module.

    Args:
        config: see `SlimeConfig`. protocol: which side of every switch. backbone: frozen.
        classes: K names, `background` first. seed: of the trial.

    Raises:
        ConfigError: more classes than the prompt has tokens, or timesteps outside the schedule.
    """

    Config = SlimeConfig
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
        self._check()
        prompt, start = self._start()
        self.register_buffer("prompt", prompt, persistent=False)  # [1,T,D]
        self.register_buffer("empty", backbone.embed(""), persistent=False)  # [1,T,D]
        self.embeddings = nn.Parameter(start)  # [K-1,D]

    def _check(self) -> None:
        config, steps = self.config, self.backbone.num_timesteps
        if len(self.classes) > self.backbone.num_tokens:
            raise ConfigError(
                "more classes than text tokens",
                path="data.classes",
                found=len(self.classes),
                expected=f"at most {self.backbone.num_tokens}",
                remedy="merge classes: every class owns one token of the prompt",
            )
        low, high = [*config.t_opt, -1, -1][:2]
        if len(config.t_opt) != 2 or not 0 <= low <= high < steps:
            raise ConfigError(
                "bad range of training timesteps", path="method.t_opt", found=config.t_opt,
                expected=f"[low, high] with 0 <= low <= high < {steps}", remedy="e.g. method.t_opt=[5,100]",
            )  # fmt: skip
        if config.t_test >= steps:
            raise ConfigError(
                "test timestep outside the schedule", path="method.t_test", found=config.t_test,
                expected=f"0 to {steps - 1}", remedy="e.g. method.t_test=100",
            )  # fmt: skip
        if (config.patch_size is None) != (config.patches_per_side == 1):
            raise ConfigError(
                "test patches are half described", path="method.patch_size",
                found=f"patch_size={config.patch_size}, patches_per_side={config.patches_per_side}",
                expected="both, or neither", remedy="e.g. method.patch_size=400 method.patches_per_side=2",
            )  # fmt: skip
        for key in ("cross_layers", "self_layers"):
            if not getattr(self.backbone, key.replace("layers", "names")):
                raise ConfigError(
                    "no attention layer is named", path=f"backbone.{key}", found="an empty list",
                    expected="at least one layer", remedy="see conf/backbone/mini_sd.yaml",
                )  # fmt: skip

    def _start(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The prompt's embedding float [1,T,D] and the trained tokens' start float [K-1,D]."""
        names, kind, backbone = self.classes[1:], self.config.start, self.backbone
        if kind == "class_names":
            prompt = backbone.embed(" ".join(names))
            spans = [len(backbone.tokenizer.tokenize(name)) for name in names]
            if 1 + sum(spans) > backbone.num_tokens:
                raise ConfigError(
                    "the class names do not fit into the prompt", path="method.start", found=f"{sum(spans)} tokens",
                    expected=f"at most {backbone.num_tokens - 1}", remedy="use method.start=words",
                )  # fmt: skip
            # A name of several tokens starts from their mean, so that every class still owns one token.
            return prompt, torch.stack([part.mean(0) for part in prompt[0, 1 : 1 + sum(spans)].split(spans)])
        prompt = backbone.embed(" ".join([self.config.prompt] * len(self.classes)).strip())
        start = prompt[0, 1 : len(self.classes)].clone()
        if kind == "random":
            spread = prompt.std()
            start = torch.randn(start.shape, generator=generator(self.seed, "embeddings")).to(start) * spread
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
        noisy = self.backbone.add_noise(latents, noise, timesteps)
        found = self.backbone.attention(
            noisy, timesteps, self.text(), with_noise=self.config.beta != 0, with_self=self.config.alpha != 0
        )
        terms = self.losses(found, label, noisy, timesteps, noise)
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()}, batch_size=len(images))
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
        config, protocol, size = self.config, self.protocol, (self.config.train_map_size,) * 2
        target = F.interpolate(label[:, None].float(), size, mode="nearest")[:, 0].long()
        weights = class_weights(target, len(self.classes), protocol.ce_weights)
        terms = {"cross_entropy": cross_entropy(self._train_maps(found, size), target, weights)}
        loss = terms["cross_entropy"]
        if config.alpha:
            grid = found.self_grids[0]
            maps = self._train_maps(found, grid)
            maps = maps.softmax(1) if protocol.ce_input == "logits" else maps
            terms["was"] = was_error(resize(was(found.self_, maps), size), target, protocol.was_loss)
            loss = loss + config.alpha * terms["was"]
        if config.beta and found.noise is not None:
            predicted = found.noise
            if protocol.diffusion_loss == "guided":
                with torch.no_grad():
                    unconditional = self.backbone.predict_noise(noisy, timesteps, self.empty.expand(len(noisy), -1, -1))
                predicted = guided(predicted, unconditional, protocol.guidance_scale)
            terms["diffusion"] = F.mse_loss(predicted, noise)
            loss = loss + config.beta * terms["diffusion"]
        return {**terms, "loss": loss}

    def _train_maps(self, found: DiffusionAttention, size: Size) -> torch.Tensor:
        """Averaged logits, or averaged probabilities, of the class tokens: float [B,K,*size]."""
        make = class_logits if self.protocol.ce_input == "logits" else class_probabilities
        return average(
            [make(layer, len(self.classes), grid) for layer, grid in zip(found.cross, found.cross_grids, strict=True)],
            size,
        )

    @torch.no_grad()
    def scores(self, images: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        """As the base class says. Patches and images share one batch; only the conditional half is computed."""
        config, frame = self.config, (int(images.shape[-2]), int(images.shape[-1]))
        boxes = [(0, frame[0], 0, frame[1])]
        if config.patch_size is not None:
            boxes = patch_boxes(frame, config.patch_size, config.patches_per_side)
        side = self.backbone.config.image_size
        patches = torch.stack([images[:, :, y0:y1, x0:x1] for y0, y1, x0, x1 in boxes], dim=1).flatten(0, 1)
        patches = resize(self._channels(patches), (side, side))  # [B*P,3,S,S]
        keys = [(name, index) for name in ids for index in range(len(boxes))]
        latents, noise = self._latents(patches, "test", keys)
        timesteps = torch.full((len(patches),), config.t_test, device=images.device)
        noisy = self.backbone.add_noise(latents, noise, timesteps)
        found = self.backbone.attention(noisy, timesteps, self.text(), with_noise=False)
        cross = cross_maps(found.cross, found.cross_grids, len(self.classes), found.self_grids[0], self.protocol)
        extent = (boxes[0][1] - boxes[0][0], boxes[0][3] - boxes[0][2])
        scores, passed = patch_scores(cross, found.self_, self.protocol, config.maps == "was", extent)
        batch = (len(images), len(boxes))
        return merge_patches(scores.unflatten(0, batch), passed.unflatten(0, batch), boxes, frame)

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
        draws = [generator(self.seed, f"{purpose}_noise", *key) for key in keys]
        posterior = torch.stack([torch.randn(shape, generator=draw) for draw in draws]).to(images)
        noise = torch.stack([torch.randn(shape, generator=draw) for draw in draws]).to(images)
        return self.backbone.encode(images, posterior if self.protocol.sample_latents else None), noise

    def learned_state(self) -> dict[str, torch.Tensor]:
        return {"embeddings": self.embeddings.detach()}

    def load_learned_state(self, state: Mapping[str, torch.Tensor]) -> None:
        found, expected = tuple(state["embeddings"].shape), tuple(self.embeddings.shape)
        if found != expected:
            raise ConfigError(
                "these embeddings are of another class list or backbone", path="state.safetensors", found=list(found),
                expected=list(expected), remedy="use the classes and the backbone that they were optimised with",
            )  # fmt: skip
        with torch.no_grad():
            self.embeddings.copy_(state["embeddings"])

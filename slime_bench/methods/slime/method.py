"""SLiMe (Khani et al., ICLR 2024): one text embedding per part, optimised through a frozen diffusion model's attention.

Token 0 (start of text) plays the background and is never trained; tokens 1..K-1 of the text encoder's *output* are the
only trained parameters (section 3 of the paper).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional as F

from slime_bench.attention.capture import LayerAttention
from slime_bench.attention.maps import Size, average, class_logits, class_probabilities, resize, was
from slime_bench.backbones.diffusion import BackboneFacts, StableDiffusion
from slime_bench.backbones.stable_diffusion import DiffusionAttention, StableDiffusionBackbone
from slime_bench.errors import ConfigError
from slime_bench.methods.base import SegmentationMethod, label_maps
from slime_bench.methods.slime.batch import EmptyPrompt, Step, joined, segmented, training_terms
from slime_bench.methods.slime.config import SlimeConfig, check_settings
from slime_bench.methods.slime.embeddings import read_embeddings
from slime_bench.methods.slime.losses import class_weights, cross_entropy, guided, mean_iou, was_error
from slime_bench.methods.slime.protocol import SlimeProtocol
from slime_bench.seeding import generator

CELLS: Final = 4096
"""Latent cells of one training step on a CPU beyond which it takes about twice as long for twice as many."""
MOST_TRIALS: Final = 8
"""Trials in one batch: all of them end at the same time, and what is lost with a killed process is theirs together."""


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
    Backbone = StableDiffusion
    may_differ = ("lr", "loss_weights", "t_opt", "t_test", "start", "maps")
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
        (terms,) = training_terms([self], [batch])
        logged = {f"train/{name}": value.detach() for name, value in terms.items()}
        self.log_dict(logged, batch_size=len(batch["id"]))
        return terms["loss"]

    @classmethod
    def steps_together(
        cls, methods: Sequence[Slime], batches: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, torch.Tensor]]:
        return training_terms(methods, batches)

    @classmethod
    def trials_of_use(cls, backbone: StableDiffusionBackbone, image_size: int, images: int, device: str) -> int:
        """On a CPU as many as have `CELLS` latent cells together: larger images keep its cores busy one at a time. On a
        GPU as many as its free memory holds, up to `MOST_TRIALS`."""
        size = (image_size, image_size)
        if device == "cpu":
            height, width = backbone.latent_shape(size)[1:]
            return max(1, min(MOST_TRIALS, CELLS // (height * width * images)))
        to_come = sum(each.nbytes for each in backbone.parameters() if not each.is_cuda)
        free = int(0.8 * (torch.cuda.mem_get_info()[0] - to_come))
        return max(1, min(MOST_TRIALS, backbone.training_images(size, free) // images))

    @classmethod
    def predictions_together(
        cls, methods: Sequence[Slime], images: Sequence[torch.Tensor], ids: Sequence[Sequence[str]]
    ) -> list[torch.Tensor]:
        return [label_maps(scores) for scores in segmented(methods, images, ids)]

    def step_of(self, batch: Mapping[str, Any]) -> Step:
        """What one step takes of a batch; its timesteps are drawn by seed, image and epoch."""
        keys = list(zip(batch["id"], batch["epoch"].tolist(), strict=True))
        return Step(self._channels(batch["image"]), batch["label"], keys, self._timesteps(keys))

    def losses(
        self,
        found: DiffusionAttention,
        label: torch.Tensor,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        noise: torch.Tensor,
        empty: EmptyPrompt | None = None,
    ) -> dict[str, torch.Tensor]:
        """The terms `cross_entropy`, `was`, `diffusion` (those with a weight), their weighted sum `loss`, and `miou` of
        the very maps that they are taken of, in percent.

        Args:
            found: attention of the noisy latents. label: int64 [B,H,W].
            noisy, noise: float [B,4,h,w]. timesteps: int64 [B].
            empty: `empty_half` of the same latents, where it was computed for several trials.
        """
        weighted, protocol, size = self.config.loss_weights, self.protocol, (self.config.train_map_size,) * 2
        guides = weighted.beta != 0 and protocol.diffusion_loss == "guided"
        if empty is None:
            empty = self.empty_half(noisy, timesteps, guides=guides, with_self=weighted.alpha != 0)
        found = joined(found, empty.attention)
        target = F.interpolate(label[:, None].float(), size, mode="nearest")[:, 0].long()
        weights = class_weights(target, len(self.classes), protocol.ce_weights)
        maps = self._train_maps(found.cross, found.cross_grids, size)
        terms = {"cross_entropy": cross_entropy(maps, target, weights)}
        loss = terms["cross_entropy"]
        if weighted.alpha:
            spread = found.propagated
            if spread is None:
                spread = was(found.self_, self.training_cross(found.cross, found.cross_grids, found.self_grids[0]))
            maps = resize(spread, size)
            terms["was"] = was_error(maps, target, protocol.was_loss)
            loss = loss + weighted.alpha * terms["was"]
        if weighted.beta and found.noise is not None:
            predicted = found.noise
            if guides and empty.noise is not None:
                predicted = guided(predicted, empty.noise, protocol.guidance_scale)
            terms["diffusion"] = F.mse_loss(predicted, noise)
            loss = loss + weighted.beta * terms["diffusion"]
        return {**terms, "loss": loss, "miou": 100 * mean_iou(label_maps(maps.detach()), target, len(self.classes))}

    def training_cross(self, layers: Sequence[LayerAttention], grids: Sequence[Size], size: Size) -> torch.Tensor:
        """What WAS propagates in training: probabilities of the classes, float [B,K,*size] in [0,1]."""
        maps = self._train_maps(layers, grids, size)
        return maps.softmax(1) if self.protocol.ce_input == "logits" else maps

    def _train_maps(self, layers: Sequence[LayerAttention], grids: Sequence[Size], size: Size) -> torch.Tensor:
        """Averaged logits, or averaged probabilities, of the class tokens: float [B,K,*size]."""
        make = class_logits if self.protocol.ce_input == "logits" else class_probabilities
        return average([make(layer, len(self.classes), grid) for layer, grid in zip(layers, grids, strict=True)], size)

    @torch.no_grad()
    def empty_half(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, *, guides: bool, with_self: bool = True
    ) -> EmptyPrompt:
        """The guidance batch's empty-prompt half, as far as it is used: it has no trained parameter.

        Args:
            noisy: float [B,4,h,w]. timesteps: int64 [B]. guides: whether its noise is. with_self: whether its
                self-attention is, where the protocol makes maps of it.
        """
        if self.protocol.halves != "conditional":
            found = self.backbone.attention(noisy, timesteps, self.empty, with_noise=guides, with_self=with_self)
            return EmptyPrompt(found, found.noise)
        if not guides:
            return EmptyPrompt()
        return EmptyPrompt(None, self.backbone.predict_noise(noisy, timesteps, self.empty.expand(len(noisy), -1, -1)))

    @torch.no_grad()
    def scores(self, images: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        """As the base class says; see `segmented`."""
        return segmented([self], [images], [ids])[0]

    def query_latents(
        self, patches: torch.Tensor, keys: Sequence[tuple[str, int]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents of test patches float [P,3,S,S] and the noise to add, float [P,4,h,w] each."""
        return self.latents(self._channels(patches), "test", keys)

    def _channels(self, images: torch.Tensor) -> torch.Tensor:
        return images.flip(1) if self.protocol.channel_order == "bgr" else images

    def _timesteps(self, keys: Sequence[tuple[str, int]]) -> torch.Tensor:
        low, high = self.config.t_opt
        draws = [torch.randint(low, high + 1, (1,), generator=generator(self.seed, "timestep", *key)) for key in keys]
        return torch.cat(draws).to(self.device)

    def latents(
        self, images: torch.Tensor, purpose: str, keys: Sequence[tuple[str, int]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents of images and the diffusion noise to add, float [B,4,h,w] each; see `draws`."""
        posterior, noise = self.draws(images, purpose, keys)
        # Test and validation images come again, with the next epoch or the next seed; augmented ones never do.
        return self.backbone.encode(images, posterior, keep=purpose == "test"), noise

    def draws(
        self, images: torch.Tensor, purpose: str, keys: Sequence[tuple[str, int]]
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Noise for the sample of the encoder's posterior, None for its mean, and the diffusion noise to add: float
        [B,4,h,w], keyed per image."""
        shape = self.backbone.latent_shape((int(images.shape[-2]), int(images.shape[-1])))
        if purpose == "test" and self.protocol.test_noise == "shared":
            keys = [("", 0)] * len(keys)
        draws = [generator(self.seed, f"{purpose}_noise", *key) for key in keys]
        posterior = torch.stack([torch.randn(shape, generator=draw) for draw in draws]).to(images)
        noise = torch.stack([torch.randn(shape, generator=draw) for draw in draws]).to(images)
        return posterior if self.protocol.sample_latents else None, noise

    def learned_state(self) -> dict[str, torch.Tensor]:
        return {"embeddings": self.embeddings.detach()}

    def load_learned_state(self, state: Mapping[str, torch.Tensor]) -> None:
        _check_shape(state["embeddings"], tuple(self.embeddings.shape), "state.safetensors")
        with torch.no_grad():
            self.embeddings.copy_(state["embeddings"])


def _read(config: SlimeConfig) -> torch.Tensor:
    return read_embeddings(Path(str(config.start.path)))


def _check_shape(found: torch.Tensor, expected: tuple[int, ...], path: str) -> None:
    if tuple(found.shape) != expected:
        raise ConfigError(
            "these embeddings are of another class list or backbone", path=path, found=list(found.shape),
            expected=list(expected), remedy="use the classes and the backbone that they were optimised with",
        )  # fmt: skip

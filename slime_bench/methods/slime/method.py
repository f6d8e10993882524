"""SLiMe (Khani et al., ICLR 2024): one text embedding per part, optimised through a frozen diffusion model's attention.

Token 0 (start of text) plays the background and is never trained; tokens 1..K-1 of the text encoder's *output* are the
only trained parameters (section 3 of the paper).

Several trials take one pass of the backbone: their images stand in one batch, each with its own prompt. Nothing of one
trial enters another's numbers: a pass treats the images of a batch apart, every loss is taken of a trial's own rows,
and Adam works element by element. Only the order in which a kernel adds up floating-point numbers depends on the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional as F

from slime_bench.attention.capture import LayerAttention
from slime_bench.attention.maps import Size, average, class_logits, class_probabilities, resize, was
from slime_bench.backbones.stable_diffusion import DiffusionAttention, StableDiffusionBackbone
from slime_bench.errors import ConfigError
from slime_bench.methods.base import label_maps
from slime_bench.methods.batch import BatchedMethod
from slime_bench.methods.slime.config import SlimeConfig, SlimeDescription, check_settings, check_shape, patch_boxes
from slime_bench.methods.slime.embeddings import read_embeddings
from slime_bench.methods.slime.inference import cross_maps, merge_patches, patch_scores, to_propagate
from slime_bench.methods.slime.losses import class_weights, cross_entropy, guided, mean_iou, was_error
from slime_bench.methods.slime.passes import joined, prompt_rows, split
from slime_bench.methods.slime.protocol import SlimeProtocol
from slime_bench.places import onto
from slime_bench.seeding import generator

CELLS: Final = 4096
"""Latent cells of one training step on a CPU beyond which it takes about twice as long for twice as many."""
MOST_TRIALS: Final = 8
"""Trials in one batch: all of them end at the same time, and a killed process loses the work of all."""

Keys = Sequence[tuple[str, int]]
"""Of an image's random draws: its id, and its epoch or the place of the patch."""


class Slime(SlimeDescription, BatchedMethod):
    """The method as a Lightning module.

    Args:
        config: see `SlimeConfig`. protocol: which side of every switch. backbone: frozen.
        classes: K names, `background` first. seed: of the trial.

    Raises:
        ConfigError: see `check`.
    """

    implementation = None  # a subclass computes by itself
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
        self._made: tuple[tuple[int, int], torch.Tensor] | None = None

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
            start = torch.randn(start.shape, generator=generator(self.seed, "embeddings")).to(start) * prompt.std()
        if kind == "file":
            found = read_embeddings(str(self.config.start.path))
            check_shape(found.shape, start.shape, str(self.config.start.path))
            start = found.to(start)
        return prompt, start

    def text(self) -> torch.Tensor:
        """The prompt with the class embeddings in their places, float [1,T,D]; without gradient the very tensor of
        before, as long as nobody has written into the embeddings or moved them."""
        if torch.is_grad_enabled() or self.embeddings.is_inference():  # these do not count who writes into them
            return self._text()
        state = self.embeddings.data_ptr(), self.embeddings._version
        if self._made is None or self._made[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                self._made = state, self._text()
        return self._made[1]

    def _text(self) -> torch.Tensor:
        tail = self.prompt[:, len(self.classes) :]
        return torch.cat([self.prompt[:, :1], self.embeddings[None], tail], dim=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([self.embeddings], lr=self.config.lr)

    def learned_state(self) -> dict[str, torch.Tensor]:
        return {"embeddings": self.embeddings.detach()}

    def load_learned_state(self, state: Mapping[str, torch.Tensor]) -> None:
        check_shape(state["embeddings"].shape, self.embeddings.shape, "state.safetensors")
        with torch.no_grad():
            self.embeddings.copy_(state["embeddings"])

    @classmethod
    def trials_per_batch(cls, backbone: StableDiffusionBackbone, image_size: int, images: int, device: str) -> int:
        """On a CPU as many as have `CELLS` latent cells in all: larger images keep its cores busy one at a time; so on
        MPS, which shares its memory. On CUDA as many as its free memory holds, up to `MOST_TRIALS`."""
        size = (image_size, image_size)
        if device != "cuda":
            height, width = backbone.latent_shape(size)[1:]
            return max(1, min(MOST_TRIALS, CELLS // (height * width * images)))
        to_come = sum(each.nbytes for each in backbone.parameters() if not each.is_cuda)
        free = int(0.8 * (torch.cuda.mem_get_info()[0] - to_come))
        return max(1, min(MOST_TRIALS, backbone.training_images(size, free) // images))

    # Training

    @classmethod
    def training_terms(
        cls, trials: Sequence[Slime], batches: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, torch.Tensor]]:
        """The terms of Eq. 8 of one step of each trial on augmented support images; see `losses`. The mean of the
        step's timesteps stands under `t`."""
        first, backbone, counts = trials[0], trials[0].backbone, [len(batch["id"]) for batch in batches]
        uses_was = any(trial.config.loss_weights.alpha != 0 for trial in trials)
        uses_noise = any(trial.config.loss_weights.beta != 0 for trial in trials)
        keys = [list(zip(batch["id"], batch["epoch"].tolist(), strict=True)) for batch in batches]
        images = [trial._channels(batch["image"]) for trial, batch in zip(trials, batches, strict=True)]
        drawn = [trial.noises(own, each, "train") for trial, own, each in zip(trials, images, keys, strict=True)]
        posteriors = [posterior for posterior, _ in drawn if posterior is not None]
        latents = backbone.encode(torch.cat(images), torch.cat(posteriors) if posteriors else None)
        noise = torch.cat([noise for _, noise in drawn])
        timesteps = torch.cat([trial.timesteps(own) for trial, own in zip(trials, keys, strict=True)])
        noisy = backbone.add_noise(latents, noise, timesteps)
        found = backbone.attention(
            noisy,
            timesteps,
            prompt_rows([trial.text() for trial in trials], counts),
            with_noise=uses_noise,
            with_self=uses_was,
            propagate=first.training_cross if first.protocol.halves == "conditional" else None,
        )
        guides = uses_noise and first.protocol.diffusion_loss == "guided"
        unconditional = first.unconditional(noisy, timesteps, guides=guides, with_self=uses_was)
        parts = (split(found, counts), split(unconditional, counts), noise.split(counts), timesteps.split(counts))
        return [
            {**trial.losses(own, free, batch["label"], added), "t": steps.float().mean()}
            for trial, batch, own, free, added, steps in zip(trials, batches, *parts, strict=True)
        ]

    def losses(
        self, found: DiffusionAttention, unconditional: DiffusionAttention, label: torch.Tensor, noise: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The terms `cross_entropy`, `was`, `diffusion` (those with a weight), their weighted sum `loss`, and `miou` of
        the very maps that they are taken of, in percent.

        Args:
            found: attention of the noisy latents with the prompt. unconditional: see there, of the same latents.
            label: int64 [B,H,W]. noise: that was added, float [B,4,h,w].
        """
        weighted, protocol, size = self.config.loss_weights, self.protocol, (self.config.train_map_size,) * 2
        found = joined(found, unconditional)
        target = F.interpolate(label[:, None].float(), size, mode="nearest")[:, 0].long()
        weights = class_weights(target, len(self.classes), protocol.ce_weights)
        maps = self._train_maps(found.cross, found.cross_grids, size)
        terms = {"cross_entropy": cross_entropy(maps, target, weights)}
        loss = terms["cross_entropy"]
        if weighted.alpha:
            propagated = found.propagated
            if propagated is None:
                propagated = was(found.self_, self.training_cross(found.cross, found.cross_grids, found.self_grids[0]))
            maps = resize(propagated, size)
            terms["was"] = was_error(maps, target, protocol.was_loss)
            loss = loss + weighted.alpha * terms["was"]
        if weighted.beta and found.noise is not None:
            predicted = found.noise
            if protocol.diffusion_loss == "guided" and unconditional.noise is not None:
                predicted = guided(predicted, unconditional.noise, protocol.guidance_scale)
            terms["diffusion"] = F.mse_loss(predicted, noise)
            loss = loss + weighted.beta * terms["diffusion"]
        return {**terms, "loss": loss, "miou": 100 * mean_iou(label_maps(maps.detach()), target, len(self.classes))}

    @torch.no_grad()
    def unconditional(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, *, guides: bool = True, with_self: bool = True
    ) -> DiffusionAttention:
        """The unconditional branch of classifier-free guidance, as far as it is used: it has no trained parameter.

        Args:
            noisy: float [B,4,h,w]. timesteps: int64 [B]. guides: whether its noise is. with_self: whether its
                self-attention is, where the protocol makes maps of both branches.

        Returns:
            Without layers where the maps are those of the conditional branch.
        """
        if self.protocol.halves != "conditional":
            return self.backbone.attention(noisy, timesteps, self.empty, with_noise=guides, with_self=with_self)
        noise = None
        if guides:
            noise = self.backbone.predict_noise(noisy, timesteps, self.empty.expand(len(noisy), -1, -1))
        return DiffusionAttention([], [], [], [], noise)

    def training_cross(self, layers: Sequence[LayerAttention], grids: Sequence[Size], size: Size) -> torch.Tensor:
        """What WAS propagates in training: probabilities of the classes, float [B,K,*size] in [0,1]."""
        maps = self._train_maps(layers, grids, size)
        return maps.softmax(1) if self.protocol.ce_input == "logits" else maps

    def _train_maps(self, layers: Sequence[LayerAttention], grids: Sequence[Size], size: Size) -> torch.Tensor:
        """Averaged logits, or averaged probabilities, of the class tokens: float [B,K,*size]."""
        make = class_logits if self.protocol.ce_input == "logits" else class_probabilities
        return average([make(layer, len(self.classes), grid) for layer, grid in zip(layers, grids, strict=True)], size)

    # Test

    @classmethod
    @torch.no_grad()
    def score_maps(
        cls, trials: Sequence[Slime], images: Sequence[torch.Tensor], ids: Sequence[Sequence[str]]
    ) -> list[torch.Tensor]:
        """Score maps of each trial's images, float [B,K,H,W]; see `SegmentationMethod.scores`.

        The patches of all images go through the backbone in calls that fit its memory budget (`backbone.memory_gb`).

        Args:
            trials: which cut their images into the same patches. images: float [B,3,H,W] of each, all of one (H, W).
        """
        config, backbone = trials[0].config, trials[0].backbone
        frame = (int(images[0].shape[-2]), int(images[0].shape[-1]))
        boxes = [(0, frame[0], 0, frame[1])]
        if config.patch_size is not None:
            boxes = patch_boxes(frame, config.patch_size, config.patches_per_side)
        extent = (boxes[0][1] - boxes[0][0], boxes[0][3] - boxes[0][2])
        side = (backbone.config.image_size,) * 2
        pixels = torch.cat(list(images))
        patches = torch.stack([pixels[:, :, y0:y1, x0:x1] for y0, y1, x0, x1 in boxes], dim=1).flatten(0, 1)
        keys = [(name, index) for each in ids for name in each for index in range(len(boxes))]
        owners = [place for place, each in enumerate(ids) for _ in range(len(each) * len(boxes))]
        made = []
        per_call = backbone.images_per_call(side)
        for start in range(0, len(keys), per_call):
            here = slice(start, start + per_call)
            counts = Counter(owners[here])  # in the order of the trials
            own = [trials[place] for place in counts]
            made.append(cls._patch_scores(own, list(counts.values()), resize(patches[here], side), keys[here], extent))
        scores, passed = (torch.cat(tensors).unflatten(0, (-1, len(boxes))) for tensors in zip(*made, strict=True))
        return list(merge_patches(scores, passed, boxes, frame).split([len(each) for each in ids]))

    @classmethod
    def _patch_scores(
        cls, trials: Sequence[Slime], counts: list[int], patches: torch.Tensor, keys: Keys, extent: Size
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the `counts` patches of each trial, float [P,3,S,S] in all: score maps float [P,K,*extent], and which
        classes passed the gate, bool [P,K]."""
        first, protocol, rest = trials[0], trials[0].protocol, iter(keys)
        drawn = [
            trial.latents(own, list(islice(rest, len(own))))
            for trial, own in zip(trials, patches.split(counts), strict=True)
        ]
        latents, noise = (torch.cat(tensors) for tensors in zip(*drawn, strict=True))
        steps = [torch.full((count,), trial.config.t_test) for trial, count in zip(trials, counts, strict=True)]
        timesteps = onto(torch.cat(steps), latents.device)
        noisy = first.backbone.add_noise(latents, noise, timesteps)
        made: list[torch.Tensor] = []

        def propagated(layers: Sequence[LayerAttention], grids: Sequence[Size], size: Size) -> torch.Tensor:
            made.append(cross_maps(layers, grids, len(first.classes), size, protocol))
            return to_propagate(made[0], protocol)

        # The maps of both branches are there only when both passes are over.
        on_the_way = protocol.halves == "conditional" and any(trial.config.maps == "was" for trial in trials)
        texts = prompt_rows([trial.text() for trial in trials], counts)
        found = first.backbone.attention(
            noisy, timesteps, texts, with_noise=False, propagate=propagated if on_the_way else None
        )
        found = joined(found, first.unconditional(noisy, timesteps, guides=False))
        if not made:
            propagated(found.cross, found.cross_grids, found.self_grids[0])
        scores = [
            patch_scores(cross, own.self_, protocol, trial.config.maps == "was", extent, own.propagated)
            for trial, own, cross in zip(trials, split(found, counts), made[0].split(counts), strict=True)
        ]
        return torch.cat([each for each, _ in scores]), torch.cat([passed for _, passed in scores])

    # Random draws, keyed by image

    def timesteps(self, keys: Keys) -> torch.Tensor:
        """Of one training step, int64 [B]."""
        low, high = self.config.t_opt
        draws = [torch.randint(low, high + 1, (1,), generator=generator(self.seed, "timestep", *key)) for key in keys]
        return onto(torch.cat(draws), self.device)

    def noises(self, images: torch.Tensor, keys: Keys, purpose: str) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Noise for the sample of the encoder's posterior, None for its mean, and the diffusion noise to add: float
        [B,4,h,w] for images float [B,3,H,W]."""
        shape = self.backbone.latent_shape((int(images.shape[-2]), int(images.shape[-1])))
        if purpose == "test" and self.protocol.test_noise == "shared":
            keys = [("", 0)] * len(keys)
        draws = [generator(self.seed, f"{purpose}_noise", *key) for key in keys]
        posterior = onto(torch.stack([torch.randn(shape, generator=draw) for draw in draws]), images)
        noise = onto(torch.stack([torch.randn(shape, generator=draw) for draw in draws]), images)
        return posterior if self.protocol.sample_latents else None, noise

    def latents(self, patches: torch.Tensor, keys: Keys) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents of test patches float [P,3,S,S] and the noise to add, float [P,4,h,w] each."""
        images = self._channels(patches)
        posterior, noise = self.noises(images, keys, "test")
        # Test and validation images come again, with the next epoch or the next seed; augmented ones never do.
        return self.backbone.encode(images, posterior, keep=True), noise

    def _channels(self, images: torch.Tensor) -> torch.Tensor:
        return images.flip(1) if self.protocol.channel_order == "bgr" else images

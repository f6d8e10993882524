"""Peekaboo (Burgert et al., arXiv 2211.13224): for each part of each image an alpha map is optimised until the frozen
diffusion model sees, on any plain background, what the part's name says.

It is optimised at test time, on the test image alone: there is nothing to learn before, and no support image.

Shapes: B images, K classes, R = B (K - 1) maps, S side of a map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from slime_bench.backbones.stable_diffusion import StableDiffusionBackbone
from slime_bench.methods.base import SegmentationMethod
from slime_bench.methods.peekaboo.alpha import AlphaMaps
from slime_bench.methods.peekaboo.config import PeekabooConfig, PeekabooDescription
from slime_bench.methods.peekaboo.sds import alpha_gradient, drawn
from slime_bench.places import onto
from slime_bench.seeding import generator


class Peekaboo(PeekabooDescription, SegmentationMethod):
    """The method as a Lightning module.

    Args:
        config: see `PeekabooConfig`. protocol: without switches. backbone: frozen.
        classes: K names, `background` first. seed: of the trial.

    Raises:
        ConfigError: see `PeekabooConfig.prompts`.
    """

    implementation = None  # a subclass computes by itself
    text: Tensor
    empty: Tensor

    def __init__(
        self,
        config: PeekabooConfig,
        protocol: Any,
        backbone: StableDiffusionBackbone,
        classes: Sequence[str],
        seed: int,
        keep_maps: int = 0,
    ) -> None:
        super().__init__(classes, keep_maps)
        self.config, self.backbone, self.seed = config, backbone, seed
        prompts = config.prompts(self.classes)
        self.register_buffer("text", torch.cat([backbone.embed(each) for each in prompts]), persistent=False)
        self.register_buffer("empty", backbone.embed(""), persistent=False)  # [1,T,D]

    def prepare(self, data: Any, device: str) -> None:
        """Nothing but to go to the device."""
        self.to(device)

    def scores(self, images: Tensor, ids: Sequence[str]) -> Tensor:
        """The parts' alpha maps at the images' size, float32 [B,K,H,W] in [0,1]; the background's is `threshold`.

        The authors find one thing at a time. That parts compete by their alpha, and with the background by a threshold,
        is ours.
        """
        size, config = (int(images.shape[-2]), int(images.shape[-1])), self.config
        # Trainers test in inference mode, where nothing can be optimised; and in half precision with autocast, in which
        # sums over pixels would overflow.
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(self.device.type, enabled=False):
            small = resized(images.float().clone(), (config.size, config.size))
            runs = [(image, part) for image in range(len(ids)) for part in range(len(self.classes) - 1)]
            alphas = []
            for start in range(0, len(runs), config.batch):
                chosen = runs[start : start + config.batch]
                alphas.append(self._optimised(small, ids, chosen, start, len(runs)))
        found = resized(torch.cat(alphas).view(len(ids), -1, config.size, config.size), size)
        return F.pad(found, (0, 0, 0, 0, 1, 0), value=config.threshold)

    def _optimised(
        self, images: Tensor, ids: Sequence[str], runs: Sequence[tuple[int, int]], done: int, total: int
    ) -> Tensor:
        """Alpha maps of some (image, part), float32 [R,1,S,S], as they are before the last step's update.

        Args:
            images: float [B,3,S,S]. done, total: maps that the call has finished, and all that it makes.
        """
        config, device = self.config, images.device
        names = [(ids[image], self.classes[1 + part]) for image, part in runs]
        pictures, parts = (onto(torch.tensor(each), device) for each in zip(*runs, strict=True))
        shown, text = images[pictures], self.text[parts]
        latent = self.backbone.latent_shape((self.backbone.config.image_size,) * 2)
        maps = AlphaMaps(config.alpha, shown, [generator(self.seed, "peekaboo alpha", *name) for name in names])
        optimiser = torch.optim.SGD(maps.parameters(), lr=config.lr)
        for step in range(config.steps):
            alpha = maps()
            gradient = torch.full_like(alpha, config.gravity)
            for draw in range(config.draws):
                streams = [generator(self.seed, "peekaboo step", *name, step, draw) for name in names]
                draws = drawn(streams, latent, config.timesteps, device)
                gradient += alpha_gradient(self.backbone, shown, alpha, draws, text, self.empty, config.guidance)
            optimiser.zero_grad()
            alpha.backward(gradient)
            optimiser.step()
            self.progress(done * config.steps + (step + 1) * len(runs), total * config.steps)
        return alpha.detach()

    def learned_state(self) -> dict[str, Tensor]:
        """Nothing is learned."""
        return {}

    def load_learned_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take over."""


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with half-pixel centres, as OpenCV's: float [B,C,h,w] -> [B,C,*size]."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)

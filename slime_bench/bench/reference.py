"""One SLiMe step and one segmentation in the authors' way of computing.

What that is was read off a description of the authors' code with its timings (docs/bench.md): both halves of the
guidance batch go through the U-Net with gradient; attention is the "classic" one everywhere, by stored score matrices;
the maps of named layers are resized head by head; self-attention is averaged as N x N matrices, and WAS is a product of
K N N numbers formed at once; every training step also predicts the picture for the logged IoU; float32, one picture and
one trial after another. The mathematics is that of `reference_slime`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from slime_bench.bench import reference_slime as plain
from slime_bench.errors import ConfigError
from slime_bench.methods.slime.method import Slime
from slime_bench.seeding import generator

TERMS: Final = ("cross_entropy", "was", "diffusion")
"""The terms of Eq. 8."""


@dataclass(frozen=True)
class StepResult:
    """Of one optimisation step.

    Attributes:
        losses: the `TERMS` by name, before the update. gradient: of the embeddings, float [K-1,D].
    """

    losses: dict[str, float]
    gradient: Tensor


class Reference:
    """Steps and segmentations of a method of its own, with the protocol of the authors' code: nothing of the method but
    its settings and tensors is used."""

    def __init__(self, method: Slime) -> None:
        from diffusers.models.attention_processor import AttnProcessor

        self.method = method
        backbone = method.backbone
        self.unet, self.vae = backbone.unet, backbone.vae
        for part in (self.unet, self.vae):  # whatever the bench's own backbone has made of them
            part.set_attn_processor(AttnProcessor())
            part.to(memory_format=torch.contiguous_format)
        self.optimiser = torch.optim.Adam([method.embeddings], method.config.lr)
        self.logged: list[float] = []

    def step(self, batches: Sequence[dict[str, Any]]) -> StepResult:
        """One optimisation step on one batch of one picture: image float [1,3,S,S], label int64 [1,S,S], id, epoch."""
        method, config = self.method, self.method.config
        (batch,) = batches
        if len(batch["id"]) != 1:
            raise ConfigError(
                "the authors' way takes one picture per step", path="shots", found=len(batch["id"]), expected=1
            )
        images, name, epoch = batch["image"], batch["id"][0], int(batch["epoch"])
        low, high = config.t_opt
        t = torch.randint(low, high + 1, (1,), generator=generator(method.seed, "timestep", name, epoch))
        found, noise = self._passed(images, "train_noise", (name, epoch), int(t), grad=True)
        size = (config.train_map_size,) * 2
        target = F.interpolate(batch["label"][:, None].float(), size, mode="nearest")[:, 0].long()
        terms = plain.losses(
            found.cross, found.self_, found.noise, noise, target, len(method.classes),
            guidance=method.protocol.guidance_scale, alpha=config.loss_weights.alpha,
            beta=config.loss_weights.beta,
        )  # fmt: skip
        predicted = self._predict(images, "logged_noise", name, config.train_map_size, grad=True)
        self.logged = _iou(predicted, target[0], len(method.classes))
        self.optimiser.zero_grad()
        terms.total.backward()
        gradient = method.embeddings.grad
        assert gradient is not None  # of the step just made
        result = StepResult({name: float(getattr(terms, name).detach()) for name in TERMS}, gradient.clone())
        self.optimiser.step()
        return result

    @torch.inference_mode()
    def segment(self, images: Tensor, ids: list[str]) -> Tensor:
        """Label maps int64 [B,S,S] of pictures float [B,3,S,S], one after another."""
        size = int(images.shape[-1])
        pairs = zip(images, ids, strict=True)
        return torch.stack([self._predict(image[None], "test_noise", name, size) for image, name in pairs])

    @torch.no_grad()
    def _predict(self, image: Tensor, purpose: str, name: str, size: int, grad: bool = False) -> Tensor:
        """The label map int64 [size,size] of a picture float [1,3,S,S].

        Args:
            grad: build the U-Net's graph all the same, as happens in the authors' training step.
        """
        method, frame = self.method, int(image.shape[-1])
        boxes = _boxes(frame, method.config.patch_size, method.config.patches_per_side)
        maps, matrices = [], []
        for index, (y0, y1, x0, x1) in enumerate(boxes):
            patch = image[:, :, y0:y1, x0:x1]
            if patch.shape[-1] != frame:
                patch = F.interpolate(patch, (frame, frame), mode="bilinear", align_corners=False)
            found, _ = self._passed(patch, purpose, (name, index), method.config.t_test, grad)
            maps.append(plain.cross_maps(found.cross, len(method.classes), found.self_[0].grid, softmax=True)[0])
            matrices.append(plain.self_attention(found.self_)[0])
        gate = method.protocol.token_gate
        return plain.predict(torch.stack(maps), torch.stack(matrices), boxes, frame, size, gate).argmax(0)

    def _passed(
        self, image: Tensor, purpose: str, key: tuple[str, int], t: int, grad: bool
    ) -> tuple[plain.Pass, Tensor]:
        """The guidance batch's pass of one picture float [1,3,S,S], and the noise that was added, float [1,4,h,w]."""
        method = self.method
        image = image.flip(1) if method.protocol.channel_order == "bgr" else image
        draw = generator(method.seed, purpose, *key)
        posterior = self.vae.encode(image * 2 - 1).latent_dist
        sample, noise = (torch.randn(posterior.mean.shape[1:], generator=draw)[None].to(image) for _ in range(2))
        latents = self.vae.config.scaling_factor * (posterior.mean + posterior.std * sample)
        keep = method.backbone.alphas_cumprod[t]
        noisy = keep.sqrt() * latents + (1 - keep).sqrt() * noise
        with torch.set_grad_enabled(grad):
            found = plain.both_halves(
                self.unet, method.backbone.cross_names, method.backbone.self_names, noisy,
                torch.full((1,), t, device=image.device), method.empty, self._text(),
            )  # fmt: skip
        return found, noise

    def _text(self) -> Tensor:
        prompt = self.method.prompt
        return torch.cat([prompt[:, :1], self.method.embeddings[None], prompt[:, len(self.method.classes) :]], 1)


def _boxes(frame: int, patch: int | None, per_side: int) -> list[tuple[int, int, int, int]]:
    """(y0, y1, x0, x1) of the patches, row by row."""
    side = frame if patch is None else patch
    starts = [index * ((frame - side) // max(1, per_side - 1)) for index in range(per_side)]
    return [(y, y + side, x, x + side) for y in starts for x in starts]


def _iou(predicted: Tensor, label: Tensor, classes: int) -> list[float]:
    """Of every class that is there: what the authors' code logs of each step."""
    found = []
    for index in range(classes):
        ours, wanted = predicted == index, label == index
        if wanted.any():
            found.append(float((ours & wanted).sum() / ((ours | wanted).sum() + 1e-7)))
    return found

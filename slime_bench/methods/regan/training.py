"""How ReGAN's two networks are trained, step by step.

Shapes: n labelled pictures, N generated ones, B of a batch, K classes, S side of what the networks see.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from slime_bench.methods.regan.config import AutoShot, FewShot
from slime_bench.methods.regan.networks import FewShotNetwork, UNet
from slime_bench.methods.slime.losses import cross_entropy
from slime_bench.seeding import generator

ANGLE, SHIFT, SCALES = 10.0, 0.5, (0.5, 2.0)  # degrees, share of the side, factors
LEAST_RATE: Final = 1e-6


class Step(NamedTuple):
    """What a step has lowered, before it, and its learning rate."""

    loss: Tensor
    rate: float


class Pairs(NamedTuple):
    """Generated pictures uint8 [N,3,S,S] and the few-shot network's logits for them, float16 [N,K,S,S]."""

    pictures: Tensor
    logits: Tensor

    def batch(self, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Pictures float32 [B,3,S,S] in [0,1] and softmax(logits), float32 [B,K,S,S], of some rows int64 [B]."""
        pictures, logits = self.pictures[rows].to(device), self.logits[rows].to(device)
        return pictures.float() / 255, logits.float().softmax(1)


def few_shot_steps(
    network: FewShotNetwork, maps: Sequence[Sequence[Tensor]], labels: Tensor, config: FewShot
) -> Iterator[Step]:
    """Train on the labelled pictures, one a step and in their order, until the passes or steps are over. The loss is
    the mean of -ln softmax(logits)_y over the labelled pixels.

    Args:
        maps: of each of n pictures, see `Generated`. labels: int64 [n,S,S], 255 = ignore.
    """
    optimiser = torch.optim.Adam(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    steps, ones = config.epochs * len(maps), torch.ones(256, device=labels.device)
    for step in range(min(steps, config.max_steps or steps)):
        epoch, place = divmod(step, len(maps))
        # Passes 0 to `every` have the first rate: it is multiplied after a pass whose number `every` divides.
        rate = config.lr * config.decay ** (max(0, epoch - 1) // config.every)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        loss = cross_entropy(network(maps[place]), labels[place : place + 1], ones)
        loss.backward()
        optimiser.step()
        yield Step(loss.detach(), rate)


def auto_shot_steps(unet: UNet, pairs: Pairs, config: AutoShot, seed: int) -> Iterator[Step]:
    """Train on generated pictures, in random order and warped at random; after each pass the loss on those that are
    kept back decides on the rate."""
    device = next(unet.parameters()).device
    optimiser = torch.optim.Adam(unet.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, patience=config.patience, min_lr=LEAST_RATE)
    count = len(pairs.pictures)
    rows = torch.randperm(count, generator=generator(seed, "regan validation"))
    kept, learned = rows.tensor_split([max(1, int(count * config.validation))])
    for epoch in range(config.epochs):
        unet.train()
        stream = generator(seed, "regan order", epoch)
        for some in learned[torch.randperm(len(learned), generator=stream)].split(config.batch):
            draws = torch.rand(len(some), 5, generator=stream).to(device)
            pictures, targets, inside = warped(*pairs.batch(some, device), draws)
            optimiser.zero_grad()
            loss = soft_cross_entropy(unet(pictures), targets, inside)
            loss.backward()
            torch.nn.utils.clip_grad_value_(unet.parameters(), config.clip)
            optimiser.step()
            yield Step(loss.detach(), optimiser.param_groups[0]["lr"])
        plateau.step(validation_loss(unet, pairs, kept, config.batch))


@torch.no_grad()
def validation_loss(unet: UNet, pairs: Pairs, rows: Tensor, batch: int) -> float:
    """Mean loss of some pairs, unwarped."""
    unet.eval()
    total = 0.0
    for some in rows.split(batch):
        pictures, targets = pairs.batch(some, next(unet.parameters()).device)
        total += len(some) * float(soft_cross_entropy(unet(pictures), targets, torch.ones_like(targets[:, 0])))
    return total / len(rows)


def soft_cross_entropy(logits: Tensor, targets: Tensor, inside: Tensor) -> Tensor:
    """- sum over k of p_k ln softmax(logits)_k, its mean over the pixels inside, averaged over the pictures.

    Args:
        logits: float32 [B,K,S,S]. targets: p, float32 [B,K,S,S]. inside: float32 [B,S,S] of 0 and 1.
    """
    each = -(targets * logits.log_softmax(1)).sum(1) * inside
    return (each.sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)).mean()


def warped(pictures: Tensor, targets: Tensor, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures and targets float32 [B,C,S,S], rotated by up to 10 degrees, scaled by 0.5 to 2, shifted by up to half of
    the side along each axis, and mirrored in half of the cases; and where they are inside, float32 [B,S,S].

    Args:
        draws: uniform in [0,1), float32 [B,5].
    """
    spread = 2 * draws - 1
    angle, scale = spread[:, 0] * math.radians(ANGLE), SCALES[0] + draws[:, 1] * (SCALES[1] - SCALES[0])
    cos, sin = angle.cos() / scale, angle.sin() / scale
    turn = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)  # output -> input, [B,2,2]
    shift = -turn @ (2 * SHIFT * spread[:, 2:4])[..., None]  # a side is 2 long
    mirror = torch.stack([1 - 2 * (draws[:, 4] < 0.5).float(), torch.ones_like(scale)], 1)[:, None]  # [B,1,2]
    both = torch.cat([pictures, targets], 1)
    grid = F.affine_grid(torch.cat([turn * mirror, shift], 2), list(both.shape), align_corners=False)
    found = F.grid_sample(both, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    inside = (grid.abs().amax(-1) <= 1).float()
    return found[:, : pictures.shape[1]], found[:, pictures.shape[1] :], inside

"""What is measured on: one backbone, one size, one number of classes, and pictures that differ from round to round."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import Field
from torch.nn import functional as F

from slime_bench.config.compose import plan
from slime_bench.config.schema import Positive
from slime_bench.data.augment import augment
from slime_bench.data.config import Augmentation
from slime_bench.methods.slime.method import Slime
from slime_bench.seeding import generator

MINI: Final = "mini"
"""The width that is no thinner Stable Diffusion but the bundled, trained `mini_sd`."""

_CELLS: Final = 16
"""Cells of a drawn picture along a side, each of one class."""


@dataclass(frozen=True)
class Case:
    """One setting of the bench; one from a user's words is made by `slime_bench.config.read.read`, which checks it.

    Attributes:
        width: of `WIDTHS`, or `mini`. size: side of the pictures in pixels. classes: K, background included.
        weights: folder of `build_width`, or `mini_sd`. device: `cpu` or `cuda`.
        patches: per side at test time; 2 are 2 x 2 of 400/512 of the side, as the authors' default.
        images: test pictures of one inference call. shots: support pictures of one step. trials: of a batched step.
    """

    width: str
    size: Annotated[int, Field(ge=64, multiple_of=64)]  # so that every level of the U-Net halves evenly
    classes: Annotated[int, Field(ge=2, le=77)]  # every class owns one of the 77 tokens
    weights: str
    device: str = "cpu"
    patches: Literal[1, 2] = 1
    images: Positive = 1
    shots: Positive = 1
    trials: Positive = 1

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes."""
        return ("background", *(f"part{index}" for index in range(1, self.classes)))

    def plain(self) -> dict[str, Any]:
        """As JSON values; the temporary place of the weights is left out."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "weights"}


def make_method(case: Case, precision: str) -> Slime:
    """SLiMe with the authors' protocol on the case's backbone, loaded through the normal path, on the case's device.

    Args:
        precision: `fp32`, `bf16` or `fp16`, of the backbone.
    """
    mini = case.width == MINI
    settings = [f"backbone={'mini_sd' if mini else 'sd21_base'}", f"backbone.weights={case.weights}"]
    settings += [f"backbone.image_size={case.size}", f"trainer.precision={precision}", "protocol=slime_code"]
    settings += ["method=slime", "method.t_opt=[5,100]", "method.t_test=100"]
    # The authors' 64 at 512 pixels: the latent grid.
    settings += [f"method.train_map_size={case.size // (4 if mini else 8)}"]
    if case.patches > 1:
        # Where patches do not end on a cell of the latent grid, the authors' code stops.
        patch = case.size * 400 // 512 // 8 * 8
        settings += [f"method.patch_size={patch}", f"method.patches_per_side={case.patches}"]
    cfg = plan(settings).trials[0]
    # With random weights hardly a class passes the gate; what does not pass costs the authors' way nothing to merge.
    protocol = replace(cfg.build("protocol"), token_gate=0.0)
    method = Slime(cfg.method, protocol, cfg.build("backbone"), case.names, seed=0)
    for parameter in method.parameters():  # read from the mapped file now, or they would count as the step's
        parameter.data = parameter.data.clone()
    return method.to(case.device)


def another_trial(method: Slime, seed: int) -> Slime:
    """A trial with another seed on the backbone of `method`."""
    other = Slime(method.config, method.protocol, method.backbone, method.classes, seed)
    return other.to(method.device)


class Pictures:
    """Support and test pictures that are drawn from their round, so that no cache can know them.

    The pictures themselves are drawn beforehand; what a real loader does for each step, the augmentation, is not.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.draw = cache(partial(_picture, case))

    def prepare(self, turns: int) -> None:
        """Draw the pictures of so many rounds now, and not while somebody is timed."""
        for index in range(turns * self.case.trials * self.case.shots):
            self.draw("support", index)
        for index in range(turns * self.case.images):
            self.draw("test", index)

    def support(self, turn: int, trial: int = 0) -> dict[str, Any]:
        """The augmented batch of one training step of one trial, on the case's device."""
        made, names = [], []
        for shot in range(self.case.shots):
            index = (turn * self.case.trials + trial) * self.case.shots + shot
            image, label = self.draw("support", index)
            made.append(augment(image, label, Augmentation(), generator(trial, "bench_augment", index)))
            names.append(f"support{index}")
        images, labels = zip(*made, strict=True)
        return {
            "image": torch.stack(images).to(self.case.device),
            "label": torch.stack(labels).to(self.case.device),
            "id": names,
            "epoch": torch.full((len(names),), turn),
        }

    def test(self, turn: int) -> tuple[torch.Tensor, list[str]]:
        """Pictures float [B,3,S,S] of one inference call on the case's device, and their names."""
        indices = [turn * self.case.images + each for each in range(self.case.images)]
        images = torch.stack([self.draw("test", index)[0] for index in indices])
        return images.to(self.case.device), [f"test{index}" for index in indices]


def _picture(case: Case, kind: str, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture float [3,S,S] in [0,1] and its label map int64 [S,S], in which every class is."""
    draw = generator(0, f"bench_{kind}", index)
    # As many cells of each class, in any order; each class has a colour of its own.
    order = torch.randperm(_CELLS * _CELLS, generator=draw) % case.classes
    coarse = order.view(1, 1, _CELLS, _CELLS).float()
    label = F.interpolate(coarse, (case.size, case.size), mode="nearest")[0, 0].long()
    colours = torch.rand(case.classes, 3, generator=draw)
    noise = torch.rand(1, 3, case.size // 8, case.size // 8, generator=draw)
    noise = F.interpolate(noise, (case.size, case.size), mode="bilinear")[0]
    return 0.7 * colours[label].permute(2, 0, 1) + 0.3 * noise, label

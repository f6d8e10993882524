"""A folder of golden numbers of SegDDPM's authors: what is in it, read from its arrays, descriptors and model.

The layout is that of shared/golden/segddpm (its README says how each number was made). Nothing here knows a seed, a
size, a block, a number of classes or networks.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from slime_bench.backbones.ddpm import Ddpm
from slime_bench.methods.segddpm.classifier import Networks
from slime_bench.methods.segddpm.hypercolumns import Hypercolumns, Key, Shape
from tests.parity.golden_folder import GoldenFolder, golden_folder

# The authors' names in a network -> ours; their dropped `num_batches_tracked` decides nothing.
_NAMES = {
    "0.weight": "0.weight", "0.bias": "0.bias", "2.weight": "0.gain", "2.bias": "0.shift",
    "2.running_mean": "0.mean", "2.running_var": "0.variance", "3.weight": "1.weight", "3.bias": "1.bias",
    "5.weight": "1.gain", "5.bias": "1.shift", "5.running_mean": "1.mean", "5.running_var": "1.variance",
    "6.weight": "2.weight", "6.bias": "2.bias",
}  # fmt: skip


class Golden(GoldenFolder):
    """A golden folder."""

    @property
    def side(self) -> int:
        return int(self.facts("inputs")["image_size"])

    @property
    def classes(self) -> int:
        return int(self.facts("inputs")["number_class"])

    @property
    def steps(self) -> list[int]:
        return list(self.facts("inputs")["steps"])

    @property
    def blocks(self) -> list[int]:
        return list(self.facts("inputs")["blocks"])

    @property
    def members(self) -> int:
        """Networks of the ensemble."""
        return int(self.facts("inputs")["model_num"])

    def pictures(self, kind: str) -> list[str]:
        """Names of the images of a kind, `train` or `test`, such as `train_0`."""
        names = [re.fullmatch(rf"({kind}_\d+)_image", name) for name in self.arrays("inputs")]
        return [each[1] for each in names if each]

    def image(self, name: str) -> Tensor:
        """float32 [1,3,H,W] in [0,1]."""
        return self.tensor("inputs", f"{name}_image").permute(2, 0, 1)[None].float() / 255

    def label(self, name: str) -> Tensor:
        """int64 [1,H,W]."""
        return self.tensor("inputs", f"{name}_label")[None].long()

    @cached_property
    def config(self) -> Ddpm.Config:
        """The model as the bench's backbone is told of it."""
        said = json.loads((self.folder / "unet" / "config.json").read_text())["create_model_and_diffusion"]
        sides = [int(each) for each in said["attention_resolutions"].split(",")]
        multipliers = [int(each) for each in said["channel_mult"].split(",")]
        return Ddpm.Config(
            name="golden", weights=str(self.folder / "unet" / "model.safetensors"), image_size=said["image_size"],
            width=said["num_channels"], multipliers=multipliers, blocks=said["num_res_blocks"],
            attention_levels=[n for n in range(len(multipliers)) if said["image_size"] >> n in sides],
            head_width=said["num_head_channels"],
        )  # fmt: skip

    @property
    def layers(self) -> list[str]:
        """Module names of the authors' output blocks, as the golden README says where to hook."""
        config, found = self.config, []
        for block in self.blocks:
            level, place = divmod(block, config.blocks + 1)
            deepest = len(config.multipliers) - 1
            if place == config.blocks and level < deepest:
                found.append(f"up_blocks.{level}.upsamplers.0")
            else:
                kind = "attentions" if deepest - level in config.attention_levels else "resnets"
                found.append(f"up_blocks.{level}.{kind}.{place}")
        return found

    def network(self, file: str, prefix: str) -> Networks:
        """One of the authors' networks of an .npz, as a stack of one; float32."""
        return _stack({theirs: self.arrays(file)[f"{prefix}.layers.{theirs}"] for theirs in _NAMES})

    def partial(self, file: str, prefix: str) -> Networks:
        """What of a network stands under `prefix`, as far as it stands there."""
        here = {theirs: f"{prefix}.layers.{theirs}" for theirs in _NAMES}
        found = self.arrays(file)
        return _stack({theirs: found[name] for theirs, name in here.items() if name in found})

    @cached_property
    def ensemble(self) -> list[Networks]:
        """The authors' trained networks, a stack of one each."""
        stored = load_file(self.folder / "ensemble.safetensors")
        return [
            _stack({theirs: stored[f"model_{member}.layers.{theirs}"] for theirs in _NAMES})
            for member in range(self.members)
        ]

    def draws_before_training(self) -> int:
        """Numbers that the authors' process has drawn when it comes to the first network: guided-diffusion's U-Net
        starts every weight and bias of its convolutions and linear layers with one uniform number each."""
        stored = load_file(self.folder / "unet" / "model.safetensors")
        weights = [name for name, value in stored.items() if value.ndim > 1]
        biases = [name.removesuffix("weight") + "bias" for name in weights]
        return sum(stored[name].numel() for name in [*weights, *biases] if name in stored)


def _stack(found: dict[str, Any]) -> Networks:
    return {_NAMES[theirs]: torch.as_tensor(value).float()[None] for theirs, value in found.items()}


def hypercolumns(golden: Golden, backbone: Any, images: list[str]) -> Hypercolumns:
    """Features of some images through the bench's backbone."""
    noise, shapes = golden.tensor("inputs", "shared_noise"), dict[Key, Shape]()
    for t in golden.steps:
        every = backbone.feature_shapes((golden.side, golden.side), golden.layers)
        shapes |= {(t, name): every[name] for name in golden.layers}
    columns = Hypercolumns(shapes, len(images), (golden.side, golden.side), torch.device("cpu"))
    for place, name in enumerate(images):
        for t in golden.steps:
            found = backbone.features(golden.image(name), torch.tensor([t]), noise, golden.layers)
            for layer, maps in found.items():
                columns.put(place, (t, layer), maps)
    return columns


def open_golden(request: pytest.FixtureRequest) -> Golden:
    """See `golden_folder`."""
    return Golden(golden_folder(request, "segddpm"))

"""A folder of golden numbers of ReGAN's authors: what is in it, read from its arrays, descriptors and weights.

The layout is that of shared/golden/regan (its README says how each number was made). Nothing here knows a seed, a size,
a layer or a number of classes or steps.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from slime_bench.backbones.gan import KIND, Architecture, StyleGan2
from slime_bench.backbones.stylegan2 import Generated, StyleGan2Backbone
from slime_bench.methods.regan.config import FewShot
from slime_bench.methods.regan.networks import FewShotNetwork
from tests.parity.golden_folder import GoldenFolder, golden_folder


class Golden(GoldenFolder):
    """A golden folder."""

    @property
    def made(self) -> dict[str, Any]:
        """What `features.json` says of the model."""
        return self.facts("features")

    @property
    def images(self) -> list[int]:
        """Numbers of the generated images."""
        return [
            int(name.removeprefix("image_")) for name in self.arrays("features") if re.fullmatch(r"image_\d+", name)
        ]

    def backbone(self, folder: Path) -> StyleGan2Backbone:
        """The authors' generator as the bench reads it, from a folder that is written here."""
        channels = {int(side): int(count) for side, count in self.made["channels"].items()}
        sizes = Architecture(self.made["size"], self.made["style_dim"], self.made["n_mlp"], channels)
        folder.mkdir()
        save_file(load_file(self.folder / "generator.safetensors"), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": KIND, **dataclasses.asdict(sizes)}))
        return StyleGan2Backbone(StyleGan2.Config(weights=str(folder)))

    def noises(self, image: int) -> list[Tensor]:
        """The noise of an image, float32 [1,1,h,h] for each styled convolution."""
        count = sum(name.startswith(f"noise_{image}_") for name in self.arrays("features"))
        return [self.tensor("features", f"noise_{image}_{place}").float() for place in range(count)]

    def generated(self, backbone: StyleGan2Backbone, image: int) -> Generated:
        """An image and its maps through the bench's generator."""
        latent = self.tensor("features", "z")[image : image + 1]
        return backbone.generate(backbone.styles(latent), self.noises(image))

    def network(self) -> FewShotNetwork:
        """The bench's few-shot network with the authors' numbers at the start."""
        stored = load_file(self.folder / "segmenter_init.safetensors")
        network = FewShotNetwork(self.widths, self.made["num_class"], self.made["stack_size"])
        network.load_state_dict({ours: stored[theirs].float() for ours, theirs in self.names(network).items()})
        return network

    @property
    def widths(self) -> list[int]:
        """Channels of each map of the stack."""
        places = [int(name.removeprefix("convs.")) for name in self.made["layers"]]
        return [self.made["channels"][str(8 * 2 ** (place // 2))] for place in places]

    @staticmethod
    def names(network: FewShotNetwork) -> dict[str, str]:
        """Our name of each parameter -> the authors': `conv1`, `conv2`, .. in running order."""
        layers = dict.fromkeys(name.rpartition(".")[0] for name, _ in network.named_parameters())
        return {
            f"{ours}.{kind}": f"conv{place}.{kind}"
            for place, ours in enumerate(layers, start=1)
            for kind in ("weight", "bias")
        }

    def training(self) -> FewShot:
        """The authors' settings for as many passes as were recorded."""
        arrays = self.arrays("segmenter")
        return FewShot(epochs=len(arrays["losses"]) // len(arrays["labels"]))


def rows(value: Tensor, count: int) -> Tensor:
    """The first rows of a weight or bias, flat, as they were recorded."""
    return value.detach().reshape(len(value), -1)[:count]


def open_golden(request: pytest.FixtureRequest) -> Golden:
    """See `golden_folder`."""
    return Golden(golden_folder(request, "regan"))

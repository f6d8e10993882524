"""A folder of golden numbers of Peekaboo's authors: what is in it, read from its arrays, descriptors and models.

The layout is that of shared/golden/peekaboo (its README says how each number was made). Nothing here knows a seed, a
size, a timestep or a rate.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from slime_bench.backbones.stable_diffusion import StableDiffusionBackbone
from slime_bench.data.manifest import file_sha256
from slime_bench.methods.peekaboo.alpha import FourierAlpha, fourier_features
from slime_bench.methods.peekaboo.sds import Draws
from tests.parity.golden_folder import SHARED, GoldenFolder, golden_folder
from tests.parity.models import _save_text_encoder

LINEAR, NORM = (0, 3, 6, 9), (2, 5, 8)
"""Places of the layers in the authors' network."""


class Golden(GoldenFolder):
    """A golden folder."""

    def tensor(self, file: str, name: str) -> Tensor:
        """The array as a tensor, float32 where it is of another precision."""
        found = super().tensor(file, name)
        return found.float() if found.is_floating_point() else found

    @cached_property
    def image(self) -> Tensor:
        """float32 [1,3,S,S]."""
        return self.tensor("inputs", "image").permute(2, 0, 1)[None]

    @property
    def empty(self) -> Tensor:
        """The text of the unconditional branch, float32 [1,T,D]."""
        return self.tensor("inputs", "embedding")[:1]

    @property
    def text(self) -> Tensor:
        """float32 [1,T,D]."""
        return self.tensor("inputs", "embedding")[1:]

    def start(self, maps: FourierAlpha) -> FourierAlpha:
        """The network of one map with the authors' start."""
        stored = {name: value.float() for name, value in self.network.items()}
        frequencies = stored["feature_extractor.freqs"][None]
        maps.features = fourier_features(frequencies, maps.side)
        with torch.no_grad():
            for name, value in parameters(maps).items():
                value.copy_(stored[name].reshape(value.shape))
        return maps

    @cached_property
    def network(self) -> dict[str, Tensor]:
        """The authors' network on Fourier features at its start."""
        return dict(load_file(self.folder / "fourier_bilateral_init.safetensors"))

    @property
    def single_steps(self) -> list[str]:
        """Prefixes of single gradients."""
        return sorted(name.removesuffix("_t") for name in self.arrays("sds") if name.endswith("_t"))

    @property
    def runs(self) -> list[str]:
        """Prefixes of whole optimisations."""
        return sorted(name.removesuffix("_t") for name in self.arrays("loop") if name.endswith("_t"))

    def updates(self, run: str) -> int:
        """How many updates it made."""
        found = [re.match(rf"{run}_it(\d+)_", name) for name in self.arrays("loop")]
        return 1 + max(int(each[1]) for each in found if each)

    def draws(self, file: str, prefix: str, call: int = 0) -> Draws:
        """The recorded random numbers of one gradient."""
        noise, posterior = (self.tensor(file, f"{prefix}_{name}")[call : call + 1] for name in ("noise", "eps"))
        colours = torch.zeros(1, 3)  # of a single gradient the composite itself is stored
        if f"{prefix}_background" in self.arrays(file):
            colours = self.tensor(file, f"{prefix}_background")[call : call + 1]
        steps = self.tensor(file, f"{prefix}_t")[call : call + 1]
        return Draws(colours.view(1, 3, 1, 1), steps, posterior, noise)

    def rate(self, run: str, name: str, start: Tensor) -> float:
        """The learning rate that leads from `start` over the first gradient of the parameter `name` to what follows."""
        gradient, after = (self.tensor("loop", f"{run}_it0_{each}_{name}") for each in ("grad", "after"))
        moved = (start.reshape(after.shape) - after).double()
        return float(f"{(moved * gradient).sum() / gradient.double().square().sum():.2g}")

    def backbone(self, folder: Path) -> StableDiffusionBackbone:
        """The models, put together in the empty `folder` as a Stable Diffusion folder."""
        facts = self.facts("inputs")
        for part in ("unet", "vae"):
            own = self.folder.parent / facts["weights"][part]
            source = own if own.is_dir() else SHARED / facts["weights"][part]
            (file,) = source.glob("*.safetensors")
            assert file_sha256(file) == facts["weights"][f"{part}_sha256"], f"{file} is another model"
            (folder / part).symlink_to(source)
        (folder / "scheduler").mkdir()
        schedule = {"_class_name": "DDIMScheduler", "prediction_type": "epsilon", **facts["scheduler"]}
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
        _save_text_encoder(folder, self.text.shape)
        side = self.draws("sds", self.single_steps[0]).noise.shape[-1]
        config = StableDiffusionBackbone.Config(
            weights=str(folder), image_size=8 * side, cross_layers=["mid_block.attentions.0"]
        )
        return StableDiffusionBackbone(config)


def parameters(maps: FourierAlpha) -> dict[str, Tensor]:
    """The parameters of a network by the authors' names."""
    weights, biases = (zip(LINEAR, each, strict=True) for each in (maps.weights, maps.biases))
    scales, shifts = (zip(NORM, each, strict=True) for each in (maps.scales, maps.shifts))
    return {f"model.{place}.weight": value for place, value in [*weights, *scales]} | {
        f"model.{place}.bias": value for place, value in [*biases, *shifts]
    }


def open_golden(request: pytest.FixtureRequest) -> Golden:
    """See `golden_folder`."""
    return Golden(golden_folder(request, "peekaboo"))

"""UPerNets that are to be trained: K classes, images in [0,1] to logits at the images' size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slime_bench.backbones.load import load_network
from slime_bench.backbones.upernet import UperNet
from slime_bench.imagenet import IMAGENET
from slime_bench.seeding import derive_seed

STAGES = ["stage1", "stage2", "stage3", "stage4"]


class UperNetStart(UperNet, nn.Module):
    """Where trainings start from: it makes networks, and has no weights itself.

    Raises:
        BackboneError: the encoder is not there, is no ResNet, or lacks tensors.
    """

    implementation = None  # a subclass computes by itself

    def __init__(self, config: UperNet.Config) -> None:
        from transformers import ResNetBackbone

        super().__init__()
        self.describe(config)
        self.config, self.folder = config, self.folder_of(config)
        self._encoder = None
        if config.pretrained:  # a classifier on top of it is left out
            self._encoder = load_network(ResNetBackbone, self.folder, torch.float32, out_features=STAGES).state_dict()

    def network(self, classes: int, seed: int) -> Segmenter:
        """A new network for K = `classes`; what is not pretrained is drawn with the seed, as the library does it."""
        from transformers import ResNetConfig, UperNetConfig, UperNetForSemanticSegmentation

        encoder = ResNetConfig.from_pretrained(self.folder, local_files_only=True, out_features=STAGES)
        settings = UperNetConfig(
            backbone_config=encoder, hidden_size=self.config.head_width, pool_scales=self.config.pools,
            use_auxiliary_head=False, num_labels=classes,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):  # the library draws from the global generator of the CPU
            torch.default_generator.manual_seed(derive_seed(seed, "supervised start"))
            network = UperNetForSemanticSegmentation(settings)
        if self._encoder is not None:
            network.backbone.load_state_dict(self._encoder)
        return Segmenter(network, self.config.image_size)


class Segmenter(nn.Module):
    """A segmentation network on images of any size.

    Args:
        network: of `transformers`. image_size: side S of the images that it sees.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: Any, image_size: int) -> None:
        super().__init__()
        self.network, self.image_size = network, image_size
        for name, values in zip(("mean", "deviation"), IMAGENET, strict=True):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 [B,K,H,W] of images float32 [B,3,H,W] RGB in [0,1], resized to S x S for the network."""
        size = (int(images.shape[-2]), int(images.shape[-1]))
        seen = _resized(images, (self.image_size, self.image_size), antialias=True)
        logits = self.network(pixel_values=(seen - self.mean) / self.deviation).logits
        return _resized(logits.float(), size)


def _resized(maps: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor:
    """Bilinear resize of float [B,C,h,w] where the size differs."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", antialias=antialias)

"""SegDDPM, Label-efficient semantic segmentation with diffusion models (Baranchuk et al., ICLR 2022, arXiv 2112.03126):
an ensemble of small networks labels each pixel by what a frozen diffusion model's U-Net holds there.

The U-Net is the authors' (`slime_bench.backbones.ddpm`), or a Stable Diffusion's, for subjects that have no such model.

Shapes: B images, K classes, D features of a pixel, k support images, S side of the grid.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from slime_bench.backbones.features import linear_alphas_cumprod, module_name
from slime_bench.errors import ConfigError, DataError
from slime_bench.methods.base import SegmentationMethod, foreign_state
from slime_bench.methods.features import support_of
from slime_bench.methods.segddpm import classifier
from slime_bench.methods.segddpm.classifier import IGNORE, Networks
from slime_bench.methods.segddpm.config import SegDdpmConfig, SegDdpmDescription
from slime_bench.methods.segddpm.hypercolumns import Hypercolumns, Key, Shape, bytes_needed
from slime_bench.seeding import generator

_log = logging.getLogger(__name__)
Size = tuple[int, int]


def matched(timesteps: Sequence[int], alphas_cumprod: Tensor) -> list[int]:
    """The timesteps of another schedule that are as noisy as these of the linear one: argmin_s |abar'_s - abar_t|.

    Args:
        alphas_cumprod: abar', float [T].
    """
    wanted = linear_alphas_cumprod()[list(timesteps)]
    return [int((alphas_cumprod.cpu().double() - each).abs().argmin()) for each in wanted]


class SegDdpm(SegDdpmDescription, SegmentationMethod):
    """The method as a Lightning module.

    Args:
        config: see `SegDdpmConfig`. protocol: without switches.
        backbone: frozen, a `slime_bench.backbones.base.DiffusionModel`.
        classes: K names, `background` first. seed: of the trial.

    Raises:
        BackboneError: a layer that the backbone lacks. ConfigError: timesteps that fall together when matched.
    """

    implementation = None  # a subclass computes by itself

    def __init__(
        self, config: SegDdpmConfig, protocol: Any, backbone: Any, classes: Sequence[str], seed: int, keep_maps: int = 0
    ) -> None:
        super().__init__(classes, keep_maps)
        self.config, self.backbone, self.seed = config, backbone, seed
        self.layers = [module_name(backbone.unet, name, "method.layers") for name in config.layers]
        self.timesteps = list(config.timesteps)
        if config.noise_level == "matched":
            self.timesteps = matched(config.timesteps, backbone.alphas_cumprod)
        if len(set(self.timesteps)) < len(self.timesteps):
            raise ConfigError(
                "two timesteps are one on the backbone's schedule", path="method.timesteps", found=config.timesteps,
                expected=f"different ones, not {self.timesteps}", remedy="name timesteps that lie further apart",
            )  # fmt: skip
        self._networks: Networks = {}
        self._noise = torch.empty(0)

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Self:
        """What was learned goes where the module goes."""
        self._networks = {name: fn(value) for name, value in self._networks.items()}
        self._noise = fn(self._noise)
        return super()._apply(fn, recurse)

    # Fit

    @torch.no_grad()
    def prepare(self, data: Any, device: str) -> None:
        """Train the ensemble on the support images.

        Raises:
            DataError: a support without any part, or with fewer labelled pixels than a batch.
            ConfigError: activations that do not fit `memory_gb`.
        """
        self.to(device)
        self.fit(*support_of(data, self.device))

    def fit(self, images: Tensor, labels: Tensor, ids: Sequence[str]) -> None:
        """Train on images float32 [k,3,H,W] in [0,1] with label maps int64 [k,H,W]; see `prepare`."""
        size = (int(images.shape[-2]), int(images.shape[-1]))
        grid = self._grid(size)
        small = classifier.training_labels(nearest(labels[:, None], grid)[:, 0], len(self.classes)).flatten()
        pixels = (small != IGNORE).nonzero().flatten()
        known = small[pixels]
        self._check_labels(known, ids)
        columns = self._columns(images, grid)
        with torch.enable_grad():
            self._networks = self._trained(columns, pixels, known)

    def _check_labels(self, known: Tensor, ids: Sequence[str]) -> None:
        few, parts = len(known) < classifier.BATCH, int((known > 0).sum())
        if few or not parts:
            raise DataError(
                f"the support images {'have too few labelled pixels' if few else 'show none of the parts'}",
                path=", ".join(ids[:5]), found=f"{len(known)} labelled pixels, {parts} of them of parts",
                expected=f"at least {classifier.BATCH}, and {classifier.LEAST_PIXELS} in an image of one of "
                f"{', '.join(self.classes[1:])}",
                remedy="choose other support images: data.support_ids=[...], or a finer grid: method.size=null",
            )  # fmt: skip

    def _columns(self, images: Tensor, grid: Size) -> Hypercolumns:
        """The activations of the support images at all timesteps."""
        size = (int(images.shape[-2]), int(images.shape[-1]))
        shapes = self._shapes(size)
        needed, allowed = bytes_needed(shapes, len(images)) / 1e9, self.config.memory_gb
        _log.info("activations of %d support images: %.2f GB", len(images), needed)
        if needed > allowed:
            raise ConfigError(
                "the activations of the support images do not fit the memory that they may take",
                path="method.memory_gb", found=f"{allowed} GB", expected=f"{needed:.2f} GB for {len(images)} images",
                remedy=f"method.memory_gb={needed + 0.1:.1f} where the machine has so much, or fewer shots or layers",
            )  # fmt: skip
        # One draw for all images and timesteps (the authors' share_noise).
        noise = torch.randn(self.backbone.latent_shape(size), generator=generator(self.seed, "segddpm noise"))
        self._noise = noise.to(self.device)
        columns = Hypercolumns(shapes, len(images), grid, self.device)
        for place in range(len(images)):
            for key, maps in self._maps(images[place : place + 1]).items():
                columns.put(place, key, maps)
        return columns

    def _trained(self, columns: Hypercolumns, pixels: Tensor, known: Tensor) -> Networks:
        """The ensemble, trained on the `pixels` int64 [N] with labels `known` int64 [N]."""
        sizes, count = classifier.widths(columns.width, len(self.classes)), self.config.networks

        def trained(streams: Sequence[torch.Generator]) -> Networks:
            start = classifier.drawn(sizes, streams)
            orders = [classifier.order(len(known), stream) for stream in streams]
            return classifier.fit(start, lambda rows: columns(pixels[rows]), known, orders).networks

        if self.config.training == "joint":
            return trained([generator(self.seed, "segddpm network", index) for index in range(count)])
        stream = generator(self.seed, "segddpm networks")
        return classifier.together([trained([stream]) for _ in range(count)])

    # Features

    def _grid(self, size: Size) -> Size:
        return size if self.config.size is None else (self.config.size, self.config.size)

    def _shapes(self, size: Size) -> dict[Key, Shape]:
        """Of the maps of one image of `size` = (H, W), timestep by timestep, in each layer by layer."""
        shapes = self.backbone.feature_shapes(size, self.layers)
        return {(t, name): shapes[name] for t in self.timesteps for name in self.layers}

    def _maps(self, images: Tensor) -> dict[Key, Tensor]:
        """Outputs of the layers at all timesteps, float32 [B,C,h,w], in the order of `_shapes`."""
        draws, found = self._noise.expand(len(images), -1, -1, -1), dict[Key, Tensor]()
        for t in self.timesteps:
            steps = torch.full((len(images),), t, device=images.device)
            maps = self.backbone.features(images, steps, draws, self.layers)
            found |= {(t, name): maps[name] for name in self.layers}
        return found

    # Test

    @torch.no_grad()
    def scores(self, images: Tensor, ids: Sequence[str]) -> Tensor:
        """Share of the networks that vote for each class, float32 [B,K,H,W] in [0,1]; the argmax, the first of equal
        ones, is the authors' majority. Made on the grid, resized to the images by the nearest pixel.

        Raises:
            ConfigError: images of another size than those of the fit.
        """
        size = (int(images.shape[-2]), int(images.shape[-1]))
        grid, shape = self._grid(size), self.backbone.latent_shape(size)
        if tuple(self._noise.shape) != tuple(shape):
            raise ConfigError(
                "the images are of another size than those of the fit", path="data.image_size",
                found=f"noise of {list(self._noise.shape)}",
                expected=f"{list(shape)}, for {size[0]} x {size[1]} pixels",
                remedy="segment images of the size that the networks were trained at",
            )  # fmt: skip
        maps = self._maps(images)
        found = []
        with torch.autocast(self.device.type, enabled=False):  # logits of half precision would tie
            for place in range(len(images)):
                hidden = classifier.first_of_maps(self._networks, [each[place] for each in maps.values()], grid)
                found.append(classifier.votes(classifier.after_first(self._networks, hidden)).unflatten(1, grid))
        return nearest(torch.stack(found), size)

    # State

    def learned_state(self) -> dict[str, Tensor]:
        """The networks, see `slime_bench.methods.segddpm.classifier.Networks`, and the noise that all images share."""
        return {**self._networks, "noise": self._noise} if self._networks else {}

    def load_learned_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state of `learned_state`.

        Raises:
            ConfigError: it is of another method, of other classes or layers.
        """
        shapes = self.backbone.feature_shapes((self.backbone.config.image_size,) * 2, self.layers)
        width = len(self.timesteps) * sum(channels for channels, _, _ in shapes.values())
        sizes = classifier.widths(width, len(self.classes))
        found = {name: list(value.shape[1:]) for name, value in state.items() if name.endswith(".weight")}
        expected = {f"{place}.weight": [sizes[place + 1], sizes[place]] for place in range(len(sizes) - 1)}
        if found != expected or not {"noise", *classifier.drawn((1, 1, 1, 1), [torch.Generator()])} <= state.keys():
            raise foreign_state(state, f"networks of {expected}, and a noise")
        self._networks = {name: value.to(self.device) for name, value in state.items() if name != "noise"}
        self._noise = state["noise"].to(self.device)


def nearest(maps: Tensor, size: Size) -> Tensor:
    """The pixel floor(i * scale) along each axis, as OpenCV's nearest: [B,C,h,w] -> [B,C,*size] of the same type."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps.float(), size=size, mode="nearest").to(maps.dtype)

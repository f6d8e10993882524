"""ReGAN, Repurposing GANs for One-shot Semantic Part Segmentation (Tritrong et al., CVPR 2021, arXiv 2103.04379).

1. A few pictures of a GAN are labelled: here the support images, which the GAN is made to paint (see `inversion`), or
   pictures that a person has labelled, as in the paper.
2. A few-shot network learns the labels of a pixel from the generator's hidden maps.
3. Auto-shot: the generator paints pictures, the few-shot network labels them, and a U-Net learns from these pairs. At
   test it alone sees the images.

Shapes: B images, K classes, n labelled pictures, R side of a generated picture, S side of what the networks see.
"""

from __future__ import annotations

import io
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from slime_bench.backbones.stylegan2 import StyleGan2Backbone, bytes_of
from slime_bench.errors import DataError
from slime_bench.methods.base import check_shapes
from slime_bench.methods.features import Annotated, FittedMethod
from slime_bench.methods.regan.config import ReganConfig, ReganDescription
from slime_bench.methods.regan.inversion import BATCH, invert, stream_of
from slime_bench.methods.regan.networks import FewShotNetwork, UNet, resized
from slime_bench.methods.regan.training import Pairs, Step, auto_shot_steps, few_shot_steps
from slime_bench.methods.slime.losses import IGNORE
from slime_bench.seeding import derive_seed

_log = logging.getLogger(__name__)
SHEET = "inversions.png"
"""In the trial's folder: the support images above what the generator was made to paint."""


class Labelled(NamedTuple):
    """Generated pictures float32 [n,3,R,R] in [-1,1], the hidden maps of each, and label maps int64 [n,S,S]."""

    pictures: Tensor
    maps: list[list[Tensor]]
    labels: Tensor


class Regan(ReganDescription, FittedMethod):
    """The method as a Lightning module.

    Args:
        config: see `ReganConfig`. protocol: without switches. backbone: frozen.
        classes: K names, `background` first. seed: of the trial.
    """

    implementation = None  # a subclass computes by itself

    def __init__(
        self, config: ReganConfig, protocol: Any, backbone: StyleGan2Backbone, classes: Sequence[str], seed: int,
        keep_maps: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(backbone, classes, seed, keep_maps)
        self.config = config
        with started(seed, "unet"):
            self.unet = UNet(len(self.classes), config.auto_shot.width)
        self._sheet: bytes | None = None

    # Fit

    def fit(self, support: Annotated) -> dict[str, Tensor]:
        """The U-Net's numbers, by `unet.<name>`, and `present`: which classes the labelled pictures have."""
        files = self.config.label_files()
        read = [(number, read_labels(path, len(self.classes))) for number, path in files.items()]
        # Trainings may run in half precision, which neither the generator nor the networks' statistics are made for.
        with torch.enable_grad(), torch.autocast(self.device.type, enabled=False):
            labelled = self._numbered(read) if read else self._inverted(support)
            pairs = self._pairs(self._few_shot(labelled))
            _ended("auto-shot", auto_shot_steps(self.unet, pairs, self.config.auto_shot, self.seed))
        self.unet.eval()
        present = torch.stack([(labelled.labels == k).any() for k in range(len(self.classes))])
        return {"present": present, **self._unet_state()}

    def _inverted(self, support: Annotated) -> Labelled:
        """The support images as the generator paints them, with the support's label maps."""
        side = self.backbone.sizes.size
        wanted = _shrunk(support.images, side) * 2 - 1
        found, maps = list[Tensor](), list[list[Tensor]]()
        for place, name in enumerate(support.ids):
            noises = self.backbone.noises([stream_of(self.seed, "inversion noise", name)])
            stream = stream_of(self.seed, "inversion", name)
            styles = invert(self.backbone, wanted[place : place + 1], noises, self.config.inversion, stream)
            with torch.no_grad():
                made = self.backbone.generate(styles, noises)
            found.append(made.pictures)
            maps.append(made.maps)
        pictures = torch.cat(found)
        error = float((pictures - wanted).square().mean().sqrt()) / 2
        _log.info("inversion of %d support images: root mean square error %.3f of 1", len(support.ids), error)
        self._sheet = png(torch.cat([torch.cat(list(bytes_of(each)), 2) for each in (wanted, pictures)], 1))
        return Labelled(pictures, maps, self._small(support.labels))

    @torch.no_grad()
    def _numbered(self, read: Sequence[tuple[int, Tensor]]) -> Labelled:
        """Generated pictures that a person has labelled, by their numbers and label maps int64 [H,W]."""
        made = [self.backbone.numbered(number) for number, _ in read]
        labels = torch.cat([self._small(label[None].to(self.device)) for _, label in read])
        return Labelled(torch.cat([each.pictures for each in made]), [each.maps for each in made], labels)

    def _few_shot(self, labelled: Labelled) -> FewShotNetwork:
        with started(self.seed, "few-shot network"):
            channels = [int(each.shape[1]) for each in labelled.maps[0]]
            network = FewShotNetwork(channels, len(self.classes), self.config.size)
        network.to(self.device)
        _ended("few-shot", few_shot_steps(network, labelled.maps, labelled.labels, self.config.few_shot))
        return network.eval()

    @torch.no_grad()
    def _pairs(self, network: FewShotNetwork) -> Pairs:
        """New pictures of the generator, labelled."""
        numbers, backbone = range(self.config.auto_shot.pairs), self.backbone
        pictures, logits = list[Tensor](), list[Tensor]()
        for start in numbers[::BATCH]:
            streams = [stream_of(self.seed, "pair", number) for number in numbers[start : start + BATCH]]
            latents = torch.stack([torch.randn(backbone.sizes.style_dim, generator=each) for each in streams])
            made = backbone.generate(backbone.styles(latents.to(self.device)), backbone.noises(streams))
            small = resized(bytes_of(made.pictures).float(), self.config.size)
            pictures.append(small.round().byte().cpu())
            logits.append(network(made.maps).half().cpu())
        return Pairs(torch.cat(pictures), torch.cat(logits))

    def _small(self, labels: Tensor) -> Tensor:
        """Label maps int64 [n,H,W] -> [n,S,S], by the nearest pixel."""
        size = (self.config.size, self.config.size)
        return F.interpolate(labels[:, None].double(), size=size, mode="nearest-exact")[:, 0].long()

    # Test

    @torch.no_grad()
    def scores(self, images: Tensor, ids: Sequence[str]) -> Tensor:
        """The U-Net's logits of unseen images, float32 [B,K,H,W], made at S x S and resized bilinearly. A class that no
        labelled picture shows is never predicted."""
        self.unet.eval()
        with torch.autocast(self.device.type, enabled=False):
            logits = self.unet(_shrunk(images.float(), self.config.size))
            size = (int(images.shape[-2]), int(images.shape[-1]))
            return self.without_absent(F.interpolate(logits, size=size, mode="bilinear", align_corners=False))

    def extra_files(self) -> dict[str, bytes]:
        return {} if self._sheet is None else {SHEET: self._sheet}

    # State

    def _unet_state(self) -> dict[str, Tensor]:
        return {f"unet.{name}": value.detach() for name, value in self.unet.state_dict().items()}

    def load_learned_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state of `learned_state`.

        Raises:
            ConfigError: it is of another method, of other classes, or of a U-Net of another width.
        """
        super().load_learned_state(state)
        unet, own = {name: value for name, value in state.items() if name != "present"}, self._unet_state()
        check_shapes(unet, own, f"{len(own)} tensors of a U-Net of the width {self.config.auto_shot.width}")
        self.unet.load_state_dict({name.removeprefix("unet."): value for name, value in unet.items()})


@contextmanager
def started(seed: int, purpose: str) -> Iterator[None]:
    """Networks that are made within start from numbers of the trial's own; the global stream stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, f"regan {purpose}"))
        yield


def _ended(name: str, steps: Iterable[Step]) -> None:
    """Go through all steps of a training."""
    (last,) = deque(steps, maxlen=1)
    _log.info("%s: last loss %.3f", name, float(last.loss))


def _shrunk(images: Tensor, side: int) -> Tensor:
    """float32 [B,3,H,W] -> [B,3,side,side], bilinear with antialias."""
    if tuple(images.shape[-2:]) == (side, side):
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)


def read_labels(path: Path, classes: int) -> Tensor:
    """The label map of a PNG of one channel or with a palette, int64 [H,W]: 0 to K - 1, or 255 = ignore.

    Raises:
        DataError: it cannot be read, is a colour picture, or has other labels.
    """
    try:
        with Image.open(path) as file:
            values = np.asarray(file)
        strange = sorted({*np.unique(values).tolist()} - {*range(classes), IGNORE})
        found, wrong = f"labels {strange[:5]}" if values.ndim == 2 else "colours", values.ndim != 2 or bool(strange)
    except (OSError, ValueError) as error:
        found, wrong = f"{type(error).__name__}: {error}", True
    if wrong:
        raise DataError(
            "this is no label map of a generated picture", path=path, found=found,
            expected=f"a PNG of one channel with the labels 0 to {classes - 1}, and 255 for what does not count",
            remedy="number the classes as in data.classes, the background 0",
        )  # fmt: skip
    return torch.from_numpy(values.astype(np.int64))


def png(picture: Tensor) -> bytes:
    """A picture uint8 [3,H,W] as a PNG."""
    held = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()).save(held, format="PNG")
    return held.getvalue()

"""What methods share that fit on the support images at once; and those of them that read the hidden states of a frozen
diffusion model.

Shapes: B images, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Self

import torch
from torch import Tensor

from slime_bench.backbones.stable_diffusion import StableDiffusionBackbone
from slime_bench.errors import DataError
from slime_bench.methods.base import SegmentationMethod, foreign_state
from slime_bench.places import onto
from slime_bench.seeding import generator

ABSENT: Final = -1e3
"""Score of a class that no support image has."""
Size = tuple[int, int]


class Annotated(NamedTuple):
    """Annotated images: image float32 [B,3,S,S] RGB in [0,1], label int64 [B,S,S] (255 = ignore), their ids."""

    images: Tensor
    labels: Tensor
    ids: list[str]

    def part(self, here: slice) -> Annotated:
        """Some of them."""
        return Annotated(self.images[here], self.labels[here], self.ids[here])

    def with_mirrored(self) -> Annotated:
        """Also the mirrored ones, behind the others."""
        return Annotated(
            torch.cat([self.images, self.images.flip(-1)]),
            torch.cat([self.labels, self.labels.flip(-1)]),
            [*self.ids, *(f"{name} mirrored" for name in self.ids)],
        )


def support_of(data: Any, device: torch.device) -> Annotated:
    """All support images of a data module, as they are, on `device`."""
    batches = list(data.support_dataloader())
    images, labels = (torch.cat([each[name] for each in batches]).to(device) for name in ("image", "label"))
    return Annotated(images, labels, [name for each in batches for name in each["id"]])


class FittedMethod(SegmentationMethod):
    """A method without an optimisation by steps: `fit` learns from all support images before the test.

    Args:
        backbone: frozen. classes: K names, `background` first. seed: of the trial.
    """

    config: Any

    def __init__(self, backbone: Any, classes: Sequence[str], seed: int, keep_maps: int = 0) -> None:
        super().__init__(classes, keep_maps)
        self.backbone, self.seed = backbone, seed
        self._learned: dict[str, Tensor] = {}

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Self:
        """What was learned goes where the module goes."""
        self._learned = {name: fn(value) for name, value in self._learned.items()}
        return super()._apply(fn, recurse)

    @abstractmethod
    def fit(self, support: Annotated) -> dict[str, Tensor]:
        """What is learned from the support images, by name; all that `scores` needs besides the backbone."""

    @torch.no_grad()
    def prepare(self, data: Any, device: str) -> None:
        """Fit on the support images.

        Raises:
            DataError: a support without any part.
        """
        self.to(device)
        support = support_of(data, self.device)
        present = torch.stack([(support.labels == k).any() for k in range(len(self.classes))])
        if not bool(present[1:].any()):
            raise DataError(
                "the support images show none of the parts", path=", ".join(support.ids[:5]),
                found="background or unlabelled pixels alone", expected=f"pixels of {', '.join(self.classes[1:])}",
                remedy="choose other support images: data.support_ids=[...]",
            )  # fmt: skip
        learned = {"present": present, **self.fit(support)}
        self._learned = {name: value.to(self.device) for name, value in learned.items()}

    def without_absent(self, scores: Tensor) -> Tensor:
        """Scores float [B,K,H,W] with those of classes that no support image has at `ABSENT`."""
        return scores.masked_fill(~self._learned["present"][None, :, None, None], ABSENT)

    def learned_state(self) -> dict[str, Tensor]:
        """What `fit` has learned, and `present`, bool [K]: which classes the support has."""
        return dict(self._learned)

    def load_learned_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state of `learned_state`.

        Raises:
            ConfigError: it is of another method or of other classes.
        """
        if "present" not in state or len(state["present"]) != len(self.classes):
            raise foreign_state(state, f"a state of {self.config.name} with {len(self.classes)} classes")
        self._learned = {name: value.to(self.device) for name, value in state.items()}


class FeatureMethod(FittedMethod):
    """A fitted method on the hidden states of a Stable Diffusion."""

    backbone: StableDiffusionBackbone
    empty: Tensor

    def __init__(
        self, backbone: StableDiffusionBackbone, classes: Sequence[str], seed: int, keep_maps: int = 0
    ) -> None:
        super().__init__(backbone, classes, seed, keep_maps)
        self.register_buffer("empty", backbone.embed(""), persistent=False)  # [1,T,D]

    def latent(self, images: Tensor) -> Size:
        """(h, w) of the images' latents."""
        height, width = self.backbone.latent_shape((int(images.shape[-2]), int(images.shape[-1])))[1:]
        return height, width

    def calls(self, seen: Annotated) -> list[slice]:
        """The images of one call of the backbone each: what comes of more at once may be too much to hold."""
        count = self.backbone.images_per_call((int(seen.images.shape[-2]), int(seen.images.shape[-1])))
        return [slice(start, min(start + count, len(seen.ids))) for start in range(0, len(seen.ids), count)]

    def hidden(self, seen: Annotated, t: int, purpose: str, draw: int, names: Sequence[str]) -> dict[str, Tensor]:
        """Hidden states of the U-Net of one draw of the noise, which is keyed by the image: name -> float32 [B,C,h,w].

        Args:
            purpose: of the draw, e.g. `fit`; draws of different purposes are independent.
        """
        shape = self.backbone.latent_shape((int(seen.images.shape[-2]), int(seen.images.shape[-1])))
        draws = [generator(self.seed, f"probe {purpose}", name, t, draw) for name in seen.ids]
        noise = onto(torch.stack([torch.randn(shape, generator=each) for each in draws]), seen.images)
        steps = torch.full((len(seen.ids),), t, device=seen.images.device)
        return self.backbone.features(seen.images, steps, noise, names, self.empty)

    def mean_hidden(self, seen: Annotated, t: int, purpose: str, draws: int, names: Sequence[str]) -> dict[str, Tensor]:
        """The mean of `hidden` over several draws."""
        every = [self.hidden(seen, t, purpose, draw, names) for draw in range(draws)]
        return {name: torch.stack([each[name] for each in every]).mean(0) for name in names}

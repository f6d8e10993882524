"""The refinements that `refine` chooses from: what each can be set to, and nothing heavy before one is called.

A refinement of one's own is a dataclass that inherits `Refinement`, in one Python file, and one file of conf/refine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from slime_bench.imagenet import IMAGENET
from slime_bench.refine.crf_config import CrfConfig

if TYPE_CHECKING:
    from torch import Tensor


class Refinement(ABC):
    """Score maps in, score maps out, with the image's own edges; applied before the argmax, never in training."""

    name: str

    @abstractmethod
    def __call__(self, scores: Tensor, images: Tensor) -> Tensor:
        """Refined score maps, float [B,K,H,W] on the same device; the prediction is their argmax over K.

        Args:
            scores: float [B,K,H,W], of any range: probabilities, attention, or what a method calls a score; far below
                the others where a class cannot be. images: float [B,3,H,W] RGB in [0,1].
        """

    def stated(self, side: int) -> str:
        """What a table's caption says of it, on images of `side` pixels."""
        return self.name


@dataclass
class NoRefinement(Refinement):
    """Score maps as they are."""

    name: str = "none"

    def __call__(self, scores: Tensor, images: Tensor) -> Tensor:
        return scores


@dataclass
class GuidedFilter(Refinement):
    """See `slime_bench.refine.guided`.

    Args:
        radius: of the square window, pixels; null for a 32nd of the longer side of the image.
        eps: of the ridge regression, in squared units of the colours: what varies less than its root is smoothed. Where
            it is smaller than the least, rounding would decide.
        rounds: passes, each over the output of the one before.
    """

    name: str = "guided"
    radius: Annotated[int, Field(ge=1)] | None = None
    eps: Annotated[float, Field(ge=1e-10)] = 1e-4
    rounds: Annotated[int, Field(ge=1)] = 2

    def __call__(self, scores: Tensor, images: Tensor) -> Tensor:
        from slime_bench.refine.guided import guided_filter

        return guided_filter(scores, images, self.window(max(images.shape[-2:])), self.eps, self.rounds)

    def window(self, side: int) -> int:
        """The radius on images of `side` pixels."""
        return self.radius or max(1, side // 32)

    def stated(self, side: int) -> str:
        return f"guided filter, radius {self.window(side)}, {self.rounds} pass{'es' if self.rounds > 1 else ''}"


@dataclass
class Crf(CrfConfig, Refinement):
    """See `slime_bench.refine.crf`. Its scales are those of the authors' network input, whatever the backbone's own."""

    name: str = "crf"

    def __call__(self, scores: Tensor, images: Tensor) -> Tensor:
        from slime_bench.refine.crf import crf_kernel, mean_field

        mean, std = (scores.new_tensor(each)[:, None, None] for each in IMAGENET)
        return mean_field(scores, crf_kernel((images - mean) / std, self), self)

    def stated(self, side: int) -> str:
        return f"CRF, {self.iterations} iteration{'s' if self.iterations != 1 else ''}"

"""What a way of computing has found, and whether the reference finds the same: else a ratio would mean nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch import Tensor

from slime_bench.errors import SlimeBenchError

TERMS: Final = ("cross_entropy", "was", "diffusion")
"""The terms of Eq. 8."""


class DifferentResultError(SlimeBenchError):
    """A way of computing gives other results than the reference; its speed is not worth knowing."""


@dataclass(frozen=True)
class Outcome:
    """Of one optimisation step.

    Attributes:
        losses: the `TERMS` by name, before the update. gradient: of the embeddings, float [K-1,D].
    """

    losses: dict[str, float]
    gradient: Tensor


@dataclass(frozen=True)
class Bars:
    """How far a way may be from the reference.

    Attributes:
        losses: relative, of each term. gradient: norm of the difference over the norm. labels: share of the pixels.
    """

    losses: float
    gradient: float
    labels: float


def step_differs(found: Outcome, wanted: Outcome) -> dict[str, float]:
    """Distances of one step's results, by the names of `Bars`."""
    if found.losses.keys() != wanted.losses.keys():
        return {"losses": float("inf"), "gradient": float("inf")}
    losses = max(abs(found.losses[name] - value) / max(abs(value), 1e-12) for name, value in wanted.losses.items())
    ours, theirs = found.gradient.double(), wanted.gradient.double().to(found.gradient.device)
    return {"losses": losses, "gradient": float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))}


def labels_differ(found: Tensor, wanted: Tensor) -> dict[str, float]:
    """Share of the pixels whose label differs."""
    return {"labels": float((found.cpu() != wanted.cpu()).float().mean())}


def check(way: str, differs: dict[str, float], bars: Bars) -> None:
    """Refuse a way that computes something else.

    Raises:
        DifferentResultError: a distance above its bar, or none at all (NaN).
    """
    for name, value in differs.items():
        if not value <= getattr(bars, name):
            raise DifferentResultError(
                f"`{way}` computes something else than the reference", path=name, found=f"a distance of {value:.2g}",
                expected=f"at most {getattr(bars, name):.2g}",
                remedy="mend the way before measuring it; `make test` says more",
            )  # fmt: skip

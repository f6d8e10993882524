"""The ways of computing that are measured against each other, and whether they find the same.

A new row of the bench is one entry of `WAYS`. A way that finds something else has no speed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from slime_bench.bench.case import Case, Pictures, another_trial, make_method
from slime_bench.bench.reference import TERMS, Reference, StepResult
from slime_bench.errors import SlimeBenchError
from slime_bench.methods.base import label_maps
from slime_bench.methods.slime.method import Slime

REFERENCE: Final = "reference"
TASKS: Final = ("step", "inference")
BARS: Final = {
    # what runs of the authors' own code differ by with other kernels and threads (gradients by 3e-4, the diffusion loss
    # by 1e-6 of itself), with room for other machines
    "fp32": {"losses": 2e-4, "gradient": 5e-3, "labels": 2e-3},
    # 8 bits; guidance multiplies by 100 what the diffusion loss loses, and random weights amplify it
    "bf16": {"losses": 0.5, "gradient": 0.3, "labels": 0.2},
}
"""How far a way may be from the reference, by its precision: losses relative, of each term; gradient as the norm of the
difference over the norm; labels as the share of the pixels."""


class DifferentResultError(SlimeBenchError):
    """A way of computing gives other results than the reference; its speed is not worth knowing."""


class Fast:
    """The bench's own SLiMe: one trial, or several that are fitted in one batch."""

    def __init__(self, methods: Sequence[Slime]) -> None:
        self.methods = methods
        self.optimisers = [method.configure_optimizers() for method in methods]

    def step(self, batches: Sequence[dict[str, Any]]) -> StepResult:
        """One optimisation step of every trial, the update included, on the batch of each; what the first one found."""
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        terms = Slime.training_terms(self.methods, batches)
        torch.stack([each["loss"] for each in terms]).sum().backward()
        gradient = self.methods[0].embeddings.grad
        assert gradient is not None  # of the step just made
        losses: dict[str, float] = {name: float(terms[0][name].detach()) for name in TERMS if name in terms[0]}
        found = StepResult(losses, gradient.clone())
        for optimiser in self.optimisers:
            optimiser.step()
        return found

    @torch.inference_mode()
    def segment(self, images: Tensor, ids: list[str]) -> Tensor:
        """The first trial's label maps int64 [B,S,S] of pictures float [B,3,S,S], which every trial segments."""
        count = len(self.methods)
        return label_maps(Slime.score_maps(self.methods, [images] * count, [ids] * count)[0])

    @torch.inference_mode()
    def see(self, images: Tensor, ids: list[str]) -> None:
        """Segment pictures as a trial with another seed would, before this one does."""
        another_trial(self.methods[0], self.methods[0].seed + 1).predict(images, ids)


Runner = Reference | Fast
"""A way of computing, ready to run."""


@dataclass(frozen=True)
class Way:
    """One row of the bench.

    Attributes:
        make: builds a runner. what: in a few words. precision: of the frozen networks.
        batched: whether it runs `Case.trials` trials at once.
        tasks: at which it differs from others. seen: whether another trial of the process has segmented the pictures.
    """

    make: Callable[[Case], Runner]
    what: str
    precision: str = "fp32"
    batched: bool = False
    tasks: tuple[str, ...] = TASKS
    seen: bool = False

    def trials(self, case: Case) -> int:
        """How many it runs at once."""
        return case.trials if self.batched else 1


def _fast(precision: str, batched: bool = False) -> Callable[[Case], Runner]:
    def make(case: Case) -> Runner:
        first = make_method(case, precision)
        return Fast([first, *(another_trial(first, seed) for seed in range(1, case.trials if batched else 1))])

    return make


WAYS: Final[dict[str, Way]] = {
    REFERENCE: Way(lambda case: Reference(make_method(case, "fp32")), "the authors' way of computing, float32"),
    "fast fp32": Way(_fast("fp32"), "the bench's own way, float32"),
    "next trial fp32": Way(
        _fast("fp32"), "the same, where an earlier trial has segmented the pictures", tasks=("inference",), seen=True
    ),
    "fast bf16": Way(_fast("bf16"), "the same with the frozen networks in bfloat16", "bf16"),
    "batch of trials fp32": Way(_fast("fp32", batched=True), "several trials in one batch, float32", batched=True),
    "batch of trials bf16": Way(_fast("bf16", batched=True), "the same in bfloat16", "bf16", batched=True),
}
"""Every way by its name; the first is what the others are compared with."""


def call_of(runner: Runner, pictures: Pictures, task: str, trials: int) -> Callable[[int], Any]:
    """One call of a runner on the data of a round."""
    if task == "step":
        return lambda turn: runner.step([pictures.support(turn, trial) for trial in range(trials)])
    return lambda turn: runner.segment(*pictures.test(turn))


def distances(
    way: str, found: StepResult | Tensor, wanted: StepResult | Tensor, precision: str, refuse: bool = True
) -> dict[str, float]:
    """How far what a way finds is from the reference's, by the names of `BARS`.

    Raises:
        DifferentResultError: with `refuse`, a distance above its bar, or none at all (NaN).
    """
    if isinstance(found, StepResult) and isinstance(wanted, StepResult):
        # A term that is missing is infinitely far.
        each = [abs(found.losses.get(name, torch.inf) / value - 1) for name, value in wanted.losses.items()]
        ours, theirs = found.gradient.cpu().double(), wanted.gradient.cpu().double()
        differs = {
            "losses": float(torch.tensor(each).max()),  # NaN where one is
            "gradient": float((ours - theirs).norm() / theirs.norm()),
        }
    else:
        assert isinstance(found, Tensor) and isinstance(wanted, Tensor)
        differs = {"labels": float((found.cpu() != wanted.cpu()).float().mean())}
    for name, value in differs.items():
        if refuse and not value <= BARS[precision][name]:
            raise DifferentResultError(
                f"`{way}` computes something else than the reference", path=name, found=f"a distance of {value:.2g}",
                expected=f"at most {BARS[precision][name]:.2g}",
                remedy="mend the way before measuring it; the tests say more",
            )  # fmt: skip
    return differs

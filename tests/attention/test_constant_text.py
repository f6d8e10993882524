"""Kept projections of a text: computed once, and never those of another text, of other weights or of another mode."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from slime_bench.attention.constant_text import TEXTS, ConstantText
from tests.fixtures.rounding import TINY, same


@pytest.fixture
def linear() -> nn.Linear:
    return nn.Linear(6, 4).requires_grad_(False)


@pytest.fixture
def text() -> torch.Tensor:
    return torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(0))


@contextmanager
def counted(*modules: nn.Module) -> Iterator[list[int]]:
    """Forward passes of the modules, one entry each."""
    calls: list[int] = []
    handles = [module.register_forward_hook(lambda *_: calls.append(1)) for module in modules]
    yield calls
    for handle in handles:
        handle.remove()


@torch.no_grad()
def ask(kept: ConstantText, linear: nn.Module, text: torch.Tensor) -> torch.Tensor:
    with kept.during(text):
        return kept.projected(linear, text)


def test_an_equal_text_is_projected_once(linear: nn.Linear, text: torch.Tensor) -> None:
    kept, other = ConstantText(), nn.Linear(6, 4).requires_grad_(False)
    with counted(linear, other) as calls:
        first = ask(kept, linear, text)
        assert ask(kept, linear, text) is first and ask(kept, linear, text.clone()) is first
        assert len(calls) == 1
        assert not torch.equal(ask(kept, other, text), first) and len(calls) == 2
    assert torch.equal(first, linear(text))


def test_a_text_changed_in_place_is_another_text(linear: nn.Linear, text: torch.Tensor) -> None:
    kept = ConstantText()
    parameter = nn.Parameter(text)
    optimiser = torch.optim.Adam([parameter], lr=0.1)
    for _ in range(3):
        assert torch.equal(ask(kept, linear, parameter), linear(parameter))
        parameter.square().sum().backward()
        optimiser.step()
    parameter.data.mul_(2)  # this way not even the tensor's own counter moves
    assert torch.equal(ask(kept, linear, parameter), linear(parameter))


@pytest.mark.parametrize("change", ["in place", "replaced", "moved", "copied"])
def test_changed_weights_are_not_the_old_ones(linear: nn.Linear, text: torch.Tensor, change: str) -> None:
    kept = ConstantText()
    old = ask(kept, linear, text)
    if change == "in place":
        linear.weight.mul_(2)
    elif change == "replaced":
        linear.weight = nn.Parameter(torch.randn(4, 6), requires_grad=False)
    elif change == "moved":
        linear.weight.data = torch.randn(4, 6)
    else:
        kept, linear = copy.deepcopy((kept, linear))
        linear.bias.add_(1)
    found = ask(kept, linear, text)
    assert torch.equal(found, linear(text)) and not torch.equal(found, old)


def test_what_somebody_has_written_into_is_computed_again(linear: nn.Linear, text: torch.Tensor) -> None:
    kept = ConstantText()
    ask(kept, linear, text).zero_()
    assert torch.equal(ask(kept, linear, text), linear(text))
    with torch.inference_mode():
        ask(kept, linear, text).view(-1)[:3].zero_()
    assert torch.equal(ask(kept, linear, text), linear(text))


def test_gradient_asked_for_inside_the_block(linear: nn.Linear, text: torch.Tensor) -> None:
    kept = ConstantText()
    text.requires_grad_()
    with torch.no_grad(), kept.during(text):
        kept.projected(linear, text)
        with torch.enable_grad():
            assert kept.projected(linear, text).requires_grad


def test_kept_in_inference_mode_and_used_in_training(linear: nn.Linear, text: torch.Tensor) -> None:
    kept = ConstantText()
    with torch.inference_mode():
        first = ask(kept, linear, text.clone())
    assert not first.is_inference() and ask(kept, linear, text) is first
    factor = torch.ones((), requires_grad=True)
    (first * factor).sum().backward()
    assert factor.grad is not None and factor.grad == first.sum()


def test_weights_without_a_counter_are_not_trusted(text: torch.Tensor) -> None:
    with torch.inference_mode():
        linear = nn.Linear(6, 4)
    kept = ConstantText()
    assert ask(kept, linear, text) is not ask(kept, linear, text)


def test_autocast_has_projections_of_its_own(linear: nn.Linear, text: torch.Tensor) -> None:
    kept = ConstantText()
    with torch.autocast("cpu", torch.bfloat16):
        half = ask(kept, linear, text)
    full = ask(kept, linear, text)
    assert (half.dtype, full.dtype) == (torch.bfloat16, torch.float32)


def test_the_oldest_text_is_dropped(linear: nn.Linear) -> None:
    kept = ConstantText()
    texts = [torch.full((1, 5, 6), float(value)) for value in range(TEXTS + 1)]
    with counted(linear) as calls:
        for each in [*texts[:TEXTS], texts[0], texts[TEXTS], texts[0]]:
            ask(kept, linear, each)
        assert len(calls) == TEXTS + 1
        ask(kept, linear, texts[1])
        assert len(calls) == TEXTS + 2


class TestInTheBackbone:
    @pytest.fixture
    def inputs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        draw = torch.Generator().manual_seed(0)
        return torch.randn(3, 4, 16, 16, generator=draw), torch.tensor([3, 50, 700]), torch.randn(
            1, 77, 32, generator=draw
        )  # fmt: skip

    def linears(self, backbone: Any) -> list[nn.Module]:
        return [m for n, m in backbone.unet.named_modules() if n.endswith(("attn2.to_k", "attn2.to_v"))]

    @torch.no_grad()
    def test_second_call_projects_nothing_and_gives_the_same(self, tiny_backbone: Any, inputs: Any) -> None:
        noisy, t, text = inputs
        with counted(*self.linears(tiny_backbone)) as calls:
            first = tiny_backbone.predict_noise(noisy, t, text.expand(3, -1, -1))
            used = len(calls)
            second = tiny_backbone.predict_noise(noisy, t, text)
            early = tiny_backbone.attention(noisy, t, text.clone(), with_noise=False)
            assert 0 < used == len(calls)
        assert torch.equal(first, second)
        assert all(layer.key.shape[0] == 3 for layer in early.cross)

    def test_gradient_of_one_row_is_that_of_its_copies(self, tiny_backbone: Any, inputs: Any) -> None:
        noisy, t, text = inputs
        gradients = []
        for copies in (False, True):
            leaf = text.clone().requires_grad_()
            rows = torch.cat([leaf] * 3) if copies else leaf
            found = tiny_backbone.attention(noisy, t, rows, with_noise=True)
            loss = found.noise.square().mean() + sum(layer.key.square().mean() for layer in found.cross)
            gradients.append(torch.autograd.grad(loss, leaf)[0])
        assert gradients[1].abs().max() > 1e-4
        same(*gradients, **TINY)

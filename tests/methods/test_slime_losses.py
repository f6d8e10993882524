"""SLiMe's losses against torch's own and against numbers worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from slime_bench.methods.slime.losses import class_weights, cross_entropy, guided, was_error

# 2 x 4 pixels: background 3, class 1 twice, class 2 absent, class 3 once, two ignored
LABEL = torch.tensor([[[0, 0, 0, 1], [1, 3, 255, 255]]])


def test_weights_of_the_authors_code() -> None:
    # foreground: 3 pixels
    assert class_weights(LABEL, 4, "foreground").tolist() == [1.0, 1.5, 0.0, 3.0]


def test_weights_of_the_paper() -> None:
    # labelled: 6 pixels
    assert class_weights(LABEL, 4, "all").tolist() == [2.0, 3.0, 0.0, 6.0]


def test_background_keeps_weight_one_even_where_it_is_absent() -> None:
    assert class_weights(torch.ones(1, 2, 2, dtype=torch.long), 3, "foreground").tolist() == [1.0, 1.0, 0.0]
    assert class_weights(torch.ones(1, 2, 2, dtype=torch.long), 3, "all").tolist() == [0.0, 1.0, 0.0]
    assert class_weights(torch.zeros(1, 2, 2, dtype=torch.long), 3, "foreground").tolist() == [1.0, 0.0, 0.0]


def test_weights_count_the_whole_batch() -> None:
    label = torch.tensor([[[0, 1]], [[2, 1]]])
    assert class_weights(label, 3, "foreground").tolist() == [1.0, 1.5, 3.0]


@pytest.mark.parametrize("rule", ["foreground", "all"])
def test_cross_entropy_is_torchs(rule: str) -> None:
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(3, 5, 6, 7, generator=draw, dtype=torch.float64, requires_grad=True)
    label = torch.randint(0, 4, (3, 6, 7), generator=draw)  # class 4 is absent
    label[torch.rand(label.shape, generator=draw) < 0.2] = 255
    weights = class_weights(label, 5, rule).double()
    found = cross_entropy(values, label, weights)
    expected = F.cross_entropy(values, label, weight=weights, ignore_index=255)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(loss, values)[0] for loss in (found, expected))
    torch.testing.assert_close(ours, theirs)
    assert ours.permute(0, 2, 3, 1)[label == 255].abs().max() == 0


def test_a_label_map_without_labels_gives_zero_not_nan() -> None:
    values = torch.randn(1, 3, 2, 2, requires_grad=True)
    label = torch.full((1, 2, 2), 255)
    loss = cross_entropy(values, label, class_weights(label, 3, "foreground")) + was_error(values, label, "mean")
    loss.backward()
    assert loss.item() == 0 and values.grad is not None and values.grad.abs().max() == 0


def test_was_error_by_hand() -> None:
    # two images, two classes, 1 x 2 pixels; the last pixel is ignored
    was = torch.tensor([[[[0.5, 1.0]], [[0.0, 0.25]]], [[[1.0, 9.0]], [[0.5, 9.0]]]])
    label = torch.tensor([[[0, 1]], [[0, 255]]])
    # (0.5-1)^2 + 0^2 | 1^2 + (0.25-1)^2 | 0^2 + 0.5^2
    squares = 0.25 + (1 + 0.5625) + 0.25
    assert was_error(was, label, "sum").item() == pytest.approx(squares / 2)
    # mean over 3 labelled pixels and 2 classes, times 2
    assert was_error(was, label, "mean").item() == pytest.approx(squares / (3 * 2) * 2)


def test_was_error_of_the_label_map_itself_is_zero() -> None:
    label = torch.randint(0, 4, (2, 5, 5))
    exact = F.one_hot(label, 4).permute(0, 3, 1, 2).float()
    assert was_error(exact, label, "mean").item() == 0 == was_error(exact, label, "sum").item()


def test_guidance() -> None:
    conditional, unconditional = torch.tensor([3.0, -1.0]), torch.tensor([1.0, 1.0])
    assert guided(conditional, unconditional, 100.0).tolist() == [201.0, -199.0]
    assert torch.equal(guided(conditional, unconditional, 1.0), conditional)
    assert torch.equal(guided(conditional, unconditional, 0.0), unconditional)

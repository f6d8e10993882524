"""Attention products against the softmax written out in float64, for every width that is filled up or left alone."""

from __future__ import annotations

import pytest
import torch

from slime_bench.attention.attend import attend, kernel_width


def draw(*shape: int, seed: int = 0, gain: float = 1.5) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * gain


def dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    logits = query @ key.transpose(-1, -2) * scale
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(-1) @ value


SIZES = [
    # keys, head width, value width
    (300, 4, 4),
    (300, 8, 8),
    (300, 8, 6),
    (300, 8, 14),
    (300, 8, 20),
    (300, 12, 3),
    (300, 16, 16),
    (256, 32, 40),
    (77, 8, 8),
    (77, 8, 11),
    (5, 3, 2),
]


@pytest.mark.parametrize(("keys", "width", "wide"), SIZES)
@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-11), (torch.float32, 2e-4), (torch.bfloat16, 0.1)])
def test_result_and_gradients_are_those_of_the_written_out_softmax(
    keys: int, width: int, wide: int, dtype: torch.dtype, bar: float
) -> None:
    leaves = [
        draw(2, 3, n, d, seed=i).to(dtype) for i, (n, d) in enumerate([(290, width), (keys, width), (keys, wide)])
    ]
    weights = draw(2, 3, 290, wide, seed=9, gain=1.0)
    results = []
    for function, precision in ((attend, dtype), (dense, torch.float64)):
        own = [leaf.to(precision).requires_grad_() for leaf in leaves]
        output = function(own[0], own[1], own[2], width**-0.5)
        results.append([output, *torch.autograd.grad((output.double() * weights).sum(), own)])
    assert results[0][0].shape == (2, 3, 290, wide) and results[0][0].dtype == dtype
    for ours, theirs in zip(*results, strict=True):
        assert theirs.abs().max() > 0.1
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert error < bar


@pytest.mark.parametrize("keys", [77, 300])
@pytest.mark.parametrize("kind", ["bool", "added"])
def test_masks(keys: int, kind: str) -> None:
    query, key, value = draw(2, 3, 20, 8), draw(2, 3, keys, 8, seed=1), draw(2, 3, keys, 8, seed=2)
    seen = torch.arange(keys) < torch.tensor([9, 40])[:, None, None, None]
    mask = seen if kind == "bool" else torch.where(seen, 0.5, -1e4).double()
    found = attend(query, key, value, 0.3, mask)
    torch.testing.assert_close(found, dense(query, key, value, 0.3, mask), rtol=1e-9, atol=1e-11)
    assert not torch.allclose(found, dense(query, key, value, 0.3), atol=1e-3)


def test_expanded_and_transposed_operands() -> None:
    """One text for all images is an expanded tensor; a layer's heads are transposed; maps may be channels last."""
    query = draw(3, 300, 2, 8).transpose(1, 2)
    key = draw(1, 2, 8, 300, seed=1).transpose(2, 3).expand(3, -1, -1, -1)
    value = draw(3, 1, 6, 300, seed=2).transpose(2, 3).expand(-1, 2, -1, -1)
    found = attend(query, key, value, 0.4)
    torch.testing.assert_close(found, dense(query, key, value, 0.4), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("width", "wide"), [(8, 8), (8, 6), (8, 20), (32, 6)])
def test_nothing_as_large_as_queries_times_keys_is_kept(width: int, wide: int) -> None:
    count, kept = 1024, []
    query, key, value = (draw(1, 1, count, d).float().requires_grad_() for d in (width, width, wide))

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        attend(query, key, value, 0.3).sum().backward()
    assert kept and max(kept) < count * count / 8


def test_width_of_the_kernel() -> None:
    assert [kernel_width(width, 4096, "cpu") for width in (1, 8, 15, 16, 64)] == [16, 16, 16, 16, 64]
    assert [kernel_width(width, 4096, "cpu") for width in (17, 20, 21, 36, 38, 70)] == [17, 20, 24, 36, 40, 72]
    assert [kernel_width(width, 77, "cpu") for width in (4, 8, 15)] == [4, 8, 15]
    assert [kernel_width(width, 4096, "cuda") for width in (1, 8, 9, 64, 70, 77)] == [8, 8, 16, 64, 72, 80]
    assert kernel_width(7, 4096, "meta") == 7


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "wide"), [(8, 9), (64, 7), (64, 70)])
def test_cuda_forms_no_matrix_of_queries_times_keys(dtype: torch.dtype, width: int, wide: int) -> None:
    count, heads = 4096, 8
    make = [(1, heads, count, d) for d in (width, width, wide)]
    query, key, value = (torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True) for shape in make)
    attend(query, key, value, 0.3).sum().backward()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attend(query, key, value, 0.3).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < heads * count * count * dtype.itemsize / 4

"""What filling up narrow heads gains: `slime_bench.attention.attend` against torch's product as it is, in turns.

python -m slime_bench.bench.attention [--threads 2]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from slime_bench.attention.attend import attend, kernel_width
from slime_bench.bench.harness import interleave, ratio
from slime_bench.bench.stopwatch import synchronise
from slime_bench.device import pick_device
from slime_bench.errors import SlimeBenchError

SHAPES: Final = ((4, 4096, 4), (2, 4096, 8), (4, 1024, 8), (6, 256, 8), (4, 1024, 12), (2, 1024, 18), (1, 4096, 64))
"""Heads, positions and head width of self-attention layers of thin and of full U-Nets, one image."""


def compare(heads: int, positions: int, width: int, device: str, rounds: int) -> dict[str, float]:
    """How many times faster the bench's product is, `forward` and `both` with its backward pass; and how far it is from
    torch's, `differs`, relative to the largest number."""
    draw = torch.Generator().manual_seed(0)
    query, key, value, gradient = (
        torch.randn(1, heads, positions, width, generator=draw).to(device).requires_grad_(part < 3) for part in range(4)
    )

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, scale=width**-0.5)

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value, scale=width**-0.5)

    def forward(product: Callable[..., Tensor]) -> Callable[[int], object]:
        return lambda _: product(query.detach(), key.detach(), value.detach())

    def both(product: Callable[..., Tensor]) -> Callable[[int], object]:
        return lambda _: torch.autograd.grad(product(query, key, value), (query, key, value), gradient)

    found = {}
    for name, made in (("forward", forward), ("both", both)):
        seconds = interleave(
            {"plain": made(plain), "ours": made(ours)}, rounds, warmup=2, settled=lambda: synchronise(device)
        )
        found[name] = ratio(seconds["plain"], seconds["ours"]).median
    with torch.no_grad():
        expected = plain(query, key, value)
        found["differs"] = float((ours(query, key, value) - expected).abs().max() / expected.abs().max())
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args(argv)
    try:
        device = pick_device(arguments.device)
    except SlimeBenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        print(f"torch {torch.__version__}, {device}, {arguments.threads} threads: times faster than torch's product")
        print(f"{'heads':>5} {'positions':>9} {'width':>5} {'filled to':>9} {'forward':>8} {'both':>8} {'differs':>8}")
        for heads, positions, width in SHAPES:
            found = compare(heads, positions, width, device, arguments.rounds)
            filled = kernel_width(width, positions, device)
            print(
                f"{heads:>5} {positions:>9} {width:>5} {filled:>9} {found['forward']:>8.2f} {found['both']:>8.2f} "
                f"{found['differs']:>8.0e}",
                flush=True,
            )
    finally:
        torch.set_num_threads(before)
    return 0


if __name__ == "__main__":
    sys.exit(main())

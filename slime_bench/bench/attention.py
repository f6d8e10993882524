"""What filling up narrow heads gains: `slime_bench.attention.attend` against torch's product as it is, in turns.

python -m slime_bench.bench.attention --threads 2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from slime_bench.attention.attend import attend, kernel_width
from slime_bench.bench.command import at_least_1, make_main, publish, say, table
from slime_bench.bench.timing import Spread, interleave, ratio
from slime_bench.trial.device import pick_device

SHAPES: Final = (
    (4, 4096, 4), (2, 4096, 8), (4, 1024, 8), (6, 256, 8), (4, 1024, 12), (2, 1024, 18), (2, 4096, 38), (1, 4096, 64),
    (1, 4096, 70),
)  # fmt: skip
"""Heads, positions and head width of self-attention layers of thin and of full U-Nets, one image; 38 and 70 are heads
of 32 and 64 whose attention also propagates six maps."""


def compare(heads: int, positions: int, width: int, device: str, rounds: int) -> tuple[dict[str, Spread], float]:
    """How many times faster the bench's product is, `forward` and `both` with its backward pass; and how far it is from
    torch's, relative to the largest number."""
    draw = torch.Generator().manual_seed(0)
    shape = (1, heads, positions, width)
    query, key, value = (torch.randn(shape, generator=draw).to(device).requires_grad_() for _ in range(3))
    gradient = torch.randn(shape, generator=draw).to(device)

    plain, ours = partial(F.scaled_dot_product_attention, scale=width**-0.5), partial(attend, scale=width**-0.5)

    def forward(product: Callable[..., Tensor]) -> Callable[[int], object]:
        return lambda _: product(query.detach(), key.detach(), value.detach())

    def both(product: Callable[..., Tensor]) -> Callable[[int], object]:
        return lambda _: torch.autograd.grad(product(query, key, value), (query, key, value), gradient)

    found = {}
    for made in (forward, both):
        seconds = interleave({"plain": made(plain), "ours": made(ours)}, rounds, warmup=2)
        found[made.__name__] = ratio(seconds["plain"], seconds["ours"])
    with torch.no_grad():
        expected = plain(query, key, value)
        return found, float((ours(query, key, value) - expected).abs().max() / expected.abs().max())


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=at_least_1, default=9)


def _measure(arguments: argparse.Namespace, command: str) -> str:
    device, lines, rows = pick_device(arguments.device), [], []
    for heads, positions, width in SHAPES:
        say(f"heads {heads}, positions {positions}, width {width}")
        found, differs = compare(heads, positions, width, device, arguments.rounds)
        filled = kernel_width(width, positions, device)
        shape = {"heads": heads, "positions": positions, "width": width, "filled_to": filled}
        rows.append({**shape, **{name: asdict(each) for name, each in found.items()}, "differs": differs})
        ratios = [f"{each.median:.2f} ({each.low:.2f}..{each.high:.2f})" for each in found.values()]
        lines.append([*map(str, shape.values()), *ratios, f"{differs:.0e}"])
    text = table(["heads", "positions", "width", "filled to", "forward", "with backward", "differs"], lines)
    title, content = "Heads filled up: times faster than torch's product", {"rounds": arguments.rounds, "rows": rows}
    return publish(arguments.out, f"attention_{device}", title, text, device, command, content)


main = make_main("slime_bench.bench.attention", __doc__, _add, _measure)

if __name__ == "__main__":
    sys.exit(main(None))

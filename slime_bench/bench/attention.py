"""What filling up narrow heads gains: `slime_bench.attention.attend` against torch's product as it is, in turns.

python -m slime_bench.bench.attention --threads 2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from slime_bench.attention.attend import attend, kernel_width
from slime_bench.bench import output
from slime_bench.bench.arguments import at_least_1, command, command_of, make_folder, say
from slime_bench.bench.harness import Spread, interleave, ratio
from slime_bench.bench.stopwatch import synchronise
from slime_bench.trial.device import pick_device
from slime_bench.trial.fitting import threads

PROGRAM: Final = "slime_bench.bench.attention"

SHAPES: Final = (
    (4, 4096, 4),
    (2, 4096, 8),
    (4, 1024, 8),
    (6, 256, 8),
    (4, 1024, 12),
    (2, 1024, 18),
    (2, 4096, 38),
    (1, 4096, 64),
    (1, 4096, 70),
)
"""Heads, positions and head width of self-attention layers of thin and of full U-Nets, one image; 38 and 70 are heads
of 32 and 64 whose attention also propagates six maps."""


def compare(heads: int, positions: int, width: int, device: str, rounds: int) -> tuple[dict[str, Spread], float]:
    """How many times faster the bench's product is, `forward` and `both` with its backward pass; and how far it is from
    torch's, relative to the largest number."""
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
        found[name] = ratio(seconds["plain"], seconds["ours"])
    with torch.no_grad():
        expected = plain(query, key, value)
        differs = float((ours(query, key, value) - expected).abs().max() / expected.abs().max())
    return found, differs


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="CPU threads; torch's own choice otherwise")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="folder for the table as Markdown and JSON")
    return parser


def run(arguments: argparse.Namespace, words: Sequence[str]) -> str:
    """Measure, write what `--out` asks for, and return the table."""
    at_least_1(arguments, "rounds", "threads")
    make_folder(arguments.out)
    device, lines, rows = pick_device(arguments.device), [], []
    with threads(arguments.threads, deterministic=False):
        for heads, positions, width in SHAPES:
            say(f"heads {heads}, positions {positions}, width {width}")
            found, differs = compare(heads, positions, width, device, arguments.rounds)
            filled = kernel_width(width, positions, device)
            shape = {"heads": heads, "positions": positions, "width": width, "filled_to": filled}
            rows.append({**shape, **{name: asdict(each) for name, each in found.items()}, "differs": differs})
            ratios = [f"{each.median:.2f} ({each.low:.2f}..{each.high:.2f})" for each in found.values()]
            lines.append([*map(str, shape.values()), *ratios, f"{differs:.0e}"])
        made_with = output.facts(device, command_of(PROGRAM, words))
    head = ["heads", "positions", "width", "filled to", "forward", "with backward", "differs"]
    content = {"made_with": made_with, "rounds": arguments.rounds, "rows": rows}
    title = "Heads filled up: times faster than torch's product"
    return output.publish(arguments.out, f"attention_{device}", title, output.table(head, lines), content)


def main(words: Sequence[str] | None = None) -> int:
    chosen = list(sys.argv[1:] if words is None else words)
    arguments = make_parser().parse_args(chosen)
    return command(lambda: run(arguments, chosen))


if __name__ == "__main__":
    sys.exit(main())

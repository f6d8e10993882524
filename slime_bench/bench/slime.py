"""SLiMe's optimisation step and inference: the authors' way of computing against the bench's own, in one run.

    python -m slime_bench.bench.slime --width golden --size 512

What is measured, and how to read it: docs/bench.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from slime_bench.bench import output
from slime_bench.bench.arguments import (
    add_case,
    add_rounds,
    case_of,
    command,
    command_of,
    make_folder,
    rounds_of,
    say,
    ways_of,
)
from slime_bench.bench.duel import duel
from slime_bench.bench.ways import TASKS, WAYS

PROGRAM = "slime_bench.bench.slime"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_case(parser)
    add_rounds(parser)
    parser.add_argument("--ways", nargs="+", metavar="WAY", help=f"among: {', '.join(WAYS)}")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    return parser


def run(arguments: argparse.Namespace, words: Sequence[str]) -> str:
    """Measure, write what `--out` asks for, and return the tables."""
    ways = ways_of(arguments.ways)
    with case_of(arguments) as case:
        make_folder(arguments.out)
        rounds = rounds_of(arguments, case)
        rows = duel(case, ways, arguments.tasks, rounds, arguments.warmup, not arguments.no_memory, say)
        made_with = output.facts(case.device, command_of(PROGRAM, words))
    legend = "\n".join(f"- `{name}`: {WAYS[name].what}" for name in ways)
    title = f"SLiMe, {case.width} width, {case.size} px, {case.classes} classes, {case.device}"
    content = {
        "made_with": made_with, "case": case.plain(), "rounds": rounds, "rows": [output.row_json(row) for row in rows],
    }  # fmt: skip
    name = arguments.name or f"slime_{case.device}_{case.width}_{case.size}"
    return output.publish(arguments.out, name, title, f"{output.duel_tables(rows)}\n\n{legend}", content)


def main(words: Sequence[str] | None = None) -> int:
    chosen = list(sys.argv[1:] if words is None else words)
    arguments = make_parser().parse_args(chosen)
    return command(lambda: run(arguments, chosen))


if __name__ == "__main__":
    sys.exit(main())

"""SLiMe's optimisation step and inference: the authors' way of computing against the bench's own, in one run.

    python -m slime_bench.bench.slime --width golden --size 512

What is measured, and how to read it: docs/bench.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from slime_bench.bench.command import GB, add_case, case_of, make_main, number, publish, table, times
from slime_bench.bench.memory import Peak
from slime_bench.bench.race import Row, race
from slime_bench.bench.timing import spread
from slime_bench.bench.ways import TASKS, WAYS


def tables(rows: Sequence[Row]) -> str:
    """The rows as Markdown: times and ratios, then memory."""
    seconds, sizes = [], []
    first: dict[str, Peak] = {}
    for row in rows:
        per = [number(value / row.work) for value in dataclasses.astuple(spread(row.seconds))]
        faster = ["", ""] if row.faster is None else [times(row.faster.median), times(row.faster)]
        differs = ", ".join(f"{name} {value:.1g}" for name, value in row.differs.items())
        seconds.append([row.task, row.runner, per[0], f"{per[1]}..{per[2]}", *faster, differs])
        if row.memory is not None:
            own = row.memory
            base = first.setdefault(row.task, own)
            less = ["", ""] if base is own else [times(base.peak / max(1, own.peak)), times(base.added / own.added)]
            loaded, peak, added = (f"{value / GB:.2f}" for value in (own.loaded, own.peak, own.added))
            sizes.append([row.task, row.runner, loaded, peak, less[0], added, less[1]])
    made = table(["task", "way", "seconds", "min..max", "times faster", "min..max", "differs"], seconds)
    if not sizes:
        return made
    head = ["task", "way", "loaded GB", "peak GB", "times less", "of the task GB", "times less"]
    return f"{made}\n\n{table(head, sizes)}"


def _add(parser: argparse.ArgumentParser) -> None:
    add_case(parser)
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), metavar="WAY", help=f"among: {', '.join(WAYS)}")


def _measure(arguments: argparse.Namespace, command: str) -> str:
    ways = [name for name in WAYS if name in (arguments.ways or WAYS)]
    with case_of(arguments) as case:
        entries, memory = {name: (case, name) for name in ways}, not arguments.no_memory
        rows = race(entries, TASKS, arguments.rounds, memory)
    legend = "\n".join(f"- `{name}`: {WAYS[name].what}" for name in ways)
    title = f"SLiMe, {case.width} width, {case.size} px, {case.classes} classes, {case.device}"
    name = f"slime_{case.device}_{case.width}_{case.size}"
    measured = [dataclasses.asdict(row) | dataclasses.asdict(spread(row.seconds)) for row in rows]
    content = {"case": case.plain(), "rounds": arguments.rounds, "rows": measured}
    return publish(arguments.out, name, title, f"{tables(rows)}\n\n{legend}", case.device, command, content)


main = make_main("slime_bench.bench.slime", __doc__, _add, _measure)

if __name__ == "__main__":
    sys.exit(main(None))

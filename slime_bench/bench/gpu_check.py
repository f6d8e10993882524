"""What a machine with a GPU has to show, in at most ten minutes, with one table at the end.

    python -m slime_bench.bench.gpu_check [--minutes 10] [--out docs/results/bench]

The same numbers as the CPU, whole trials of both papers, several seeds at once, Stable Diffusion 2.1's own size (random
weights). Without CUDA it ends with a sentence. See docs/bench.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch.backends import cudnn
from torch.utils.flop_counter import FlopCounterMode

from slime_bench.bench.architecture import build_width
from slime_bench.bench.case import Case, Pictures, make_method
from slime_bench.bench.command import GB, make_main, number, publish, say, table, times
from slime_bench.bench.methods import measure as measure_trial
from slime_bench.bench.race import race
from slime_bench.bench.timing import interleave
from slime_bench.bench.ways import BARS, REFERENCE, TASKS, DifferentResultError, Fast, call_of, distances
from slime_bench.console import typed
from slime_bench.trial.device import has_cuda

NONE: Final = "There is no CUDA device here (torch {version}): nothing was checked."
SPARE: Final = 0.8
"""Share of the time after which no further part begins; what has begun is finished."""
BATCHED: Final = "batch of trials"
"""The way that fits several seeds at once, before its precision."""
TRIALS: Final = {
    "SLiMe": ["method=slime", "data=mini_car", "shots=1"],
    "InfoScore": ["preset=mini_infoscore", "method=infoscore", "data=mini_car", "shots=0"],
}
"""One whole trial of each paper on the mini world."""


@dataclass(frozen=True)
class Line:
    """A row of the table; `fine` is None for a figure without a bar."""

    part: str
    what: str
    found: str
    wanted: str = ""
    fine: bool | None = None


def parity(case: Case, device: str) -> list[Line]:
    """A step and an inference of the same draws on the CPU and on the device, both without TF32; see `BARS`."""

    def found(where: str, precision: str) -> dict[str, Any]:
        here = replace(case, device=where)
        runner, pictures = Fast([make_method(here, precision)]), Pictures(here)
        return {task: call_of(runner, pictures, task, 1)(0) for task in sorted(TASKS)}  # a step changes the embeddings

    before, cudnn.allow_tf32 = cudnn.allow_tf32, False
    try:
        wanted, lines = found("cpu", "fp32"), []
        for precision, bars in BARS.items():
            ours = found(device, precision)
            for task in sorted(TASKS):
                each = distances("", ours[task], wanted[task], precision, refuse=False)
                lines += [
                    Line(f"CPU's numbers, {precision}", f"{task}, {name}", f"{value:.1g}", f"<= {bars[name]:.1g}",
                         value <= bars[name]) for name, value in each.items()
                ]  # fmt: skip
        return lines
    finally:
        cudnn.allow_tf32 = before


def trial(name: str, settings: Sequence[str], device: str) -> list[Line]:
    """One whole trial, from nothing to its result."""
    with tempfile.TemporaryDirectory(prefix="slime-bench-") as folder:
        words = [*settings, f"output_root={Path(folder)}", f"trainer.device={device}"]
        facts = measure_trial(words)
    seconds = f"fit {number(facts['fit'])} s, test {number(facts['test'])} s"
    found = "no mIoU" if facts["mIoU"] is None else f"mIoU {facts['mIoU']:.1f} %"
    return [
        Line("a trial", f"{name}, {' '.join(settings)}", f"{found}; {seconds}", "a mIoU", facts["mIoU"] is not None)
    ]


def speed(case: Case, rounds: int, memory: bool = True) -> list[Line]:
    """`make bench` with the ways that a GPU is used in: seconds, peak memory, several seeds against one."""
    ways = (REFERENCE, "fast fp32", "fast bf16", f"{BATCHED} fp32", f"{BATCHED} bf16")
    rows = race({name: (case, name) for name in ways}, TASKS, rounds, memory=memory)
    lines, part = list[Line](), f"{case.width} width, {case.size} px"
    for row in rows:
        peak = "" if row.memory is None else f", peak {row.memory.peak / GB:.2f} GB"
        faster = "" if row.faster is None else f", {times(row.faster.median)} times as fast as the authors' way"
        lines.append(Line(part, f"{row.task}, {row.runner}", f"{number(row.seconds_of_one)} s{faster}{peak}"))
    for precision in ("fp32", "bf16"):
        one, several = (
            next(row.seconds_of_one for row in rows if (row.task, row.runner) == ("step", f"{way} {precision}"))
            for way in ("fast", BATCHED)
        )
        what = f"step, {case.trials} seeds at once against one after another, {precision}"
        lines.append(Line("seeds", what, f"{times(one / several)} times as fast"))
    return lines


def share_of_peak(case: Case, rounds: int, side: int = 8192) -> list[Line]:
    """Operations per second of a step in bfloat16 against those of one large product in it, on the same device."""
    runner, pictures = Fast([make_method(case, "bf16")]), Pictures(case)
    step = call_of(runner, pictures, "step", 1)
    pictures.prepare(rounds + 2)
    with FlopCounterMode(display=False) as counter:
        step(0)
    matrix = torch.randn(side, side, dtype=torch.bfloat16, device=case.device)
    seconds = interleave({"step": lambda turn: step(turn + 1), "product": lambda _: matrix @ matrix}, rounds)
    rates = {
        name: operations / statistics.median(seconds[name]) / 1e12
        for name, operations in (("step", counter.get_total_flops()), ("product", 2 * side**3))
    }
    what = f"step, bf16, against a product of {side} x {side}"
    share = f"{100 * rates['step'] / rates['product']:.0f} %"
    found = f"{share} ({number(rates['step'])} of {number(rates['product'])} TFLOP/s)"
    return [Line("share of the bf16 peak", what, found)]


def run(parts: Sequence[tuple[str, Callable[[], list[Line]]]], seconds: float) -> list[Line]:
    """The lines of all parts; one that fails, or has no time left, has a line that says so."""
    began, lines = time.monotonic(), list[Line]()
    for name, part in parts:
        if time.monotonic() - began > SPARE * seconds:
            lines.append(Line(name, "left out", f"the {seconds / 60:g} minutes are over"))
            continue
        say(name)
        try:
            lines += part()
        except Exception as error:
            lines.append(Line(name, "failed", " ".join(str(typed(error)).split())[:200], "", False))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return lines


def report(lines: Sequence[Line]) -> str:
    """The lines as Markdown."""
    verdict = {True: "fine", False: "NOT FINE", None: ""}
    rows = [[line.part, line.what, line.found, line.wanted, verdict[line.fine]] for line in lines]
    return table(["part", "what", "found", "expected", ""], rows)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=10.0, help="that the whole may take")
    parser.add_argument("--rounds", type=int, default=10, help="of what is timed")


def _measure(arguments: argparse.Namespace, command: str) -> str:
    if not has_cuda():
        return NONE.format(version=torch.__version__)
    with tempfile.TemporaryDirectory(prefix="slime-bench-") as folder:
        small, full = (
            Case(width, size, 6, str(Path(folder) / width), "cuda", images=images, trials=3)
            for width, size, images in (("golden", 256, 1), ("full", 512, 8))
        )

        def at_full_size() -> list[Line]:
            build_width(full.width, Path(full.weights))
            return speed(full, arguments.rounds)

        build_width(small.width, Path(small.weights))
        parts: list[tuple[str, Callable[[], list[Line]]]] = [
            ("the CPU's numbers", partial(parity, small, "cuda")),
            *((f"a trial of {name}", partial(trial, name, words, "cuda")) for name, words in TRIALS.items()),
            ("Stable Diffusion's own size", at_full_size),
            ("share of the bf16 peak", partial(share_of_peak, full, arguments.rounds)),
        ]
        lines = run(parts, 60 * arguments.minutes)
    content = {"lines": [asdict(line) for line in lines]}
    page = publish(arguments.out, "gpu_check", "GPU check", report(lines), "cuda", command, content)
    wrong = [f"{line.part}: {line.what}" for line in lines if line.fine is False]
    if wrong:
        print(page)
        raise DifferentResultError(
            "something is not fine on this GPU", found="; ".join(wrong), expected="the bars of the table above",
            remedy="see the lines that are NOT FINE",
        )  # fmt: skip
    return page


main = make_main("slime_bench.bench.gpu_check", __doc__, _add, _measure)

if __name__ == "__main__":
    sys.exit(main(None))

"""What the commands of the bench share: arguments, the case that these describe, tables, files, and how they end."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from slime_bench.bench.architecture import WIDTHS, build_width
from slime_bench.bench.case import MINI, Case
from slime_bench.bench.timing import Spread
from slime_bench.config.read import read
from slime_bench.console import exit_code, quieten, show, typed
from slime_bench.paths import user_path
from slime_bench.results.environment import environment
from slime_bench.storage import write_atomic
from slime_bench.trial.device import pick_device
from slime_bench.trial.fitting import threads

GB: Final = 1e9


def make_main(
    program: str,
    about: str | None,
    add: Callable[[argparse.ArgumentParser], object],
    measure: Callable[[argparse.Namespace, str], str],
) -> Callable[[Sequence[str] | None], int]:
    """The `main` of a command: it prints what `measure` returns, or what went wrong, and returns the exit code.

    Args:
        about: its help. add: adds its arguments.
        measure: takes the arguments and the command line, without where its files go.
    """

    def main(words: Sequence[str] | None = None) -> int:
        chosen = list(sys.argv[1:] if words is None else words)
        parser = argparse.ArgumentParser(
            prog=f"python -m {program}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        add(parser)
        parser.add_argument("--threads", type=at_least_1, help="CPU threads; torch's own choice otherwise")
        parser.add_argument("--out", type=user_path, metavar="FOLDER", help="receives the tables as Markdown and JSON")
        arguments = parser.parse_intermixed_args(chosen)
        if "--out" in chosen:
            at = chosen.index("--out")
            del chosen[at : at + 2]
        quieten()
        try:
            if arguments.out is not None:  # before anything is measured that could not be written
                arguments.out.mkdir(parents=True, exist_ok=True)
            with threads(arguments.threads, deterministic=False):
                print(measure(arguments, f"python -m {program} {shlex.join(chosen)}".strip()))
        except Exception as error:
            wrong = typed(error, "--out <folder>")
            show(wrong)
            return exit_code(wrong)
        return 0

    return main


def at_least_1(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected at least 1")
    return value


def add_case(parser: argparse.ArgumentParser) -> None:
    """What is measured on, and how."""
    add = parser.add_argument
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--width", choices=(*WIDTHS, MINI), help="golden on the CPU, full on CUDA")
    add("--size", type=int, help="side of the pictures, pixels; 512, or 128 for mini")
    add("--classes", type=int, default=6, help="background included")
    add("--patches", type=int, default=1, help="test patches per side; the authors' own default is 2")
    add("--images", type=int, help="test pictures of one call: 1 on the CPU, 8 on CUDA")
    add("--shots", type=int, default=1, help="support pictures of one step; the reference takes one")
    add("--trials", type=int, default=3, help="trials of a way that takes several at once")
    add("--rounds", type=at_least_1, help="that count: 3 on the CPU, 20 on CUDA")
    add("--no-memory", action="store_true", help="leave out the peaks, which take a process each")


@contextmanager
def case_of(arguments: argparse.Namespace) -> Iterator[Case]:
    """The case that the arguments describe, whose weights are there within the block; `rounds` is settled.

    Raises:
        ConfigError: a value outside its range. DeviceError: no CUDA.
    """
    device = pick_device(arguments.device)
    cuda = device == "cuda"
    width = arguments.width or ("full" if cuda else "golden")
    arguments.rounds = arguments.rounds or (20 if cuda else 3)
    given = {name: getattr(arguments, name) for name in ("size", "classes", "patches", "images", "shots", "trials")}
    given = {name: value for name, value in given.items() if value is not None}
    default = {"size": 128 if width == MINI else 512, "images": 8 if cuda else 1}
    with tempfile.TemporaryDirectory(prefix="slime-bench-") as folder:
        weights = "mini_sd" if width == MINI else f"{folder}/{width}"
        case = read(Case, {"width": width, "weights": weights, "device": device, **default, **given})
        if width != MINI:
            build_width(width, Path(weights))
        yield case


def say(text: str) -> None:
    """What is going on, beside the tables."""
    print(f"  ... {text}", file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown with columns that line up."""
    lines = [head, ["---"] * len(head), *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
    )


def number(value: float | None) -> str:
    """Three digits; nothing for None."""
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def times(value: Spread | float) -> str:
    """How many times: `10.9`, or `9.2..11.7` of a spread."""
    if isinstance(value, Spread):
        return f"{times(value.low)}..{times(value.high)}"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def publish(
    folder: Path | None, name: str, title: str, text: str, device: str, command: str, content: Mapping[str, Any]
) -> str:
    """What the console shows; the same goes into `<name>.md` and `<name>.json` of a folder, where one is given.

    Machine, versions, threads, commit and date are in both, and no name of a host or a user.

    Args:
        text: Markdown. content: plain JSON values.
    """
    made_with = environment(device, {}, {})
    date, load = made_with.pop("finished"), [round(value, 2) for value in os.getloadavg()]
    made_with |= {"date": date, "command": command, "load": load}
    git = made_with["git"] or {"commit": "unknown", "dirty": False}
    machine = made_with["gpu"]["name"] if made_with["gpu"] else made_with["cpu"]["model"]
    packages = ", ".join(
        f"{each} {made_with['packages'][each]}" for each in ("torch", "diffusers", "transformers", "numpy")
    )
    facts = [
        f"{machine}, threads {made_with['threads']['torch']}", packages,
        f"commit {git['commit'][:12]}{' with changes' if git['dirty'] else ''}", date, f"load {load}",
    ]  # fmt: skip
    page = f"# {title}\n\n`{command}`\n\n{'; '.join(facts)}\n\n{text}\n"
    if folder is not None:
        write_atomic(folder / f"{name}.md", page.encode())
        strict = json.dumps({"made_with": made_with, **content}, indent=1, sort_keys=True, allow_nan=False)
        write_atomic(folder / f"{name}.json", f"{strict}\n".encode())
    return page

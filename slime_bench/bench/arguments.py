"""What the commands of the bench share: arguments, the case that these describe, and how a command ends."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from slime_bench.bench.architecture import WIDTHS, build_width
from slime_bench.bench.case import MINI, Case
from slime_bench.bench.ways import WAYS
from slime_bench.console import exit_code, quieten, show, typed
from slime_bench.errors import ConfigError, StorageError
from slime_bench.trial.device import pick_device
from slime_bench.trial.fitting import threads

MINI_WEIGHTS = "mini_sd"


def add_case(parser: argparse.ArgumentParser) -> None:
    """What is measured on."""
    group = parser.add_argument_group("what is measured on")
    group.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    group.add_argument("--threads", type=int, help="CPU threads; torch's own choice otherwise")
    group.add_argument("--width", choices=(*WIDTHS, MINI), help="golden on the CPU, full on CUDA")
    group.add_argument("--size", type=int, help="side of the pictures, pixels; 512, or 128 for mini")
    group.add_argument("--classes", type=int, default=6, help="background included")
    group.add_argument("--patches", type=int, default=1, help="test patches per side; the authors' own default is 2")
    group.add_argument("--images", type=int, help="test pictures of one call: 1 on the CPU, 8 on CUDA")
    group.add_argument("--shots", type=int, default=1, help="support pictures of one step; the reference takes one")
    group.add_argument("--trials", type=int, default=3, help="trials of a way that takes several at once")
    group.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings, of every way")


def add_rounds(parser: argparse.ArgumentParser) -> None:
    """How it is measured, and where to."""
    group = parser.add_argument_group("how it is measured")
    group.add_argument("--rounds", type=int, help="that count: 3 on the CPU, 20 on CUDA")
    group.add_argument("--warmup", type=int, default=1, help="rounds before these, at least 1")
    group.add_argument("--no-memory", action="store_true", help="leave out the peaks, which take a process each")
    group.add_argument("--out", type=Path, help="folder for the tables as Markdown and JSON")
    group.add_argument("--name", help="of these files")


@contextmanager
def case_of(arguments: argparse.Namespace) -> Iterator[Case]:
    """The case that the arguments describe; its weights, and torch's threads, are there within the block.

    Raises:
        ConfigError: a value outside its range. DeviceError: no CUDA.
    """
    at_least_1(arguments, "rounds", "warmup", "threads")
    device = pick_device(arguments.device)
    width = arguments.width or ("full" if device == "cuda" else "golden")
    defaults = {"size": 128 if width == MINI else 512, "images": 8 if device == "cuda" else 1}
    size, images = (defaults[name] if (given := getattr(arguments, name)) is None else given for name in defaults)
    with tempfile.TemporaryDirectory(prefix="slime-bench-") as folder:
        weights = MINI_WEIGHTS if width == MINI else str(Path(folder) / width)
        case = Case(
            width, size, arguments.classes, weights, device, arguments.patches, images, arguments.shots,
            arguments.trials, tuple(arguments.set),
        )  # fmt: skip
        if width != MINI:
            build_width(width, Path(weights))
        with threads(arguments.threads, deterministic=False):
            yield case


def at_least_1(arguments: argparse.Namespace, *names: str) -> None:
    """Check whole numbers that were given.

    Raises:
        ConfigError: one of them is smaller.
    """
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError("a number is too small", path=f"--{name}", found=value, expected="at least 1")


def rounds_of(arguments: argparse.Namespace, case: Case) -> int:
    """Rounds that count."""
    return arguments.rounds or (20 if case.device == "cuda" else 3)


def ways_of(names: Sequence[str] | None) -> list[str]:
    """The ways of these names, in the order of `WAYS`; all of them for None.

    Raises:
        ConfigError: an unknown name.
    """
    for name in names or ():
        if name not in WAYS:
            raise ConfigError("no such way of computing", path="--ways", found=name, expected=", ".join(WAYS))
    return [name for name in WAYS if names is None or name in names]


def command_of(program: str, words: Sequence[str]) -> str:
    """The command line of a run; where its files went is left out."""
    kept = list(words)
    if "--out" in kept:
        at = kept.index("--out")
        del kept[at : at + 2]
    return f"python -m {program} {shlex.join(kept)}".strip()


def command(measure: Callable[[], str]) -> int:
    """Print what `measure` returns, or what went wrong, as every command of the bench does.

    Returns:
        The exit code.
    """
    quieten()
    try:
        print(measure())
    except Exception as error:
        wrong = typed(error)
        show(wrong)
        return exit_code(wrong)
    return 0


def make_folder(folder: Path | None) -> None:
    """Make the folder of `--out`, if one was asked for, before anything is measured that could not be written.

    Raises:
        StorageError: it cannot be made, or nothing can be written there.
    """
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StorageError(
            "the tables cannot be written", path=f"--out {folder}", found=error.strerror,
            expected="a folder, or a place where one can be made", remedy="choose another folder, or leave --out out",
        ) from error  # fmt: skip


def say(text: str) -> None:
    """What is going on, beside the tables."""
    print(f"  ... {text}", file=sys.stderr, flush=True)

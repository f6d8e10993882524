"""How the commands of data_prep end: a message for a person and an exit code, never a traceback unasked.

Exit codes: 0 done; 2 a mistake that the user can mend; 1 an unexpected error; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Final

from slime_bench.console import exit_code, printable, show
from slime_bench.errors import StorageError
from slime_bench.paths import user_path

INTERRUPTED: Final = 130


def run(main: Callable[[list[str]], int]) -> int:
    """Call `main` with the process's arguments and return the exit code, showing errors as `slime-bench` does.

    Use as `sys.exit(run(main))`. argparse's own exits pass through; HYDRA_FULL_ERROR=1 shows the traceback as well.
    """
    printable()
    try:
        return main(sys.argv[1:])
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on where this one stopped", file=sys.stderr, flush=True)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head -1`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - keeps Python's last flush from failing too
        return 1
    except Exception as error:
        mended = StorageError.of(error, option="--out") if isinstance(error, OSError) else error
        show(mended)
        return exit_code(mended)


def plain_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The command line of `python -m data_prep.<name>`."""
    return argparse.ArgumentParser(
        prog=f"python -m data_prep.{name}", description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip


def parser_of(name: str, description: str | None, out: str) -> argparse.ArgumentParser:
    """`plain_parser` with what every command takes that builds a data set.

    Args:
        out: an example for `--out`.
    """
    parser = plain_parser(name, description)
    add = parser.add_argument
    add("--out", type=user_path, help=f"the data set's folder, e.g. {out}")
    add("--work", type=user_path, help="where archives are unpacked (default: raw/ beside --out)")
    add("--workers", type=int, default=0, help="processes (default: one for each processor)")
    add(
        "--faulty", choices=("stop", "skip"), default="stop",
        help="faulty source files: name them all and stop, or leave them out and list them in the manifest",
    )  # fmt: skip
    add("--force", action="store_true", help="replace a prepared data set that has other settings")
    return parser

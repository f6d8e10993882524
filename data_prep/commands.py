"""How the commands of data_prep end: a message for a person and an exit code, never a traceback unasked.

Exit codes: 0 done; 2 a mistake that the user can mend; 1 an unexpected error; 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from slime_bench.errors import SlimeBenchError, StorageError

INTERRUPTED: Final = 130

_REMEDIES: Final = {
    errno.ENOSPC: "free space on the disk or choose another --out; the same command goes on where this one stopped",
    errno.EDQUOT: "free space within your quota or choose another --out; the same command goes on where it stopped",
    errno.EACCES: "mend the permissions, or choose another --out",
    errno.EPERM: "mend the permissions, or choose another --out",
    errno.EROFS: "the file system is read-only: choose another --out",
    errno.ENOTDIR: "a file stands where a folder is needed: move it away, or choose another --out",
    errno.EEXIST: "a file stands where a folder is needed: move it away, or choose another --out",
    errno.EMFILE: "raise the number of open files (`ulimit -n`), or take fewer --workers",
}


def run(main: Callable[[list[str]], int]) -> int:
    """Call `main` with the process's arguments and return the exit code, showing errors as `slime-bench` does.

    Use as `sys.exit(run(main))`. argparse's own exits pass through; HYDRA_FULL_ERROR=1 shows the traceback as well.
    """
    from slime_bench.cli import show

    try:
        return int(main(sys.argv[1:]) or 0)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on where this one stopped", file=sys.stderr, flush=True)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head -1`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - keeps Python's last flush from failing too
        return 1
    except OSError as error:
        mended = storage_error(error)
        show(mended)
        return mended.exit_code
    except Exception as error:
        show(error)
        return error.exit_code if isinstance(error, SlimeBenchError) else 1


def build_options(parser: argparse.ArgumentParser, example: str) -> None:
    """Adds what every command takes that builds a data set; `example` is one for `--out`."""

    def processes(text: str) -> int:
        if int(text) < 0:
            raise argparse.ArgumentTypeError(f"{text}: 1 or more, or 0 for one per processor")
        return int(text)

    add = parser.add_argument
    add("--out", type=Path, help=f"the data set's folder, e.g. {example}")
    add("--work", type=Path, help="where archives are unpacked (default: raw/ beside --out)")
    add("--workers", type=processes, default=0, help="processes (default: one for each processor)")
    add(
        "--faulty", choices=("stop", "skip"), default="stop",
        help="faulty source files: name them all and stop, or leave them out and list them in the manifest",
    )  # fmt: skip
    add("--force", action="store_true", help="replace a prepared data set that has other settings")


def storage_error(error: OSError, path: str | Path | None = None) -> StorageError:
    """What the system says about a disk, a permission or a name, as a typed error with a remedy.

    Args:
        error: as caught.
        path: the file or folder at fault, where the error does not name it.
    """
    mended = StorageError(
        "a file or folder cannot be read or written",
        path=path or error.filename,
        found=error.strerror or str(error),
        remedy=_REMEDIES.get(error.errno or 0, "check this file and the folder it lies in, or choose another --out"),
    )
    mended.__cause__ = error
    return mended

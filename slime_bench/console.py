"""What a person at the terminal sees: errors as messages with a remedy, and not what the libraries have to say."""

from __future__ import annotations

import codecs
import errno
import io
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from slime_bench.errors import SlimeBenchError, StorageError

FULL_ERROR = "HYDRA_FULL_ERROR"
STORAGE = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR,
    errno.ENAMETOOLONG,
}  # fmt: skip
NOISY = (
    "lightning", "pytorch_lightning", "torchmetrics", "diffusers", "transformers", "huggingface_hub", "torch", "hydra",
    "omegaconf", "PIL", "matplotlib",
    # torch sets the level of its own root when it is imported.
    "torch.distributed", "torch.distributed.elastic.multiprocessing.redirects",
    # Lightning sets the level of its own root when it is imported; what it says comes from these.
    "lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero",
    "lightning.pytorch.trainer.connectors.signal_connector",
)  # fmt: skip


STAND_INS = {
    "±": "+-",
    "−": "-",
    "–": "-",
    "×": "x",
    "≤": "<=",
    "≥": ">=",
    "…": "...",
    "Δ": "diff.",
    "→": "->",
    "·": ".",
}
"""What is printed for a sign of the bench's own that the terminal's encoding lacks."""


WARNINGS = (
    r"Image size \(\d+ pixels\) exceeds limit",  # whether a picture is too large is for the bench to say
    r"Glyph \d+ .*missing from",
)
"""Beginnings of warnings that a library attributes to whoever called it, and no filter by its name would catch."""


def printable() -> None:
    """Let stdout and stderr print any text: what their encoding lacks is replaced."""
    codecs.register_error("slime_bench", _stand_in)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="slime_bench")


def _stand_in(error: UnicodeError) -> tuple[str | bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    sign = error.object[error.start]
    if sign in STAND_INS:
        return STAND_INS[sign], error.start + 1
    one = UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    return codecs.backslashreplace_errors(one)


def quieten() -> None:
    """Keep the libraries' advice out of the way of the bench's own lines; `python -W default` brings it back."""
    printable()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):  # they too set their levels when imported
        os.environ.setdefault(name, "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of distributed starts, about names of hosts
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not sys.warnoptions and os.environ.get(FULL_ERROR) != "1":
        warnings.filterwarnings("ignore", module=rf"({'|'.join(NOISY)})(\.|$)")
        for beginning in WARNINGS:
            warnings.filterwarnings("ignore", message=beginning)


@contextmanager
def heard(library: str) -> Iterator[None]:
    """Let a library that writes to the root's handlers say all it has to say, by none but its own of them."""
    root, logger = logging.getLogger(), logging.getLogger(library)
    saved, levels = root.handlers[:], (root.level, logger.level)
    root.handlers.clear()
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        root.handlers[:] = saved
        root.setLevel(levels[0])
        logger.setLevel(levels[1])


def show(error: BaseException) -> None:
    """Print an error for a person: message and remedy, and the traceback only where it was asked for."""
    if os.environ.get(FULL_ERROR) == "1":
        traceback.print_exception(error)
    else:
        say(text_of(error), expected=isinstance(error, SlimeBenchError))


def say(text: str, *, expected: bool) -> None:
    """Print the text of an error. One that is not `expected` is not the user's to mend."""
    hint = f"\n  what to do: set {FULL_ERROR}=1 for the traceback, and report this if it looks like a bug"
    print(f"error: {text}" if expected else f"unexpected error: {text}{hint}", file=sys.stderr, flush=True)


def text_of(error: BaseException) -> str:
    """An error in words; the first line is a summary."""
    if isinstance(error, SlimeBenchError):
        return str(error)
    notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", []))
    return f"{type(error).__name__}: {error}{notes}"


def exit_code(error: Exception) -> int:
    """2 for what the user can mend, 1 for anything unexpected."""
    return error.exit_code if isinstance(error, SlimeBenchError) else 1


def typed(error: Exception, option: str | None = "output_root=<folder>") -> Exception:
    """A StorageError for what the system says about a disk or a permission; any other error as it is.

    Args:
        option: see `StorageError.of`.
    """
    cause = error.__cause__
    if isinstance(cause, OSError) and str(error) == str(StorageError.of(cause, getattr(error, "path", None))):
        said, path = cause, getattr(error, "path", None)  # `write_atomic` does not know whose file it writes
    elif isinstance(error, OSError) and error.errno in STORAGE:
        said, path = error, None
    else:
        return error
    wrapped = StorageError.of(said, path, option)
    wrapped.__cause__ = said
    return wrapped


@contextmanager
def environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set, or with None remove, environment variables for a while."""
    saved = {name: os.environ.get(name) for name in values}
    assign(values)
    try:
        yield
    finally:
        assign(saved)


def assign(values: Mapping[str, str | None]) -> None:
    """Set, or with None remove, environment variables."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def terminable() -> Iterator[None]:
    """Take SIGTERM, as of `kill` or of a batch system, for Ctrl-C: trials that run elsewhere are ended, too."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # where Python hears no signals
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_interrupt(error: BaseException) -> bool:
    """Lightning answers Ctrl-C during `fit` with `sys.exit(1)` inside its handler."""
    return isinstance(error.__context__, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt)

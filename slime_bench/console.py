"""What a person at the terminal sees: errors as messages with a remedy, and not what the libraries have to say."""

from __future__ import annotations

import errno
import logging
import os
import sys
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
    "omegaconf", "PIL",
    # Lightning sets the level of its own root when it is imported; what it says comes from these two.
    "lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero",
)  # fmt: skip


def quieten() -> None:
    """Keep the libraries' advice out of the way of the bench's own lines; `python -W default` brings it back."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):  # they too set their levels when imported
        os.environ.setdefault(name, "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not sys.warnoptions and os.environ.get(FULL_ERROR) != "1":
        warnings.filterwarnings("ignore", module=rf"({'|'.join(NOISY)})(\.|$)")


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


def typed(error: Exception) -> Exception:
    """A StorageError for what the system says about a disk or a permission; any other error as it is."""
    if not (isinstance(error, OSError) and error.errno in STORAGE):
        return error
    wrapped = StorageError.of(error)
    wrapped.__cause__ = error
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


def is_interrupt(error: BaseException) -> bool:
    """Lightning answers Ctrl-C during `fit` with `sys.exit(1)` inside its handler."""
    return isinstance(error.__context__, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt)

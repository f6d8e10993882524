"""The command `slime-bench`: Hydra's entry point, the subcommands, and the way errors and interruptions end.

Exit codes: 0 all trials finished; 2 a mistake that the user can mend; 1 an unexpected error; 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from omegaconf import DictConfig

from slime_bench.errors import SlimeBenchError, StorageError

FULL_ERROR = "HYDRA_FULL_ERROR"
INTERRUPTED = 130
STORAGE = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
}  # fmt: skip
SUBCOMMANDS = {
    "report": "slime_bench.report.command",
    "segment": "slime_bench.segment",
    "verify": "slime_bench.verify_command",
    "embeddings": "slime_bench.embeddings_command",
}
NOISY = (
    "lightning", "pytorch_lightning", "torchmetrics", "diffusers", "transformers", "huggingface_hub", "torch", "hydra",
    "omegaconf",
    # Lightning sets the level of its own root when it is imported; what it says comes from these two.
    "lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero",
)  # fmt: skip
USAGE = """\
slime-bench – few-shot segmentation from the attention of frozen models

one trial      slime-bench method=slime data=mini_car shots=1 seed=0
a sweep        slime-bench --multirun seed=0,1,2 shots=1,10
a table        slime-bench --multirun experiment=mini_car
an ablation    slime-bench --multirun experiment=mini_car ablation=lr
tables, plots  slime-bench report --subject car
               slime-bench report --ablation lr experiment=mini_car
own images     slime-bench segment --image car.jpg --mask car.png --images photos --out masks
check data     slime-bench verify data=pascal_part_car
embeddings     slime-bench embeddings --help     to and from the form of SLiMe's authors

slime-bench --help        the groups of the configuration and their options
slime-bench --cfg job     the composed configuration; any key of it can be given as key=value
slime-bench --version

A finished trial is not run again; an interrupted sweep goes on where it stopped when the same command is repeated.
Keys and passwords go into the environment (WANDB_API_KEY, HF_TOKEN), never on the command line.
"""


@dataclass
class Outcomes:
    """What became of the trials of one command.

    Attributes:
        planned: trials that the command asks for.
        started: trials that were begun.
        failures: (trial, error) of those that failed.
    """

    planned: int
    started: int = 0
    failures: list[tuple[str, Exception]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        # An unexpected error (1) outweighs a user's (2).
        return min((_exit_code(error) for _, error in self.failures), default=0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name; by default the process's) and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _quieten()
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as error:  # argparse, and Hydra's own flags
        return _interrupted() if _is_interrupt(error) else _code(error)
    except BrokenPipeError:  # the reader of our output has gone, as in `slime-bench help | head -1`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - keeps Python's last flush from failing too
        return 1
    except Exception as error:
        mended = _typed(error)
        show(mended)
        return _exit_code(mended)


def _dispatch(arguments: list[str]) -> int:
    first = arguments[0] if arguments else ""
    if first == "help":
        print(USAGE, end="")
        return 0
    if first == "--version":
        print(f"slime-bench {importlib.metadata.version('slime-bench')}")
        return 0
    if first in SUBCOMMANDS:
        command = importlib.import_module(SUBCOMMANDS[first])
        return int(command.main(arguments[1:]) or 0)
    return _trials(arguments)


def _trials(arguments: list[str]) -> int:
    # Hydra takes a quarter of a second to import, which the subcommands need not spend.
    import hydra
    from hydra._internal.utils import get_args_parser

    from slime_bench import compose
    from slime_bench.paths import config_dir

    compose.refuse_secrets(arguments)
    args = get_args_parser().parse_args(arguments)
    compose.new_stamp()
    shows_only = args.help or args.hydra_help or args.info is not None or args.shell_completion
    if shows_only or args.experimental_rerun is not None:
        wanted, plan = arguments, None
    else:
        plan = compose.plan(args.overrides, sweep=args.multirun, extra_dir=args.config_dir)
        added = [each for each in plan.overrides if each not in args.overrides]
        replaced = {each.lstrip("+") for each in added}
        wanted = [each for each in arguments if each not in replaced] + added
    outcomes = Outcomes(planned=len(plan.trials) if plan else 1)
    entry = hydra.main(
        config_path=str(config_dir()), config_name=compose.CONFIG_NAME, version_base=compose.VERSION_BASE
    )
    task = _task(outcomes, tracebacks=os.environ.get(FULL_ERROR))
    try:
        # With the flag Hydra raises its errors, instead of printing them and exiting.
        with _as_process(wanted), _environment(FULL_ERROR, "1"), compose.translated():
            entry(task)()
    finally:
        if plan is not None:
            _remove_if_empty(str(plan.folder), str(plan.folder.parent))
    _summarise(outcomes)
    return outcomes.exit_code


def _task(outcomes: Outcomes, tracebacks: str | None) -> Callable[[DictConfig], None]:
    """The function that Hydra calls for each trial.

    It keeps errors to itself: Hydra would show the first one only, as a traceback, and after all the other trials.

    Args:
        tracebacks: the user's own value of the variable HYDRA_FULL_ERROR.
    """

    def task(cfg: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        from slime_bench import trial
        from slime_bench.schema import validate

        if outcomes.failures and not cfg.launcher.keep_going:
            return
        outcomes.started += 1
        name = " ".join(HydraConfig.get().overrides.task) or "the default trial"
        if outcomes.planned > 1:
            print(f"[{outcomes.started}/{outcomes.planned}] {name}", file=sys.stderr, flush=True)
        with _environment(FULL_ERROR, tracebacks):
            try:
                trial.run(validate(cfg))
            except SystemExit as error:
                if _is_interrupt(error):
                    raise KeyboardInterrupt from error
                raise
            except Exception as error:
                mended = _typed(error)
                known = str(mended) in {str(earlier) for _, earlier in outcomes.failures}
                outcomes.failures.append((name, mended))
                if known:
                    print(f"error: {str(mended).splitlines()[0]} (as above)", file=sys.stderr, flush=True)
                else:
                    show(mended)

    return task


def show(error: BaseException) -> None:
    """Print an error for a person: message and remedy, and the traceback only where it was asked for."""
    if os.environ.get(FULL_ERROR) == "1":
        traceback.print_exception(error)
    elif isinstance(error, SlimeBenchError):
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", []))
        hint = f"\n  what to do: set {FULL_ERROR}=1 for the traceback, and report this if it looks like a bug"
        print(f"unexpected error: {type(error).__name__}: {error}{notes}{hint}", file=sys.stderr, flush=True)


def _summarise(outcomes: Outcomes) -> None:
    """After a sweep: which trials failed, each reason once, however many trials share it."""
    if outcomes.planned < 2 or not outcomes.failures:
        return
    skipped = outcomes.planned - outcomes.started
    finished = outcomes.started - len(outcomes.failures)
    left = f", {skipped} left out" if skipped else ""
    lines = [f"\n{finished} of {outcomes.planned} trials finished, {len(outcomes.failures)} failed{left}:"]
    reasons: dict[str, list[str]] = {}
    for name, error in outcomes.failures:
        reason = str(error) if isinstance(error, SlimeBenchError) else f"{type(error).__name__}: {error}"
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        lines += [*(f"  {name}" for name in names), *(f"    {line}" for line in reason.splitlines())]
    lines.append("Finished trials are kept; the same command runs only those that are missing.")
    print("\n".join(lines), file=sys.stderr, flush=True)


def _interrupted() -> int:
    print(
        "\ninterrupted: finished trials are kept, and the same command goes on where this one stopped",
        file=sys.stderr,
        flush=True,
    )
    return INTERRUPTED


def _is_interrupt(error: SystemExit) -> bool:
    """Lightning answers Ctrl-C during `fit` with `sys.exit(1)` inside its handler."""
    return isinstance(error.__context__, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt)


def _code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr)
    return 1


def _exit_code(error: Exception) -> int:
    return error.exit_code if isinstance(error, SlimeBenchError) else 1


def _typed(error: Exception) -> Exception:
    """A StorageError for what the system says about a disk or a permission; any other error as it is."""
    if not (isinstance(error, OSError) and error.errno in STORAGE):
        return error
    wrapped = StorageError(
        "a file cannot be written or read",
        path=error.filename,
        found=error.strerror,
        expected="a folder with the right permissions, on a disk with free space",
        remedy="free some space or mend the permissions, or choose another folder with output_root=<folder>",
    )
    wrapped.__cause__ = error
    return wrapped


@contextmanager
def _as_process(arguments: Sequence[str]) -> Iterator[None]:
    """Let Hydra see `arguments` as the process's own."""
    saved = sys.argv
    sys.argv = [saved[0] if saved else "slime-bench", *arguments]
    try:
        yield
    finally:
        sys.argv = saved


@contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """Set, or with None remove, an environment variable for a while."""

    def assign(text: str | None) -> None:
        if text is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = text

    saved = os.environ.get(name)
    assign(value)
    try:
        yield
    finally:
        assign(saved)


def _remove_if_empty(*folders: str) -> None:
    for folder in folders:
        try:
            os.rmdir(folder)
        except OSError:
            return


def _quieten() -> None:
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


if __name__ == "__main__":
    sys.exit(main())

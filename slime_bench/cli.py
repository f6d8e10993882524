"""The command `slime-bench`: Hydra's entry point, the subcommands, and the way errors and interruptions end.

Exit codes: 0 all trials finished; 1 a trial of a sweep failed, or something unexpected did; 2 a mistake that the user
can mend, of the command or of its only trial; 130 interrupted, by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from slime_bench.console import (
    FULL_ERROR,
    environment,
    exit_code,
    heard,
    is_interrupt,
    quieten,
    show,
    terminable,
    typed,
)
from slime_bench.errors import ConfigError

if TYPE_CHECKING:
    from slime_bench.sweep.launcher import Command

INTERRUPTED = 130
STOPPED = "interrupted: finished trials are kept, and the same command goes on where this one stopped"
SUBCOMMANDS = {
    "report": "slime_bench.report.command",
    "status": "slime_bench.sweep.status",
    "compare": "slime_bench.report.compare",
    "segment": "slime_bench.segment.command",
    "figure": "slime_bench.figures.command",
    "app": "slime_bench.app.command",
    "verify": "slime_bench.data.verify_command",
    "embeddings": "slime_bench.segment.embeddings_command",
}
PLACES = {"report": "--out", "segment": "--out", "embeddings": "--out", "figure": "--out"}
"""By which option a subcommand is told where to write; the others only read."""
HALTED = {
    "segment": "interrupted: embeddings that are learnt and images that are segmented are kept, and the same command "
    "does the rest; learning that had not ended starts anew"
}
"""What becomes of an interrupted subcommand's work, where it is more than a moment's."""
USAGE = """\
slime-bench – few-shot segmentation from the attention of frozen models

one trial      slime-bench method=slime data=mini_car shots=1 seed=0
a sweep        slime-bench --multirun seed=0,1,2 shots=1,10
a table        slime-bench --multirun experiment=mini_car
an ablation    slime-bench --multirun experiment=mini_car ablation=lr
tables, plots  slime-bench report --subject car        as text, LaTeX and HTML
               slime-bench report experiment=mini_car  of one sweep's trials
               slime-bench report --ablation lr experiment=mini_car
how far        slime-bench status experiment=mini_car  done, running, missing
two runs       slime-bench compare RUN_A RUN_B         what differs
own images     slime-bench segment --image car.jpg --mask car.png \\
                 --images photos --out masks
               slime-bench app                         on a page in the browser
figures        slime-bench figure 5                    SLiMe's, mini world
               slime-bench figure --support car.jpg --mask car.png \\
                 --queries photos --methods slime,feature_probe
check data     slime-bench verify data=pascal_part_car
embeddings     slime-bench embeddings --help           to, from SLiMe's authors

slime-bench --help        the groups of the configuration and their options
slime-bench --cfg job     the configuration; give any of its keys as key=value
slime-bench --version

A finished trial is not run again; an interrupted sweep goes on where it stopped
when the same command is repeated. Keys and passwords go into the environment
(WANDB_API_KEY, HF_TOKEN), never on the command line.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name; by default the process's) and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments and arguments[0] in SUBCOMMANDS else None
    quieten()
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt:
        return _interrupted(command)
    except SystemExit as error:  # argparse, and Hydra's own flags
        return _interrupted(command) if is_interrupt(error) else _code(error)
    except BrokenPipeError:  # the reader of our output has gone, as in `slime-bench help | head -1`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - keeps Python's last flush from failing too
        return 1
    except Exception as error:
        mended = typed(error) if command is None else typed(error, PLACES.get(command))
        show(mended)
        return exit_code(mended)


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
        if first == "report":  # which reads files only: what becomes of trials without a result is told to it
            from slime_bench.sweep.status import planned_trials

            return int(command.main(arguments[1:], planned_trials) or 0)
        return int(command.main(arguments[1:]) or 0)
    return _trials(arguments)


def _trials(arguments: list[str]) -> int:
    # Hydra takes a quarter of a second to import, which the subcommands need not spend.
    from hydra._internal.utils import get_args_parser

    from slime_bench.config import compose
    from slime_bench.config.read import nearest
    from slime_bench.sweep import launcher

    first = arguments[0] if arguments else ""
    if first and "=" not in first and first[0] not in "-~":  # neither an override nor an option
        close = nearest(first.casefold(), [*SUBCOMMANDS, "help"], count=1)
        raise ConfigError(
            "there is no such command", found=first, expected=f"key=value, or one of {', '.join(SUBCOMMANDS)}",
            remedy=f"did you mean `slime-bench {close[0]}`?" if close else "`slime-bench help` lists what there is",
        )  # fmt: skip
    compose.refuse_secrets(arguments)
    arguments = compose.with_home(arguments)
    args = get_args_parser().parse_intermixed_args(arguments)
    # Hydra's own reading stops at the first option after an override.
    arguments = [*args.overrides, *_without(arguments, args.overrides)]
    compose.new_stamp()
    if args.cfg is not None:  # Hydra would print what is not valid, too
        compose.plan(args.overrides, sweep=args.multirun, extra_dir=args.config_dir)
    else:
        compose.check_ablation(args.overrides, args.config_dir)
    launcher.register()
    command = launcher.Command(os.environ.get(FULL_ERROR))
    try:
        with terminable(), nullcontext() if args.info is None else heard("hydra"):
            compose.with_additions(arguments, lambda texts: _by_hydra(texts, command))
        if command.error is not None:
            raise command.error
    finally:
        command.tidy()
    codes = [each.exit_code for each in command.results]
    return 1 if len(codes) > 1 and any(codes) else max(codes, default=0)


def _without(texts: Sequence[str], some: Sequence[str]) -> list[str]:
    """`texts` without those of `some`, each of which is taken out once."""
    left, kept = Counter(some), []
    for text in texts:
        if left[text]:
            left[text] -= 1
        else:
            kept.append(text)
    return kept


def _by_hydra(arguments: list[str], command: Command) -> None:
    """Hydra's own entry point; it runs a sweep by this bench's launcher, and calls `command` for a single trial."""
    import hydra

    from slime_bench.config import compose
    from slime_bench.paths import config_dir

    entry = hydra.main(
        config_path=str(config_dir()), config_name=compose.CONFIG_NAME, version_base=compose.VERSION_BASE
    )
    # With the flag Hydra raises its errors, instead of printing them and exiting.
    with _as_process(arguments), environment({FULL_ERROR: "1"}), compose.translated():
        entry(command)()


def _interrupted(command: str | None) -> int:
    said = STOPPED if command is None else HALTED.get(command, "interrupted")
    print(f"\n{said}", file=sys.stderr, flush=True)
    return INTERRUPTED


def _code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr)
    return 1


@contextmanager
def _as_process(arguments: Sequence[str]) -> Iterator[None]:
    """Let Hydra see `arguments` as the process's own."""
    saved = sys.argv
    sys.argv = [saved[0] if saved else "slime-bench", *arguments]
    try:
        yield
    finally:
        sys.argv = saved


if __name__ == "__main__":
    sys.exit(main())

"""SLURM's commands as far as submitit uses them, this machine as the cluster: `install` writes them into a folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

NAMES = ("sbatch", "srun", "sacct", "scancel")


def install(folder: Path) -> None:
    """Write the commands; `folder` has to come first in PATH. The jobs' state is kept in `folder/jobs`."""
    (folder / "jobs").mkdir(parents=True)
    for name in NAMES:
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} {name} {folder / "jobs"} "$@"\n')
        path.chmod(0o755)


def sbatch(state: Path, arguments: list[str]) -> None:
    """Start the script, once for every task of its array, in sessions of their own."""
    import re
    import subprocess

    script = Path(arguments[-1])
    if "--partition=closed" in script.read_text():
        sys.exit("sbatch: error: invalid partition specified: closed")
    found = re.search(r"^#SBATCH --array=(\d+)-(\d+)", script.read_text(), re.MULTILINE)
    (state / "script").write_text(script.read_text())
    number = 1000 + len(list(state.glob("*.pid")))
    for task in range(int(found[1]), int(found[2]) + 1) if found else [None]:
        name = str(number) if task is None else f"{number}_{task}"
        extra = {} if task is None else {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(task)}
        facts = {"SLURM_JOB_ID": str(number), "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
        more = {"SLURM_NODEID": "0", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "here", "TWIN_NAME": name}
        process = subprocess.Popen(
            ["bash", str(script)], env={**os.environ, **facts, **more, **extra}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        (state / f"{name}.pid").write_text(str(process.pid))
    print(f"Submitted batch job {number}")


def srun(state: Path, arguments: list[str]) -> None:
    """`srun --unbuffered --output O --error E command...`: the command, with its output in the files."""
    name = os.environ["TWIN_NAME"]
    number, _, task = name.partition("_")
    while arguments[0].startswith("--"):
        flag, value = arguments.pop(0), ""
        if flag in ("--output", "--error"):
            value = arguments.pop(0)
            for sign, text in (("%A", number), ("%a", task), ("%j", name), ("%t", "0")):
                value = value.replace(sign, text)
            os.makedirs(os.path.dirname(value), exist_ok=True)  # submitit makes it a moment after `sbatch`
            descriptor = os.open(value, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1 if flag == "--output" else 2)
    os.execvp(arguments[0], arguments)


def sacct(state: Path, arguments: list[str]) -> None:
    print("JobID|State|NodeList")
    for path in sorted(state.glob("*.pid")):
        running = Path(f"/proc/{path.read_text()}").exists()
        ended = "CANCELLED" if path.with_suffix(".cancelled").exists() else "COMPLETED"
        print(f"{path.stem}|{'RUNNING' if running else ended}|here")


def scancel(state: Path, arguments: list[str]) -> None:
    import signal

    (state / f"{arguments[0]}.cancelled").touch()
    os.killpg(int((state / f"{arguments[0]}.pid").read_text()), signal.SIGKILL)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), sys.argv[3:])

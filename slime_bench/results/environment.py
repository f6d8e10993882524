"""What a trial's numbers were made with and what they cost: `environment.json` beside `result.json`.

By design nothing here decides a number, so none of it is part of the signature; it is what one looks at when two
machines disagree all the same (`slime-bench compare`). No name of a host or user is in it, and `~` is the home folder.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

ENVIRONMENT_FILE: Final = "environment.json"
_SECONDS: Final = 10  # that git or nvidia-smi may take

_PACKAGE: Final = "slime-bench"
_ALWAYS: Final = (
    "torch", "diffusers", "transformers", "lightning", "torchmetrics", "hydra-core", "numpy", "pillow", "wandb",
)  # fmt: skip
"""What is listed also where the bench is not installed and nobody knows what it requires."""
_ALSO: Final = ("accelerate", "triton", "xformers", "flash-attn", "torchvision")
"""What the libraries use where it is there, without the bench asking for it."""
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG")

_whole_process = True
"""Whether the peak of the CPU's memory is that of the whole process, and not of the trial alone: see `reset_peaks`."""


def environment(device: str, seconds: Mapping[str, float], fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """The facts of a trial that has just been tested, in this process.

    Args:
        device: `cpu` or `cuda`, on which it computed.
        seconds: of its parts.
        fingerprints: sha256 of the backbone's weights (`backbone`), of the data set's manifest (`data`), and of what
            else the configuration only points to.

    Returns:
        Plain JSON values. Memory is in bytes; None where the system does not say. `peak_rss_bytes` is this process's
        own (a loader's workers are processes of their own) and, where `peak_rss_of` says `process`, that of earlier
        trials of the same process as well.
    """
    import torch

    cuda = device == "cuda"
    name = torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    facts = {
        "packages": packages(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": git_state(),
        "device": name,
        "cpu": cpu(),
        "gpu": gpu() if cuda else None,
        "threads": {
            "torch": torch.get_num_threads(),
            "interop": torch.get_num_interop_threads(),
            **{name: os.environ.get(name) for name in _THREAD_VARIABLES},
        },
        "arithmetic": {
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "float32_matmul": torch.get_float32_matmul_precision(),
            "cudnn_tf32": torch.backends.cudnn.allow_tf32 if cuda else None,
        },
        "fingerprints": dict(fingerprints),
        "seconds": dict(seconds),
        "peak_rss_bytes": peak_rss(),
        "peak_rss_of": "process" if _whole_process else "trial",
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return {key: without_home(value) for key, value in facts.items()}


def reset_peaks(device: str) -> None:
    """Let the peaks of memory count from now on: trials of a sweep share a process.

    Linux lets a process reset its own; elsewhere the peak stays that of the process, and the facts say so.
    """
    global _whole_process
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        _whole_process = True
    else:
        _whole_process = False


def peak_rss() -> int | None:
    """Most memory that this process held in RAM, in bytes."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


@functools.cache
def packages() -> dict[str, str | None]:
    """Versions of all that the bench requires, its installed extras included, and of what its libraries also use.

    None for a requirement that is not installed.
    """
    try:
        required = metadata.requires(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        required = []
    wanted = {_PACKAGE, *_ALWAYS}
    extras = set(_ALSO)
    for line in required:
        name = _name(line)
        if "extra ==" not in line:
            wanted.add(name)
        elif not re.search(r"extra == ['\"](dev|docs)['\"]", line):
            extras.add(name)
    found = {name: version(name) for name in sorted(wanted | extras)}
    return {name: found[name] for name in found if name in wanted or found[name] is not None}


def version(package: str) -> str | None:
    """The installed version of a package, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that this code is read from, and whether it holds changes; None where it is no checkout.

    Asked once per process: its code is that of its start, whatever is edited meanwhile.
    """
    here = Path(__file__).resolve().parent

    def run_git(*arguments: str) -> str:
        # A hook's GIT_DIR would lead to another repository.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        command = ["git", "--no-optional-locks", "-C", str(here), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=True, env=clean
        ).stdout.strip()

    try:
        run_git(
            "ls-files", "--error-unmatch", "__init__.py"
        )  # an installed copy may lie within another project's checkout
        return {"commit": run_git("rev-parse", "HEAD"), "dirty": bool(run_git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def cpu() -> dict[str, Any]:
    """Model, cores of the machine, cores that this process may use, and the widest instructions that torch uses."""
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


@functools.cache
def _cpu_model() -> str | None:
    try:
        listed = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        listed = None
    if listed:
        return listed[1].strip()
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string")
    return platform.processor() or None


def gpu() -> dict[str, Any]:
    """Name, memory in bytes and compute capability of the current CUDA device; versions of driver, CUDA and cuDNN."""
    import torch

    facts = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": facts.name,
        "memory_bytes": facts.total_memory,
        "capability": f"{facts.major}.{facts.minor}",
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": _cudnn(torch.backends.cudnn.version()),
    }


@functools.cache
def _driver() -> str | None:
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        listed = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        return listed.splitlines()[0] if listed else None


def _cudnn(number: int | None) -> str | None:
    """91002 -> 9.10.2; before 9 the digits were others: 8902 -> 8.9.2."""
    if number is None:
        return None
    major, rest = divmod(number, 10_000 if number >= 90_000 else 1_000)
    return f"{major}.{rest // 100}.{rest % 100}"


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def without_home(value: Any) -> Any:
    """`value` (plain JSON values) with `~` for the user's home folder wherever a text has it."""
    if isinstance(value, Mapping):
        return {key: without_home(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_home(item) for item in value]
    if not isinstance(value, str):
        return value
    for home in _homes():
        value = re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])", "~", value)
    return value


def _homes() -> list[str]:
    try:
        home = Path.home()
        homes = {str(home), str(home.resolve())}
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return []
    return sorted((each for each in homes if len(each) > 1), key=len, reverse=True)


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None  # the metadata of an installed package
    return found[0].lower()


def read_environment(folder: Path) -> dict[str, Any] | None:
    """The facts in a trial's folder; None where there are none that can be read."""
    try:
        content = json.loads((folder / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None

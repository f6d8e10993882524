"""What a trial's numbers were made with and what they cost: `environment.json` beside `result.json`.

By design nothing here decides a number, so none of it is part of the signature; it is what one looks at when two
machines disagree all the same (`slime-bench compare`). No name of a host or user is in it, and `~` is the home folder.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

ENVIRONMENT_FILE: Final = "environment.json"
_SECONDS: Final = 10  # that git or nvidia-smi may take

_PACKAGES: Final = (
    "slime-bench", "accelerate", "diffusers", "filelock", "flash-attn", "huggingface-hub", "hydra-core", "lightning",
    "numpy", "omegaconf", "pandas", "pillow", "pyarrow", "pydantic", "safetensors", "scipy", "tokenizers", "torch",
    "torchmetrics", "torchvision", "transformers", "triton", "wandb", "xformers",
)  # fmt: skip
"""What computes, reads and writes; of those that the libraries use without the bench asking for them, what is there."""
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG")


def environment(device: str, seconds: Mapping[str, float], fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """The facts of a trial that has just been tested, in this process.

    Args:
        device: `cpu`, `cuda` or `mps`, on which it computed.
        seconds: of its parts.
        fingerprints: sha256 of the backbone's weights (`backbone`), of the data set's manifest (`data`), and of what
            else the configuration only points to.

    Returns:
        Plain JSON values. Memory is in bytes; None where the system does not say (MPS tells no peak).
        `peak_rss_bytes` is this process's own (a loader's workers are processes of their own), since `reset_peaks`
        where the system allows that.
    """
    import torch

    cuda = device == "cuda"
    name = torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    if device == "mps":
        name = f"{platform.machine()} GPU (MPS)"
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
            # None: MPS has no such mode, whatever was asked for
            "deterministic": None if device == "mps" else torch.are_deterministic_algorithms_enabled(),
            "float32_matmul": torch.get_float32_matmul_precision(),
            "cudnn_tf32": torch.backends.cudnn.allow_tf32 if cuda else None,
        },
        "fingerprints": dict(fingerprints),
        "seconds": dict(seconds),
        "peak_rss_bytes": peak_rss(),
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return {key: without_home(value) for key, value in facts.items()}


def reset_peaks(device: str) -> None:
    """Let the peaks of memory count from now on, as trials of a sweep share a process; Linux alone lets it reset its
    own."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss() -> int | None:
    """Most memory that this process held in RAM, in bytes."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:  # no Linux
        return None
    return int(found[1]) * 1024 if found else None


def packages() -> dict[str, str]:
    """Versions of what the bench computes with."""
    return {name: found for name in _PACKAGES if (found := version(name)) is not None}


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

    def git(*arguments: str) -> str:
        return _output("git", "--no-optional-locks", "-C", str(here), *arguments)

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # an installed copy may lie within another project's checkout
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def cpu() -> dict[str, Any]:
    """Model, cores of the machine, cores that this process may use, and the widest instructions that torch uses."""
    import torch

    try:
        listed = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        listed = None
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": listed[1].strip() if listed else platform.processor() or None, "cores": os.cpu_count(),
        "usable_cores": usable, "capability": torch.backends.cpu.get_cpu_capability(),
    }  # fmt: skip


def gpu() -> dict[str, Any]:
    """Name, memory in bytes and compute capability of the current CUDA device; versions of driver, CUDA and cuDNN."""
    import torch

    facts = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": facts.name, "memory_bytes": facts.total_memory, "capability": f"{facts.major}.{facts.minor}",
        "driver": _driver(), "cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version()),
    }  # fmt: skip


@functools.cache
def _driver() -> str | None:
    try:
        listed = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    except (OSError, subprocess.SubprocessError):
        return None
    return listed.partition("\n")[0]


def _output(*command: str) -> str:
    # Without a hook's GIT_DIR, which would lead to another repository.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True, env=clean)
    return done.stdout.strip()


def without_home(value: Any) -> Any:
    """`value` (plain JSON values) with `~` for the user's home folder wherever a text has it."""
    if isinstance(value, Mapping):
        return {key: without_home(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_home(item) for item in value]
    if not isinstance(value, str):
        return value
    home = os.path.expanduser("~")
    for each in {home, os.path.realpath(home)} - {"/"}:
        value = re.sub(rf"(?<![\w.-]){re.escape(each)}(?![\w.-])", "~", value)
    return value


def read_environment(folder: Path) -> dict[str, Any] | None:
    """The facts in a trial's folder; None where there are none that can be read."""
    return read_json(folder / ENVIRONMENT_FILE)


def read_json(path: Path) -> dict[str, Any] | None:
    """What a JSON file in a trial's folder says; None where it is not there or cannot be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None

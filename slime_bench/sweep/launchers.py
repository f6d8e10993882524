"""The launchers: who runs the trials of a sweep, and where."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol

from omegaconf import DictConfig, OmegaConf

from slime_bench.errors import ConfigError
from slime_bench.sweep.job import Job, Task
from slime_bench.sweep.outcome import Outcome

SEQUENTIAL: Final = "sequential"
_NEEDS: Final = {
    # launcher: library, extra of this package
    "joblib": ("joblib", "launchers"),
    "submitit_local": ("submitit", "launchers"),
    "submitit_slurm": ("submitit", "launchers"),
    "ray": ("ray", "ray"),
}


class Runner(Protocol):
    """Runs trials, one or several at a time."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """The outcomes, in whatever order the trials end."""


class InProcess:
    """One trial after another in this process, which keeps the backbone."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        for task in tasks:
            yield self._job.run(task)


def launcher_of(trials: Sequence[DictConfig]) -> DictConfig:
    """The launcher's settings of a command.

    Raises:
        ConfigError: its trials name several launchers.
    """
    first = trials[0].launcher
    other = next((each.launcher for each in trials if each.launcher != first), None)
    if other is not None:
        raise ConfigError(
            "one command has one launcher", path="launcher", found=f"{first.name} and {other.name}", expected="one",
            remedy="give `launcher` and its keys one value each",
        )  # fmt: skip
    return first


def runner(launcher: DictConfig, job: Job) -> Runner:
    """Who runs the trials of `job`.

    Raises:
        ConfigError: the launcher's library is not installed, or does not take its options.
    """
    if launcher.name == SEQUENTIAL:
        return InProcess(job)
    _check_library(launcher.name)
    options: Any = OmegaConf.to_container(launcher.options, resolve=True)
    if launcher.name == "joblib":
        from slime_bench.sweep.with_joblib import JoblibRunner

        return JoblibRunner(job, launcher.jobs, options)
    if launcher.name == "ray":
        from slime_bench.sweep.with_ray import RayPool

        return RayPool(job, launcher.jobs, options)
    from slime_bench.sweep.with_submitit import SubmititPool

    return SubmititPool(job, launcher.name.removeprefix("submitit_"), launcher.jobs, options)


def _check_library(name: str) -> None:
    library, extra = _NEEDS[name]
    try:
        importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise ConfigError(
            f"the launcher `{name}` needs a library that is not installed", path="launcher", found=f"no {library}",
            expected=f"the extra `{extra}` of slime-bench",
            remedy=f"pip install 'slime-bench[{extra}]', or in a checkout: pip install --editable '.[{extra}]'",
        ) from error  # fmt: skip

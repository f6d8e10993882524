"""The bench's own Hydra launcher: it is given all trials of a sweep at once, checks them all before the first one runs,
runs them on the chosen engine and says what became of each."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig

from slime_bench.config.compose import names, translated, with_additions, without_hydra
from slime_bench.config.schema import TrialConfig, validate
from slime_bench.errors import SlimeBenchError
from slime_bench.lock import Holder, held
from slime_bench.sweep import job_result as states
from slime_bench.sweep.engines import SEQUENTIAL, Engine, engine, launcher_of
from slime_bench.sweep.job import Job, Task
from slime_bench.sweep.job_result import JobResult
from slime_bench.sweep.summary import summarise, tell_end
from slime_bench.sweep.trials import Trials
from slime_bench.trial.spec import stamp


class FailedTrial(SlimeBenchError):
    """A trial that failed under somebody else's launcher, which has to be told by an exception."""


@dataclass
class Command:
    """What Hydra calls for a single trial, and for each trial of a sweep where the launcher is somebody else's.

    Attributes:
        tracebacks: the user's own value of HYDRA_FULL_ERROR, which Hydra's entry point overrides.
        results: of all trials that this process ran or had run, in order.
        folder: of the command, which Hydra makes.
        error: what kept a single trial from running at all.
    """

    tracebacks: str | None = None
    results: list[JobResult] = field(default_factory=list)
    folder: Path | None = None
    error: SlimeBenchError | None = None

    def __call__(self, cfg: DictConfig) -> float:
        """Hydra's task function: the trial's average IoU, NaN where it has none."""
        hydra = HydraConfig.get()
        self.folder = Path(hydra.runtime.output_dir)
        overrides = [list(hydra.overrides.task)]
        foreign = hydra.mode == RunMode.MULTIRUN
        try:
            (result,) = self.run([validate(without_hydra(cfg))], names(overrides), self.folder)
        except SlimeBenchError as error:
            if foreign:
                raise
            self.error = error  # raised now, Hydra would have its own words for it
            return math.nan
        if foreign and not result.finished:
            raise FailedTrial(result.message or result.status)
        return score(result)

    def run(self, trials: Sequence[TrialConfig], called: tuple[str, ...], folder: Path) -> list[JobResult]:
        """Run checked trials on their engine.

        Args:
            called: their names. folder: of the command, for records; it need not be there.

        Raises:
            ConfigError: trials that name several engines, or an engine whose library is missing.
        """
        launcher = launcher_of(trials)
        elsewhere = launcher.name != SEQUENTIAL
        limit = None if launcher.trials_per_batch == "auto" else int(launcher.trials_per_batch)
        job = Job(
            folder.absolute(),
            called,
            recorded=elsewhere or len(trials) > 1,
            keep_going=launcher.keep_going,
            tracebacks=self.tracebacks,
            trials=None if elsewhere else Trials(trials, limit),
        )
        runs = engine(launcher, job)
        tasks = {index: Task(index, *each) for index, each in enumerate(zip(called, trials, strict=True))}
        results = (
            _told(runs, tasks.values()) if elsewhere else {each.index: each for each in runs.run([*tasks.values()])}
        )
        results = _waited_for(results, tasks, runs)
        summarise(results, called)
        found = [results.get(index, JobResult(index, name, states.LEFT_OUT)) for index, name in enumerate(called)]
        self.results += found
        return found

    def tidy(self) -> None:
        """Remove the command's folder where nothing came of it."""
        if self.folder is None:
            return
        with suppress(OSError):
            if not self.results:
                (self.folder / "multirun.yaml").unlink(missing_ok=True)
            for folder in (self.folder, *self.folder.parents[:2]):  # hydra/ and the output folder
                folder.rmdir()


class SweepLauncher(Launcher):
    """The plugin. `hydra/launcher: slime_bench` in conf/config.yaml chooses it."""

    __module__ = "hydra_plugins.slime_bench"

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context, self._command, self._config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the trials with these overrides; a sweeper is given their average IoU, NaN for one that failed.

        Raises:
            ConfigError: a trial that is not valid, before any runs.
        """
        if not isinstance(self._command, Command):  # `--cfg`, or somebody else's entry point
            return []
        self._command.folder = Path(str(self._config.hydra.sweep.dir))
        trials = [with_additions(overrides, self._composed) for overrides in job_overrides]
        results = self._command.run(trials, names(job_overrides), self._command.folder)
        return [_returned(result, overrides) for result, overrides in zip(results, job_overrides, strict=True)]

    def _composed(self, overrides: list[str]) -> TrialConfig:
        with translated():
            cfg = self._context.config_loader.load_sweep_config(self._config, overrides)
        return validate(without_hydra(cfg))


def register() -> None:
    """Tell Hydra of the plugins; their configuration is stored in `slime_bench.config.compose`.

    Hydra takes plugins of the namespace `hydra_plugins` alone, and imports them by their name.
    """
    namespace = types.ModuleType("hydra_plugins")
    namespace.__path__ = []  # a package, in which Hydra looks for others
    sys.modules.setdefault(namespace.__name__, namespace)
    sys.modules[SweepLauncher.__module__] = sys.modules[__name__]
    plugins = Plugins.instance()
    # Only now: while it looks for plugins, Hydra makes the classes of its own anew.
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    class Sweeper(BasicSweeper):
        """Hydra's own, which would compose every trial once to see whether it can, and once more to run it."""

        def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
            """Left to the launcher, which composes and checks all trials before the first one runs."""

    Sweeper.__module__, Sweeper.__qualname__ = SweepLauncher.__module__, "Sweeper"
    sys.modules[__name__].__dict__["Sweeper"] = Sweeper
    for plugin in (SweepLauncher, Sweeper):
        plugins.register(plugin)


def score(result: JobResult) -> float:
    """Average IoU in [0,1], for a sweeper; NaN for a trial that failed or has none."""
    return math.nan if result.average is None else result.average


def _returned(result: JobResult, overrides: Sequence[str]) -> JobReturn:
    returned = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    returned.return_value = score(result)
    return returned


def _told(runs: Engine, tasks: Collection[Task]) -> dict[int, JobResult]:
    """The results of trials that run in other processes; how each ended is said on stderr."""
    results: dict[int, JobResult] = {}
    for result in runs.run(list(tasks)):
        tell_end(result, len(results) + 1, len(tasks), results.values())
        results[result.index] = result
    return results


def _waited_for(results: Mapping[int, JobResult], tasks: Mapping[int, Task], runs: Engine) -> dict[int, JobResult]:
    """The results once the trials that other processes were computing have ended there; those that did not end well
    are run here."""
    settled = dict(results)
    for index, result in results.items():
        while result.status == states.BUSY and result.folder is not None:
            (result,) = runs.run([_after(tasks[index], Path(result.folder))])
        settled[index] = result
    return settled


def _after(task: Task, folder: Path) -> Task:
    """The trial, to be run once nobody else computes it. A result that came meanwhile is as good as a forced one."""

    def says(holder: Holder | None) -> None:
        who = holder or "another process"
        print(f"waiting for {who}, which computes {task.name} (Ctrl-C ends the wait)", file=sys.stderr, flush=True)

    before = stamp(folder)
    with held(folder, says):
        pass
    came = task.cfg.force and stamp(folder) != before
    return replace(task, again=True, cfg=task.cfg.replace(force=False) if came else task.cfg)

"""One trial's W&B run, from its start to its end. Nothing that goes wrong in W&B leaves this file as an error.

A repeated or interrupted trial goes on in its run: what a process before it has logged is not logged again. (A trial is
reproducible, so it would be the same.)
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from slime_bench.config.schema import LoggerConfig, TrialConfig
from slime_bench.errors import ConfigError, SlimeBenchError
from slime_bench.tracking import finals, keys, record
from slime_bench.tracking.facts import RunFacts, run_facts
from slime_bench.tracking.mode import DISABLED, OFFLINE, ONLINE, asked_for, has_key, settings, tells_who
from slime_bench.tracking.process import environment, memory, stop_service, teardown, waiting, within
from slime_bench.tracking.record import FOLDER
from slime_bench.tracking.transaction_log import last_step

if TYPE_CHECKING:
    from slime_bench.results.result import TrialResult

INTERRUPTED: Final = 255
"""W&B's own exit code for Ctrl-C."""
PATIENCE: Final = 5.0
"""Seconds that an interrupted trial waits for the last upload at most."""

_log = logging.getLogger(__name__)
_said: set[str] = set()  # what this process has told the user already
_unreachable = False  # once is enough: the next trial of a sweep would wait for as long


def opened(cfg: TrialConfig, folder: Path, fingerprints: Mapping[str, str]) -> Session | None:
    """The session of the trial in `folder`, its run started; None where W&B is disabled or cannot be started.

    Args:
        fingerprints: see `run_facts`.

    Raises:
        ConfigError: a run is active already, or WANDB_MODE is no mode.
    """
    wanted = asked_for(cfg.logger.mode, os.environ)
    if wanted == DISABLED:
        return None
    try:
        import wandb
    except ImportError as error:
        _warn("W&B cannot be imported, and the trial goes on without it", error)
        return None
    if wandb.run is not None:
        # `wandb.init` would hand out this run, and the trial's curve would go on where that one's is.
        raise ConfigError(
            "a W&B run is active already", path="logger", found=f"the run {wandb.run.id}", expected="none",
            remedy="end it with wandb.finish() before the trial, or use logger=none",
        )  # fmt: skip
    logging.getLogger("wandb").setLevel(logging.CRITICAL + 1)  # its file in the run's folder would hold full paths
    facts = run_facts(cfg, fingerprints, record.attempt(folder, cfg.force))
    with environment(folder):
        mode = wanted or _settled(wandb, folder)
        if mode == DISABLED:
            return None
        session = Session(wandb, cfg.logger, facts, folder)
        return session if session.start(mode) else None


def exit_code(error: BaseException) -> int:
    """What W&B is told of a trial that ends with `error`."""
    causes = (error, error.__cause__, error.__context__)  # Lightning turns Ctrl-C into SystemExit
    return INTERRUPTED if any(isinstance(each, KeyboardInterrupt) for each in causes) else 1


def in_sweep() -> bool:
    """Whether the process was started by `wandb agent`."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


class Session:
    """A trial's run in W&B. After the first error of W&B's the others are not tried any more."""

    def __init__(self, wandb: Any, config: LoggerConfig, facts: RunFacts, folder: Path) -> None:
        self.facts = facts
        self._wandb, self._config, self._folder = wandb, config, folder
        self._run: Any = None
        self._mode = OFFLINE
        self._broken = False
        self._logged = -1  # the last step that an earlier process has logged
        self._before: float | None = None

    def start(self, mode: str) -> bool:
        """Start the run; one that is to be online is kept offline where the server cannot be reached."""
        global _unreachable
        if mode == ONLINE and not _unreachable:
            try:
                self._init(ONLINE)
            except Exception as error:
                _unreachable = True
                _warn("W&B's server does not take the run", error)
                self._clear_failed_start()
            else:
                return True
        try:
            self._init(OFFLINE)
        except Exception as error:
            _warn("W&B cannot be started, and the trial goes on without it", error)
            self._clear_failed_start()
            return False
        if mode == ONLINE:
            _say(f"W&B: this process's runs are kept offline; later: {_sync_command(self._folder)}")
        return True

    def _init(self, mode: str) -> None:
        facts, config = self.facts, self._config
        own = {} if in_sweep() else {"project": config.project, "id": facts.id, "resume": "allow"}
        known = self._wandb.Settings.model_fields
        self._run = self._wandb.init(
            **own,
            name=facts.name,
            group=facts.group,
            job_type=facts.job_type,
            tags=facts.tags,
            config=facts.config,
            dir=str(self._folder),
            mode=mode,
            settings=self._wandb.Settings(**settings(mode, config.timeout, config.finish_timeout, known)),
        )
        self._mode = mode
        self._run.define_metric(keys.STEP, hidden=True)
        self._run.define_metric("*", step_metric=keys.STEP, step_sync=True)
        self._run.define_metric(keys.VALIDATION, step_metric=keys.STEP, step_sync=True, summary="max,last")
        self._logged = max(last_step(self._folder, self._run.id), int(self._run.starting_step) - 1)
        record.write(self._folder, facts.id, complete=False)

    def log(self, metrics: Mapping[str, float], step: int | None, timed: bool = True) -> None:
        """One row of the curves; that of a training step also with its time and memory, unless it is not `timed`."""
        if self._broken or (step is not None and step <= self._logged):
            return
        row = dict(metrics)
        if keys.LOSS in row and timed:
            now = time.perf_counter()
            if self._before is not None:
                row[keys.SECONDS] = now - self._before
            self._before = now
            row[keys.MEMORY] = memory()
        if step is not None:
            row[keys.STEP] = step
        self._try(lambda: self._run.log(row, step=step))

    def log_result(self, folder: Path, result: TrialResult) -> None:
        """What the finished trial's files hold: numbers, then pictures, then tables, of which W&B makes the most."""
        self._try(lambda: self._run.summary.update(finals.summary(result, finals.seconds(folder))))
        kept = cache(lambda: finals.examples(folder))
        self._try(lambda: self._log_pictures(*kept()))
        self._try(lambda: self._log_tables(*kept(), finals.layers(folder, result.convention)))

    def _log_pictures(self, found: Sequence[finals.Example], classes: Sequence[str]) -> None:
        from slime_bench.tracking import media

        if found:
            pictures = {keys.EXAMPLES: [media.example(one, classes) for one in found]}
            self._run.log({**pictures, **media.score_maps(found, classes)}, commit=False)

    def _log_tables(
        self, found: Sequence[finals.Example], classes: Sequence[str], rows: Sequence[tuple[Any, ...]]
    ) -> None:
        from slime_bench.tracking import media

        if tells_who(os.path.relpath(self._folder), os.environ):
            return
        tables = {keys.TABLE: media.example_table(found, classes)} if found else {}
        if rows:
            tables |= {keys.BARS: media.layer_bars(rows), keys.LAYERS: media.layer_table(rows)}
        with environment(self._folder), self._relative_paths():
            self._run.log(tables, commit=False)

    @contextmanager
    def _relative_paths(self) -> Iterator[None]:
        """W&B notes at which path it keeps a table's files until they are uploaded: here, relative to the working
        folder, from which `wandb sync` is to be called as well. (Where even that path holds the user's name, there are
        no tables.)"""
        log_artifact = self._run.log_artifact

        def relative(artifact: Any, *args: Any, **kwargs: Any) -> Any:
            for entry in artifact.manifest.entries.values():
                if entry.local_path:
                    entry.local_path = os.path.relpath(entry.local_path)
            return log_artifact(artifact, *args, **kwargs)

        self._run.log_artifact = relative
        try:
            yield
        finally:
            del self._run.log_artifact

    def close(self, code: int) -> None:
        """End the run with the trial's exit code."""
        if self._run is None:
            return
        failed = self._broken
        try:
            if code == INTERRUPTED:
                within(PATIENCE, lambda: self._run.finish(exit_code=code), lambda: stop_service(self._wandb))
            else:
                self._run.finish(exit_code=code)
        except Exception as error:
            if not failed:
                path = shlex.quote(os.path.relpath(Path(self._run.dir).parent))
                _warn(f"W&B has not ended the run; what it lacks can be sent with `wandb sync {path}`", error)
            failed = True
        finally:
            self._forget()
        if failed:
            teardown(self._wandb)
            if self._wandb.run is self._run:
                self._wandb.run = None  # else it would be in the way of the next trial's
        elif code == 0:
            if self._mode == ONLINE:
                shutil.rmtree(waiting(self._folder), ignore_errors=True)
            with contextlib.suppress(SlimeBenchError):
                record.write(self._folder, self.facts.id, complete=True)

    def _forget(self) -> None:
        """Remove what W&B wrote for its own developers, killed processes included: paths and addresses."""
        for run in self._folder.glob(f"{FOLDER}/*run-*"):
            for name in ("logs", "tmp"):
                shutil.rmtree(run / name, ignore_errors=True)

    def _clear_failed_start(self) -> None:
        """W&B's service keeps the id of a run that it could not start, and the run's folder stays."""
        if self._run is not None:
            with contextlib.suppress(Exception):
                self._run.finish(exit_code=1)
        teardown(self._wandb)
        self._run = None
        for path in self._folder.glob(f"{FOLDER}/run-*-{self.facts.id}*"):
            if last_step(self._folder, self.facts.id) < 0:
                shutil.rmtree(path, ignore_errors=True)

    def _try(self, action: Callable[[], Any]) -> None:
        if self._broken:
            return
        try:
            action()
        except Exception as error:
            self._broken = True
            _warn("W&B failed, and the trial goes on without it", error)


def _settled(wandb: Any, folder: Path) -> str:
    """The mode where nobody asked for one: that of `wandb offline` or `wandb disabled`; else it depends on the key."""
    try:
        known = wandb.setup(settings=wandb.Settings(silent=True)).settings
    except Exception:  # the start of the run will meet it again, and say so
        return OFFLINE
    stored = asked_for(known.mode, {}) if known.mode in (OFFLINE, "dryrun", DISABLED) else None
    if stored is not None:
        return stored
    if in_sweep() or has_key(os.environ, known.base_url):
        return ONLINE
    _say(f"W&B: no key is set, so runs are kept offline; with one (`wandb login`): {_sync_command(folder)}")
    return OFFLINE


def _sync_command(folder: Path) -> str:
    """For all trials under the same `output_root`, as a shell expands it."""
    root = folder.parents[3] if len(folder.parents) > 4 else folder
    pattern = "*/" * (len(folder.parts) - len(root.parts))
    return f"wandb sync {shlex.quote(os.path.relpath(root))}/{pattern}{FOLDER}/offline-run-*"


def _warn(what: str, error: Exception) -> None:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    _say(f"{what}: {first} (results are files, and complete without it)", logging.WARNING)


def _say(text: str, level: int = logging.INFO) -> None:
    """Once for each process."""
    if text not in _said:
        _said.add(text)
        _log.log(level, "%s", text)

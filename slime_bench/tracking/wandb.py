"""A trial as a W&B run. Nothing that goes wrong in W&B leaves this file as an error, except what the user asked for.

A run's id is the trial's signature. An interrupted trial goes on in its run; one that is kept offline, or computed anew
by force, replaces it. No key, user, host, command line or path of the machine is written.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import wandb
from lightning.pytorch.loggers import WandbLogger

from slime_bench.config.schema import LoggerConfig, TrialConfig
from slime_bench.console import is_interrupt
from slime_bench.errors import ConfigError
from slime_bench.results.environment import read_environment
from slime_bench.results.identity import recorded, series, signature
from slime_bench.results.result import TrialResult
from slime_bench.tracking import COMPLETE, FOLDER, in_sweep, media

INTERRUPTED: Final = 255
"""W&B's own exit code for Ctrl-C."""

ONLINE: Final = "online"
OFFLINE: Final = "offline"
DISABLED: Final = "disabled"
_MODES: Final = (ONLINE, OFFLINE, DISABLED)
_LONGEST_TAG: Final = 64
_LONGEST_NAME: Final = 128

_PRIVATE: Final[dict[str, Any]] = {
    "console": "off",
    "silent": True,
    "symlink": False,  # one of them would lead to the user's home
    # The code's state is in the trial's environment file; its text may hold anything.
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "label_disable": True,
    # No command line, user, host, path, package list or load of the machine.
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "host": "",
    "username": "",
    "email": "",
}

_log = logging.getLogger(__name__)
_unreachable = False  # once is enough: the next trial of a sweep would wait for as long


def trial_run(
    cfg: TrialConfig, folder: Path, fingerprints: Mapping[str, str]
) -> AbstractContextManager[TrialRun | None]:
    """The run of the trial in `folder`, ended after the block; None where W&B is disabled or cannot be started.

    Args:
        fingerprints: content hashes, see `identity.signature`.

    Raises:
        ConfigError: a run is active already, or WANDB_MODE is no mode.
    """
    return _run(cfg.logger, folder, run_facts(cfg, fingerprints), cfg.force, _sync_command(folder))


def log_figure(config: LoggerConfig, number: int, folder: Path, averages: Mapping[str, float]) -> None:
    """Log a figure of the bench as a run of its own, in place of the one before: its grid, and IoU averages in percent
    by row.

    Args:
        folder: where `grid.png` is, and W&B keeps its files.

    Raises:
        ConfigError: as `trial_run`.
    """
    name = f"figure{number}"
    facts = {"id": name, "name": f"Figure {number}", "group": "figures", "job_type": "figure", "tags": ("figure",)}
    later = f"wandb sync {shlex.quote(os.path.relpath(folder))}/{FOLDER}/offline-run-*"
    with _run(config, folder, facts, True, later) as run:
        if run is not None:
            run.log_grid(folder / "grid.png", averages)


@contextmanager
def _run(
    config: LoggerConfig, folder: Path, facts: dict[str, Any], force: bool, later: str
) -> Iterator[TrialRun | None]:
    """See `trial_run`.

    Args:
        facts: arguments of `wandb.init`. force: whether the run replaces one of the same id. later: the command that
            sends what was kept offline.
    """
    run, code = _opened(config, folder, facts, force, later), 0
    try:
        yield run
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt) or is_interrupt(error)
        code = INTERRUPTED if interrupted else 1
        raise
    finally:
        if run is not None:
            run.close(code)


def run_facts(cfg: TrialConfig, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of `wandb.init`.

    The group is of trials that differ in their seed alone. The configuration is what decides the numbers, without
    secrets, and the trial's identity.
    """
    own, shared = signature(cfg, fingerprints), series(cfg, fingerprints)
    method, data, shots = cfg.method.name, cfg.data.name, f"{cfg.shots}-shot"
    tags = [
        cfg.preset, cfg.data.subject, shots, cfg.protocol.name, data, cfg.backbone.name, method,
        f"metric {cfg.metric.convention}",
    ]  # fmt: skip
    return {
        "id": own, "name": f"{method} {data} {shots} seed {cfg.seed}"[:_LONGEST_NAME],
        "group": f"{method}-{data}-{shots}"[: _LONGEST_NAME - len(shared) - 1] + f"-{shared}",
        "job_type": method[:_LONGEST_TAG], "tags": tuple(dict.fromkeys(tag[:_LONGEST_TAG] for tag in tags if tag)),
        "config": {**recorded(cfg), "signature": own, "series": shared, "fingerprints": dict(fingerprints)},
    }  # fmt: skip


def mode_asked_for(configured: str | None) -> str | None:
    """The mode of `logger.mode`, else of WANDB_MODE; None where neither says anything.

    Raises:
        ConfigError: WANDB_MODE holds something else.
    """
    text = configured or os.environ.get("WANDB_MODE") or None
    if text not in (*_MODES, None):
        raise ConfigError(
            "WANDB_MODE does not name a mode that a trial can be logged in", path="WANDB_MODE", found=repr(text),
            expected=f"{ONLINE}, {OFFLINE} or {DISABLED}", remedy="unset it, or say logger.mode=offline",
        )  # fmt: skip
    return text


class TrialRun(WandbLogger):
    """Lightning's logger on a run. After the first error of W&B's the others are not tried any more."""

    def __init__(self, config: LoggerConfig, facts: dict[str, Any], folder: Path, mode: str, force: bool) -> None:
        self._folder, self._online, self._failed = folder, mode == ONLINE, False
        settings = {
            **_PRIVATE, "init_timeout": config.timeout, "finish_timeout": config.finish_timeout,
            "finish_timeout_raises": True,
        }  # fmt: skip
        if not self._online:
            settings["entity"] = ""  # often the user's own name, in WANDB_ENTITY; `wandb sync` asks for it again
        super().__init__(
            save_dir=folder,
            project=config.project,
            mode=mode,
            resume="allow" if self._online and not force else None,  # without, W&B replaces a run of the same id
            settings=wandb.Settings(**settings),
            **facts,
        )

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """One row of the curve, unless an earlier process has logged the step."""
        if step is None or step >= self.experiment.starting_step:
            self._try(lambda: super(TrialRun, self).log_metrics(metrics, step))

    def log_result(self, folder: Path, result: TrialResult) -> None:
        """What the finished trial's files hold: numbers, then pictures, then tables, of which W&B makes the most."""
        run = self.experiment
        self._try(lambda: run.summary.update(media.summary(folder, result)))
        self._try(lambda: run.config.update({"environment": read_environment(folder)}))
        self._try(lambda: run.log(media.pictures(folder), commit=False))
        if not _tells_who(os.path.relpath(folder)):
            with _environment(folder), self._relative_paths():
                self._try(lambda: run.log(media.tables(folder, result), commit=False))

    def log_grid(self, path: Path, averages: Mapping[str, float]) -> None:
        """A figure's picture, and its numbers by row."""
        run = self.experiment
        self._try(lambda: run.summary.update({f"iou/{name}": value for name, value in averages.items()}))
        self._try(lambda: run.log({"grid": wandb.Image(str(path))}))

    def close(self, code: int) -> None:
        """End the run with the trial's exit code."""
        try:
            self.experiment.finish(exit_code=code)
        except Exception as error:
            if not self._failed:
                kept = shlex.quote(os.path.relpath(Path(self.experiment.dir).parent))
                _warn(f"W&B has not ended the run; what it lacks can be sent with `wandb sync {kept}`", error)
            self._failed = True
        for path in self._folder.glob(f"{FOLDER}/*run-*"):
            for name in ("logs", "tmp"):  # W&B's own, with paths and addresses
                shutil.rmtree(path / name, ignore_errors=True)
        if self._failed:
            _reset()
        elif code == 0:
            if self._online:
                shutil.rmtree(_tables(self._folder), ignore_errors=True)
            with suppress(OSError):
                (self._folder / FOLDER / COMPLETE).touch()

    @contextmanager
    def _relative_paths(self) -> Iterator[None]:
        """W&B notes at which path it keeps a table's files until they are uploaded: here, relative to the working
        folder, from which `wandb sync` is to be called as well. (Where even that path holds the user's name, there are
        no tables.)"""
        run, log_artifact = self.experiment, self.experiment.log_artifact

        def relative(artifact: Any, *args: Any, **kwargs: Any) -> Any:
            for entry in artifact.manifest.entries.values():
                if entry.local_path:
                    entry.local_path = os.path.relpath(entry.local_path)
            return log_artifact(artifact, *args, **kwargs)

        run.log_artifact = relative
        try:
            yield
        finally:
            del run.log_artifact

    def _try(self, action: Callable[[], Any]) -> None:
        if self._failed:
            return
        try:
            action()
        except Exception as error:
            self._failed = True
            _warn("W&B failed, and the trial goes on without it", error)


def _opened(config: LoggerConfig, folder: Path, facts: dict[str, Any], force: bool, later: str) -> TrialRun | None:
    """The run, started; one that is to be online is kept offline where the server cannot be reached."""
    global _unreachable
    wanted = mode_asked_for(config.mode)
    if wanted == DISABLED:
        return None
    if wandb.run is not None:
        # `wandb.init` would hand out this run, and the trial's curve would go on where that one's is.
        raise ConfigError(
            "a W&B run is active already", path="logger", found=f"the run {wandb.run.id}", expected="none",
            remedy="end it with wandb.finish() before the trial, or use logger=none",
        )  # fmt: skip
    logging.getLogger("wandb").setLevel(logging.CRITICAL + 1)  # its file in the run's folder would hold full paths
    with _environment(folder):
        mode = wanted or _mode_of_account(later)
        if mode == DISABLED:
            return None
        for each in (OFFLINE,) if mode == OFFLINE or _unreachable else (ONLINE, OFFLINE):
            _forget(folder, facts["id"])  # the curve is given anew from its first step
            run = TrialRun(config, facts, folder, each, force)
            try:
                _ = run.experiment
            except Exception as error:
                _unreachable = _unreachable or each == ONLINE
                refused = "W&B's server does not take the run"
                _warn(refused if each == ONLINE else "W&B cannot be started, and the trial goes on without it", error)
                _reset()  # W&B's service keeps the id of a run that it could not start
                continue
            if each != mode:
                _say(f"W&B: this process's runs are kept offline; later: {later}")
            return run
    _forget(folder, facts["id"])
    return None


def _mode_of_account(later: str) -> str:
    """The mode where nobody asked for one: that of `wandb offline` or `wandb disabled`; else it depends on the key."""
    try:
        mode = str(wandb.setup(settings=wandb.Settings(silent=True)).settings.mode)
        if mode != ONLINE or in_sweep() or wandb.login(prompt=False, verify=False):
            return mode
    except Exception:  # e.g. a malformed key: the start of the run will meet it again, and say so
        return ONLINE
    _say(f"W&B: no key is set, so runs are kept offline; with one (`wandb login`): {later}")
    return OFFLINE


def _forget(folder: Path, run_id: str) -> None:
    """Remove what earlier processes kept of the trial's run."""
    (folder / FOLDER / COMPLETE).unlink(missing_ok=True)
    for path in folder.glob(f"{FOLDER}/*run-*-{run_id}"):
        shutil.rmtree(path, ignore_errors=True)


def _reset() -> None:
    """End W&B's service and forget its run, else both would be in the way of the next trial's."""
    with suppress(Exception):  # a service that has died may complain
        wandb.teardown()
    wandb.run = None


def _tables(folder: Path) -> Path:
    """Where tables wait for the upload; W&B would keep them in the user's home."""
    return folder / FOLDER / "data"


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """W&B reads these two from nowhere else."""
    before = dict(os.environ)
    os.environ.update({"WANDB_DATA_DIR": str(_tables(folder)), "WANDB_ERROR_REPORTING": "false"})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _tells_who(path: str) -> bool:
    """Whether the user's name stands in `path`, as it does in that of most homes."""
    names = {os.environ.get(name) for name in ("USER", "LOGNAME", "USERNAME")} | {Path.home().name}
    return any(name in path for name in names if name)


def _sync_command(folder: Path) -> str:
    """For all trials under the same `output_root`, as a shell expands it."""
    runs = shlex.quote(os.path.relpath(folder.parents[3]))
    return f"wandb sync {runs}/*/*/*/*/{FOLDER}/offline-run-*"


def _warn(what: str, error: Exception) -> None:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    _say(f"{what}: {first} (results are files, and complete without it)", logging.WARNING)


@cache
def _say(text: str, level: int = logging.INFO) -> None:
    """Once for each process."""
    _log.log(level, "%s", text)
